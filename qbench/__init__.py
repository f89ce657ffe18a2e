"""qbench: what does each quantization and optimization of a text-to-video model buy and cost?

The Python interface, beside the command line:

    recipe = qbench.load_recipe("fast")
    qbench.apply(pipe, recipe)  # a live diffusers pipeline, in place
    video = pipe("a prompt").frames  # diffusers' own call, the recipe in effect
    qbench.restore(pipe)
    record = qbench.measure("tiny-cogvideox", "int8")
    denoiser = qbench.load_engine("engines/onnx")
    results = qbench.load_results("results/runs")

Importing the package is instant: what a function needs is imported when it is called.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {
    "Recipe": "qbench.recipe.schema",
    "Record": "qbench.results.record",
    "InputError": "qbench.errors",
    "Unsupported": "qbench.errors",
    "load_recipe": "qbench.api",
    "apply": "qbench.api",
    "restore": "qbench.api",
    "measure": "qbench.api",
    "load_engine": "qbench.engines.loading",
    "load_results": "qbench.results.frame",
}
__all__ = [
    "InputError",
    "Recipe",
    "Record",
    "Unsupported",
    "__version__",
    "apply",
    "load_engine",
    "load_recipe",
    "load_results",
    "measure",
    "restore",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'qbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
