"""Does an engine compute what the module computes? On the pipeline's own inputs, or not proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qbench.engines import EngineDenoiser
    from qbench.pipelines.base import Module

# Allowed ||engine - module|| / ||module||. A faithful engine only reorders arithmetic; a quantized
# one differs by design, and there the check is against outputs that are not related at all.
FAITHFUL, QUANTIZED = 0.02, 0.5


def parity(
    module: Module, engine: EngineDenoiser, calls: Sequence[Mapping[str, object]], exact: bool
) -> dict[str, float]:
    """The largest relative error of the engine over `calls`, the keyword inputs of some steps.

    Each half of a batch is compared by itself: guidance amplifies the difference of the two.
    Raises RuntimeError beyond what is allowed.
    """
    import torch

    worst, allowed = 0.0, FAITHFUL if exact else QUANTIZED
    with torch.no_grad():
        for inputs in calls:
            expected = module(**inputs, return_dict=False)[0].float()
            found = engine(**inputs, return_dict=False)[0].float()  # type: ignore[index]
            for ours, theirs in zip(found, expected, strict=True):
                error = ((ours - theirs).norm() / theirs.norm()).item()
                if not error <= allowed:  # also where it is NaN
                    raise RuntimeError(
                        f"the engine computes something else: relative error {error:.3g}, "
                        f"allowed {allowed}"
                    )
                worst = max(worst, error)
    return {"parity_relative_error": worst, "parity_calls": len(calls)}
