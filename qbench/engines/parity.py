"""Does an engine compute what the module computes? On the pipeline's own inputs, or not proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qbench.recipe.choices import ENGINES

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.engines.denoiser import EngineDenoiser
    from qbench.pipelines.base import Module
    from qbench.recipe.schema import Variant

# Allowed ||engine - module|| / ||module||: of an engine whose arithmetic is the module's in another
# order, and of one that quantizes by rules of its own. Outputs that are not related at all are at
# 1.4.
FAITHFUL, QUANTIZED = 0.02, 0.25
# Compiling adds in another order. Where inputs are quantized as they come, that moves some of them
# by a whole step, and later layers pass it on: up to this share of the variant's own error to
# FP32 is allowed. Independent errors add as squares, so a third of it makes it a twentieth larger.
REORDERED = 1 / 3


def by_own_rules(variant: Variant) -> bool:
    """Whether the engine quantizes as it is built, so that no module in Python is its twin."""
    return variant.quantize is not None and variant.quantize.backend in ENGINES


def quantizes_inputs(variant: Variant) -> bool:
    """Whether some linear's inputs are quantized as they come."""
    from qbench.optimizations import schemes

    wanted = variant.quantize
    return wanted is not None and any(
        one.activations is not None and not one.static for one in schemes.of_layers(wanted)
    )


def parity(
    module: Module, engine: EngineDenoiser, calls: Sequence[Mapping[str, object]], exact: bool
) -> dict[str, float]:
    """The largest relative error of the engine over `calls`, the keyword inputs of some steps.

    Raises RuntimeError beyond what is allowed.
    """
    import torch

    from qbench.engines.evidence import accuracy

    def computed(by: Module) -> list[Tensor]:
        return [by(**inputs, return_dict=False)[0].float().cpu() for inputs in calls]

    with torch.no_grad():
        error = accuracy(computed(engine), computed(module)).relative_l2
    allowed = FAITHFUL if exact else QUANTIZED
    if not error <= allowed:
        raise RuntimeError(
            f"the engine computes something else: relative error {error:.3g}, allowed {allowed}"
        )
    return {"parity_relative_error": error, "parity_calls": len(calls)}
