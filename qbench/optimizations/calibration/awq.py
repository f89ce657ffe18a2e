"""AWQ: scales that keep the weights of strong input channels exact, and clipped groups.

Lin et al. 2024 (arXiv 2306.00978): column j of the weights is multiplied by s_j = mean|X_j|^a, its
input divided by it, for the exponent a in 20 steps from 0 to 1 whose outputs err least. Candidates
are also mean|X_j|^a / mean|W_j|^(1-a), which the authors' code came to use. Then every group's
scale is lowered as far as that lessens the error of its own products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qbench.optimizations.calibration import smooth
from qbench.optimizations.calibration.numbers import Activations, Weights
from qbench.optimizations.calibration.observe import Seen

STEPS = 20
CLIPS = tuple(1 - i / 20 for i in range(11))


def scales(mean_x: Tensor, exponent: float, mean_w: Tensor | None = None) -> Tensor:
    """(channels,) s, divided by the geometric mean of its extremes, as the authors' code does."""
    s = mean_x.clamp_min(1e-4) ** exponent
    if mean_w is not None:
        s = s / mean_w.clamp_min(1e-6) ** (1 - exponent)
    return s / (s.amax() * s.amin()).sqrt()


def best(seen: Seen, weights: Sequence[Tensor], stored: Weights) -> Tensor:
    """The scales of the exponent whose outputs err least on the sampled tokens."""
    tokens = seen.tokens.float()
    expected = [tokens @ weight.t() for weight in weights]
    mean_w = torch.cat(list(weights)).abs().mean(0)
    exponents = [step / STEPS for step in range(STEPS)]
    found = [scales(seen.mean, a, w) for w in (None, mean_w) for a in exponents]
    errors = [
        smooth.error(tokens, seen.most, s, weights, expected, stored, Activations()) for s in found
    ]
    return found[errors.index(min(errors))]


def clipped(weight: Tensor, square: Tensor, stored: Weights) -> Tensor:
    """(rows, groups) scales of the clip with the least weighted error of each group.

    square: (columns,) mean squares of the inputs, which weigh the errors of weights.
    """
    scales = stored.scales(weight)
    least = torch.full_like(scales, torch.inf)
    chosen = scales.clone()
    for clip in CLIPS:
        lower = stored.stored(scales * clip)
        wrong = (stored.rounded(weight, lower) - weight).square() * square
        of_group = wrong.unflatten(1, (scales.shape[1], -1)).sum(2)
        if scales.shape[0] == 1:  # one scale for all rows
            of_group = of_group.sum(0, keepdim=True)
        better = of_group < least
        least = torch.where(better, of_group, least)
        chosen = torch.where(better, lower, chosen)
    return chosen
