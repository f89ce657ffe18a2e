"""Group norm in two halves: the moments of each group, taken in parts, and the norm by them."""

from __future__ import annotations

import torch
from torch.nn import functional

PARTS = 512  # at most so many of a group: 32 groups of them fill any GPU


def split(layer: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """What `layer` computes of (batch, channels, ...), its moments taken part by part in FP32.

    torch 2.11 and 2.13 take the moments of a group in one block of threads. CogVideoX's VAE has 32
    groups and an H100 132 multiprocessors: that kernel was 0.8 of the decode's 2.3 seconds.
    """
    return normed(layer, x, *moments(layer, x))


def moments(layer: torch.nn.GroupNorm, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of each group of each video, (batch * groups,), FP32."""
    groups = x.shape[0] * layer.num_groups
    rows = x.reshape(groups, -1)
    parts = next(n for n in range(PARTS, 0, -1) if rows.shape[1] % n == 0)
    split = rows.view(groups, parts, -1)
    means = split.mean(-1, dtype=torch.float32)
    squares = torch.linalg.vector_norm(split, dim=-1, dtype=torch.float32).square()
    variances = squares / split.shape[-1] - means.square()
    mean = means.mean(1)
    return mean, (variances + (means - mean[:, None]).square()).mean(1)  # of parts, and between


def normed(
    layer: torch.nn.GroupNorm, x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    """Group norm of `x`, or of a part of it, by the moments of the whole.

    In evaluation a batch norm is one pass over its input, computed in FP32: with each channel of
    each video as a channel of its own, it is the second half of a group norm.
    """
    batch, channels = x.shape[:2]
    each = channels // layer.num_groups
    out = functional.batch_norm(
        x.reshape(1, batch * channels, *x.shape[2:]),
        mean.repeat_interleave(each),
        variance.repeat_interleave(each),
        layer.weight.float().repeat(batch),
        layer.bias.float().repeat(batch),
        eps=layer.eps,
    )
    return out.view_as(x)
