"""torch's kernels for attention: over all keys, and over a part of them with the log-sum-exp.

All tensors are (batch, tokens, heads, channels).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# q, k, v -> result in their shape, and the logarithm of each query's sum of exponentials,
# (batch, heads, tokens), FP32.
Partial = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's attention, of (batch, tokens, heads, channels)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def with_lse(kernel: str) -> Partial:
    """The kernel of this name as ring needs it. Raises KeyError for one that tells no more."""
    return {
        "auto": _auto, "math": _math, "flash": _flash, "efficient": _efficient, "cudnn": _cudnn,
    }[kernel]  # fmt: skip


def _auto(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if not q.is_cuda:
        return _flash(q, k, v)
    half = q.dtype in (torch.float16, torch.bfloat16)
    if not half:
        return _efficient(q, k, v)
    return (_cudnn if torch.cuda.get_device_capability() >= (9, 0) else _flash)(q, k, v)


def _math(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    lse = scores.logsumexp(-1)
    return ((scores - lse[..., None]).exp().to(v.dtype) @ v).transpose(1, 2), lse


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    ops = torch.ops.aten
    if q.is_cuda:
        out, lse = ops._scaled_dot_product_flash_attention(q, k, v)[:2]
    else:
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out.transpose(1, 2), lse


def _efficient(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    found = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    return found[0].transpose(1, 2), found[1][..., : q.shape[2]]  # padded to blocks


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return found[0].transpose(1, 2), found[1].reshape(q.shape[:3])
