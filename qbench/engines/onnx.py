"""Exporting the denoiser to ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.optimizations.rules import Rule
from qbench.recipe.schema import Variant

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.engines.inputs import Signature
    from qbench.pipelines.base import Module

# From opset 23 on, attention stays one node. Below, it is written out as MatMul and Softmax, whose
# score tensor at video lengths passes 2^31 elements, where ONNX Runtime has returned wrong results.
OPSET = 23
OUTPUT = "prediction"  # not "sample": that is what a UNet is given
MAX_BYTES = 1_900_000_000  # of weights in the model's own file
PACKAGES = ("onnx", "onnxscript")


def exporter(applies: Callable[[Variant], bool]) -> Rule:
    """What an engine that is built of ONNX needs for the export."""
    return Rule(
        "ONNX export",
        applies,
        lambda m: m.packages.issuperset(PACKAGES),
        "onnx and onnxscript are not installed: pip install 'qbench[onnx]'",
    )


def is_large(module: Module) -> bool:
    """Whether its weights pass the 2 GB that one ONNX file holds."""
    size: int = sum(p.numel() * p.element_size() for p in module.parameters())
    return size > MAX_BYTES


def export(module: Module, signature: Signature, example: Mapping[str, Tensor], path: Path) -> Path:
    """Write `module` as ONNX; weights beside it where they pass 2 GB.

    Its inputs have the names of `signature`, and a free first axis where they grow with a batch.
    example: one call's tensors by name.
    """
    import torch

    from qbench.engines.inputs import for_export

    path.parent.mkdir(parents=True, exist_ok=True)
    positional, tensors, free = for_export(module, signature, example)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            positional,
            tensors,
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(signature.names),
            output_names=[OUTPUT],
            dynamic_shapes=free,
            external_data=is_large(module),
            verbose=False,
        )
    return path
