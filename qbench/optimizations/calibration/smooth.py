"""SmoothQuant: scales that move outliers of activations into weights.

Xiao et al. 2023 (arXiv 2211.10438): input channel j is divided by s_j = max|X_j|^a / max|W_j|^(1-a)
and column j of the weights multiplied by it. The exponent is searched for every input on sampled
tokens, with no scaling among the candidates, so that no layer's error on them grows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qbench.optimizations.calibration.numbers import Activations, Weights
from qbench.optimizations.calibration.observe import Seen

EXPONENTS = tuple(i / 20 for i in range(6, 21))
SMALLEST = 1e-5


def scales(most_x: Tensor, most_w: Tensor, exponent: float) -> Tensor:
    """(channels,) s of the formula above; 1 where a channel is never used.

    Divided by their geometric mean, which changes nothing but keeps them near 1 in half precision.
    """
    x, w = most_x.double(), most_w.double()
    used = (x > 0) & (w > 0)
    s = x.clamp_min(SMALLEST**2) ** exponent / w.clamp_min(SMALLEST**2) ** (1 - exponent)
    s = torch.where(used, s, torch.ones_like(s))
    if used.any():
        s = torch.where(used, s / s[used].log().mean().exp(), s)
    return s.clamp(SMALLEST, 1 / SMALLEST).float()


def best(
    seen: Seen,
    weights: Sequence[Tensor],
    stored: Weights,
    inputs: Activations,
    exponent: float | None = None,
) -> Tensor:
    """The scales of the exponent with the least error, or of the one given.

    weights: (out, channels) float32, of all linears that read the input.
    """
    most_w = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    if exponent is not None:
        return scales(seen.most, most_w, exponent)
    tokens = seen.tokens.float()
    found = [torch.ones_like(seen.most)]
    found += [scales(seen.most, most_w, one) for one in EXPONENTS]
    expected = [tokens @ weight.t() for weight in weights]
    errors = [error(tokens, seen.most, s, weights, expected, stored, inputs) for s in found]
    return found[errors.index(min(errors))]


def error(
    tokens: Tensor,
    most: Tensor,
    s: Tensor,
    weights: Sequence[Tensor],
    expected: Sequence[Tensor],
    stored: Weights,
    inputs: Activations,
) -> float:
    """Squared error of the linears' outputs with these scales, each relative to its own output."""
    fixed = inputs.scale((most / s).amax()) if inputs.static else None
    x = inputs.rounded(tokens / s, fixed)
    total = 0.0
    for weight, wanted in zip(weights, expected, strict=True):
        difference = x @ stored.rounded(weight * s).t() - wanted
        total += float(difference.square().sum() / wanted.square().sum().clamp_min(1e-30))
    return total
