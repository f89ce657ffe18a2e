"""SVDQuant: the strongest directions of the weights in half precision, the rest in few bits.

Li et al. 2025 (arXiv 2411.05007): outliers are scaled into the weights, a branch of low rank takes
the largest singular vectors, and the residual, whose largest values are gone, is quantized. The
branch is fitted again to what rounding left, and the pass that errs least is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.optimizations.calibration.numbers import Weights

RANK, PASSES = 32, 8


@dataclass(frozen=True)
class Split:
    """residual: (rows, columns) to be quantized; up: (rows, rank), down: (rank, columns)."""

    residual: Tensor
    up: Tensor
    down: Tensor


@torch.no_grad()
def split(
    weight: Tensor,
    square: Tensor,
    stored: Weights,
    rank: int,
    dtype: torch.dtype,
    passes: int = PASSES,
) -> Split:
    """The split of (rows, columns) float32 weights with the least error of their products.

    square: (columns,) mean squares of the inputs, which weigh errors by column.
    dtype: of the branch as it is stored.
    passes: how often the branch is fitted again; 1 is the paper's own.
    """
    weigh = square.sqrt().clamp_min(1e-6 * square.sqrt().amax().clamp_min(1e-30))
    rounded = torch.zeros_like(weight)
    kept, least = None, float("inf")
    for _ in range(passes):
        up, down = _low_rank((weight - rounded) * weigh, rank)
        up, down = up.to(dtype).float(), (down / weigh).to(dtype).float()
        residual = weight - up @ down
        rounded = stored.rounded(residual)
        error = float(((residual - rounded) * weigh).square().sum())
        if error < least:
            kept, least = Split(residual, up, down), error
    assert kept is not None
    return kept


def _low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    if min(matrix.shape) <= 128:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        u, s, v = u[:, :rank], s[:rank], v[:rank]
    else:
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            u, s, right = torch.svd_lowrank(matrix, q=rank + 16, niter=4)
        u, s, v = u[:, :rank], s[:rank], right[:, :rank].t()
    root = s.sqrt()
    return u * root, root[:, None] * v
