"""The formats in which a variant leaves qbench: what each can hold, how it is built and loaded.

A format is a module of this package with the functions of `Format`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from qbench.engines import manifest
from qbench.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qbench.engines.inputs import Signature
    from qbench.pipelines.base import VideoPipeline
    from qbench.recipe.schema import Variant

Run = Callable[[Mapping[str, "Tensor"]], "Tensor"]  # tensors by name -> the prediction
MODULES: dict[manifest.Format, str] = {
    "diffusers": "qbench.engines.checkpoint",
    "onnx": "qbench.engines.onnxruntime",
    "tensorrt": "qbench.engines.tensorrt",
    "aoti": "qbench.engines.aoti",
}


class Format(Protocol):
    """What a format's module defines."""

    def refuses(self, variant: Variant) -> str:
        """Why this variant cannot be written in this format; empty where it can."""

    def write(
        self,
        video: VideoPipeline,
        signature: Signature,
        example: Mapping[str, Tensor],
        variant: Variant,
        folder: Path,
    ) -> manifest.Bound:
        """Write the denoiser, with the variant in effect, into `folder`; what binds it."""

    def open(self, folder: Path, shell: nn.Module, written: manifest.Description) -> Run:
        """The engine of a folder that was checked. `shell` is the denoiser without data."""


def named(name: str) -> manifest.Format:
    """The format of this name. Raises InputError with the nearest where there is none."""
    for known in MODULES:
        if name == known:
            return known
    raise InputError(f"--format {name}: no such format{nearest(name, MODULES)}")


def module(name: manifest.Format) -> Format:
    return cast(Format, importlib.import_module(MODULES[name]))


def implied(variant: Variant) -> manifest.Format:
    """The format that the recipe itself speaks of."""
    if variant.engine == "onnxruntime":
        return "onnx"
    if variant.engine == "tensorrt":
        return "tensorrt"
    return "diffusers"
