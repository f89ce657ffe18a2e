"""Does an engine compute what the module computes? On the real shape, or it proves nothing."""

from __future__ import annotations

from typing import Any

# Allowed ||engine - module|| / ||module||. A faithful engine only reorders arithmetic; a quantized
# one differs by design, and there the check is against outputs that are not related at all.
FAITHFUL, QUANTIZED = 0.02, 0.5


def parity(module: Any, engine: Any, inputs: tuple[Any, ...], exact: bool) -> dict[str, float]:
    """Relative error of the engine on `inputs`. Raises RuntimeError beyond what is allowed."""
    import torch

    with torch.no_grad():
        expected = module(*inputs, return_dict=False)[0].float()
        found = engine(*inputs, return_dict=False)[0].float()
    error = ((found - expected).norm() / expected.norm()).item()
    allowed = FAITHFUL if exact else QUANTIZED
    if not error <= allowed:  # also where it is NaN
        raise RuntimeError(
            f"the engine computes something else: relative error {error:.3g}, allowed {allowed}"
        )
    return {"parity_relative_error": error}
