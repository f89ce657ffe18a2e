"""Rotary self-attention: query and key are normed over all heads and rotated on their way to it.

Where FP8 attention follows, one kernel (`fp8_attention_inputs.cu`) norms, rotates and quantizes the
query, and norms, rotates and sums up the key; before, each was a pass of its own. The key is
quantized in a second pass, for it is centred first, and that takes all of it. Everywhere else
`fp8_rotary.cu` norms and rotates.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.library import custom_op
from torch.nn import functional

from qbench.optimizations.kernels import fp8_attention
from qbench.optimizations.kernels import rows as row_kernels

CHUNK = 128  # tokens a block, as in fp8_attention_inputs.cu
Tables = tuple[torch.Tensor, torch.Tensor]  # cosine and sine, (1, tokens, 1, channels of a head)


class RotaryNorm(nn.Module):
    """An RMS norm over all heads, then a rotary embedding of neighbouring channels."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.eps, self.weight = norm.eps or 0.0, norm.weight

    def forward(self, x: torch.Tensor, rotary: Tables) -> torch.Tensor:
        """x: (batch, tokens, channels). The tables are diffusers': each value twice."""
        return _rotated(x, self.weight, *flat(rotary), self.eps)


def flat(rotary: Tables) -> Tables:
    cosine, sine = (table.flatten(0, 2) for table in rotary)
    return cosine, sine


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    norms: tuple[RotaryNorm, RotaryNorm],
    rotary: Tables,
) -> torch.Tensor:
    """`fp8_attention.attend` of query and key as these norms give them, and of the value.

    q, k, v: (batch, tokens, channels), BF16 or FP16. Gives (batch, tokens, heads, of a head). The
    query's codes are the same to the bit; sums of keys, which centre them, are added up in another
    order.
    """
    (of_q, of_k), tables = norms, flat(rotary)
    return _attended(q, k, v, of_q.weight, of_k.weight, *tables, of_q.eps, of_k.eps)


def takes(q: torch.Tensor, norms: tuple[RotaryNorm, RotaryNorm], rotary: Tables) -> bool:
    """Whether `attend` has a kernel for rows of this width and heads of this many channels.

    And whether the norms' weights are where the query is: offload brings them as a norm is called.
    """
    columns, dim = q.shape[-1], rotary[0].shape[-1]
    fits = row_kernels.takes(columns) and dim in fp8_attention.SHAPES and not columns % dim
    return fits and all(norm.weight.device == q.device for norm in norms)


def _tables(*tables: torch.Tensor) -> list[torch.Tensor]:
    return [table.float().contiguous() for table in tables]


@custom_op("qbench::rotary_norm", mutates_args=())
def _rotated(
    x: torch.Tensor, weight: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, eps: float
) -> torch.Tensor:
    batch, tokens, columns = x.shape
    dim = cosine.shape[1]
    if not x.is_cuda:
        norm = functional.rms_norm(x.float(), (columns,), eps=eps) * weight.float()
        a, b = norm.view(batch, tokens, -1, dim // 2, 2).unbind(-1)
        c, s = cosine[:, None, 0::2], sine[:, None, 1::2]
        return torch.stack([a * c - b * s, a * s + b * c], -1).view(x.shape).to(x.dtype)
    x, out = x.contiguous(), x.new_empty(x.shape)
    kernel = row_kernels.kernel("fp8_rotary.cu", "rotate", columns, x, {"D": dim})
    kernel.run(
        (kernel.blocks(batch * tokens), 1, 1),
        (kernel.threads, 1, 1),
        [x, weight.to(x.dtype), *_tables(cosine, sine), out, batch * tokens, tokens, eps],
    )
    return out


@_rotated.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, eps: float
) -> torch.Tensor:
    return x.new_empty(x.shape)


@custom_op("qbench::fp8_rotary_attention", mutates_args=())
def _attended(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    q_eps: float,
    k_eps: float,
) -> torch.Tensor:
    dim = cosine.shape[1]
    q, k, v = (fp8_attention.readable(x.unflatten(2, (-1, dim))) for x in (q, k, v))
    if not q.shape == k.shape == v.shape or len({q.dtype, k.dtype, v.dtype}) > 1:
        raise ValueError(f"three inputs alike, not {tuple(q.shape)}, {tuple(k.shape)}, {v.shape}")
    batch, tokens, heads, _ = q.shape
    work = fp8_attention.Work(q, tokens, CHUNK)
    rotated = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    sources = ("fp8_attention_layout.cu", "fp8_rotary.cu")
    kernel = row_kernels.kernel(
        "fp8_attention_inputs.cu", "attention_inputs", heads * dim, q, {"D": dim}, sources
    )
    kernel.run(
        (3 * work.chunks, batch, 1),
        (kernel.threads, 1, 1),
        [
            *(q, k, v, q_weight.to(q.dtype), k_weight.to(q.dtype), *_tables(cosine, sine)),
            *(rotated, work.q8, work.q_scale, work.partial, work.k_norm),
            *(tokens, work.padded, work.chunks),
            *(x.stride(i) for x in (q, k, v) for i in range(2)),
            *(q_eps, k_eps, 1 / math.sqrt(dim)),
        ],
    )
    return fp8_attention.pack_and_attend(work, None, rotated, v, out=rotated)


@_attended.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    q_eps: float,
    k_eps: float,
) -> torch.Tensor:
    return q.new_empty(*q.shape[:2], q.shape[2] // cosine.shape[1], cosine.shape[1])
