"""The formats in which a variant leaves qbench: what each can hold, how it is built and loaded.

A format is a module of this package with the functions of `Format`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from qbench.engines import manifest
from qbench.engines.base import Format, Run
from qbench.errors import InputError, nearest
from qbench.recipe.choices import EngineName

if TYPE_CHECKING:
    from qbench.recipe.schema import Variant

__all__ = ["Format", "Run", "implied", "module", "named", "refuses"]

MODULES: dict[manifest.Format, str] = {
    "diffusers": "qbench.engines.checkpoint",
    "onnx": "qbench.engines.onnxruntime",
    "tensorrt": "qbench.engines.tensorrt",
    "aoti": "qbench.engines.aoti",
    "qbench": "qbench.engines.prepared",
}
OF_ENGINE: dict[EngineName, manifest.Format] = {
    "onnxruntime": "onnx",
    "tensorrt": "tensorrt",
    "aoti": "aoti",
}


def named(name: str) -> manifest.Format:
    """The format of this name. Raises InputError with the nearest where there is none."""
    for known in MODULES:
        if name == known:
            return known
    raise InputError(f"--format {name}: no such format{nearest(name, MODULES)}")


def module(name: manifest.Format) -> Format:
    return cast(Format, importlib.import_module(MODULES[name]))


def refuses(name: manifest.Format, variant: Variant) -> str:
    """Why a folder of this format cannot hold the variant; empty where it can."""
    if variant.sparse_attention:
        return (
            "sparse_attention counts blocks and follows denoise steps in the run itself, as no "
            "format does: export the recipe without it"
        )
    if variant.parallel:
        return (
            "parallel has several processes make one video, and every format is for one: export "
            "the recipe with --set variant.parallel=null"
        )
    return module(name).refuses(variant)


def implied(variant: Variant) -> manifest.Format:
    """The format that the recipe itself speaks of."""
    if variant.engine is not None:
        return OF_ENGINE[variant.engine]
    own = variant.quantize is not None and variant.quantize.backend == "qbench"
    return "qbench" if own else "diffusers"
