"""GPTQ: weights rounded one column after another, each error made up for by the columns to come.

Frantar et al. 2023 (arXiv 2210.17323), with columns taken in the order of their Hessian's diagonal
and scales fixed before the first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.optimizations.calibration.numbers import Weights

DAMPING = 0.01
BLOCK = 128  # columns whose errors are passed on together


@torch.no_grad()
def quantize(
    weight: Tensor,
    hessian: Tensor,
    stored: Weights,
    damping: float = DAMPING,
    ordered: bool = True,
    scales: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes and scales of (rows, columns) float32 weights.

    hessian: (columns, columns) second moments of the inputs.
    damping: added to the diagonal, as a share of its mean.
    ordered: take the columns of the largest diagonal first.
    scales: (rows, groups) instead of those of plain rounding.
    """
    from qbench.optimizations.calibration.numbers import to_codes

    columns = weight.shape[1]
    scales = stored.scales(weight) if scales is None else scales
    spread = stored.spread(scales).expand(weight.shape[0], columns)
    diagonal = hessian.diagonal()
    unused = diagonal == 0
    order = (
        torch.argsort(diagonal, descending=True)
        if ordered
        else torch.arange(columns, device=weight.device)
    )
    left = weight.masked_fill(unused, 0.0)[:, order].clone()
    spread = spread[:, order]
    upper = _inverse(hessian[order][:, order], damping)
    codes = torch.empty_like(left)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        block, factor = left[:, start:end], upper[start:end, start:end]
        errors = torch.empty_like(block)
        for i in range(end - start):
            codes[:, start + i] = to_codes(block[:, i] / spread[:, start + i], stored.format)
            wrong = block[:, i] - codes[:, start + i] * spread[:, start + i]
            errors[:, i] = wrong / factor[i, i]
            block[:, i + 1 :] -= errors[:, i : i + 1] * factor[i, i + 1 :]
        left[:, end:] -= errors @ upper[start:end, end:]
    found = torch.empty_like(codes)
    found[:, order] = codes
    return found, scales


def _inverse(hessian: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse.

    In float64, for outliers make the condition bad. Where even so it is not positive definite,
    damping grows tenfold until it is.
    """
    h = hessian.double()
    mean = h.diagonal().mean().clamp_min(1e-30)
    unused = h.diagonal() == 0
    h[unused, unused] = mean
    for _ in range(6):
        damped = h + torch.eye(len(h), dtype=h.dtype, device=h.device) * damping * mean
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return upper.float()
        damping *= 10
    raise ValueError("second moments of a layer's inputs hold no finite numbers")
