"""Attention over a few tokens with a few channels a head, for training the UNet.

A UNet over 17 frames of 8x8 attends over 17, 24 or 64 tokens, with 8 channels a head, some hundred
thousand times a layer. FlashAttention gives each of these a tile of 128 rows, and its backward pass
a buffer of FP32 for all of them; here one warp or two hold a whole sequence, forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

try:
    import triton
    import triton.language as tl
except ImportError:  # on a CPU torch's own serves
    triton = None

if triton:

    @triton.jit
    def _rows(at, rows, stride, count, D: tl.constexpr, BD: tl.constexpr):  # type: ignore[no-untyped-def]
        """Pointers to (rows, channels) of one head, and where there is something to read."""
        d = tl.arange(0, BD)
        return at + rows[:, None] * stride + d[None, :], (rows[:, None] < count) & (d[None, :] < D)

    @triton.jit
    def _probabilities(q, k, scale, columns, N):  # type: ignore[no-untyped-def]
        s = tl.dot(q, tl.trans(k)) * scale
        s = tl.where(columns[None, :] < N, s, float("-inf"))
        p = tl.exp(s - tl.max(s, 1)[:, None])
        return p / tl.sum(p, 1)[:, None]

    @triton.jit
    def _forward(  # type: ignore[no-untyped-def]
        Q, K, V, O, scale, M, N, H,  # noqa: E741
        D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    ):  # fmt: skip
        b, h = tl.program_id(0) // H, tl.program_id(0) % H
        width = H * D
        m, n = tl.arange(0, BM), tl.arange(0, BN)
        at_q, there_q = _rows(b * M * width + h * D, m, width, M, D, BD)
        at_k, there_k = _rows(b * N * width + h * D, n, width, N, D, BD)
        q = tl.load(Q + at_q, mask=there_q, other=0.0)
        k = tl.load(K + at_k, mask=there_k, other=0.0)
        v = tl.load(V + at_k, mask=there_k, other=0.0)
        p = _probabilities(q, k, scale, n, N)
        o = tl.dot(p.to(v.dtype), v)
        tl.store(O + at_q, o.to(v.dtype), mask=there_q)

    @triton.jit
    def _backward(  # type: ignore[no-untyped-def]
        Q, K, V, G, DQ, DK, DV, scale, M, N, H,
        D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    ):  # fmt: skip
        b, h = tl.program_id(0) // H, tl.program_id(0) % H
        width = H * D
        m, n = tl.arange(0, BM), tl.arange(0, BN)
        at_q, there_q = _rows(b * M * width + h * D, m, width, M, D, BD)
        at_k, there_k = _rows(b * N * width + h * D, n, width, N, D, BD)
        q = tl.load(Q + at_q, mask=there_q, other=0.0)
        g = tl.load(G + at_q, mask=there_q, other=0.0)
        k = tl.load(K + at_k, mask=there_k, other=0.0)
        v = tl.load(V + at_k, mask=there_k, other=0.0)
        p = _probabilities(q, k, scale, n, N)
        dv = tl.dot(tl.trans(p.to(g.dtype)), g)
        dp = tl.dot(g, tl.trans(v))
        ds = p * (dp - tl.sum(p * dp, 1)[:, None]) * scale
        ds = ds.to(q.dtype)
        dq = tl.dot(ds, k)
        dk = tl.dot(tl.trans(ds), q)
        tl.store(DQ + at_q, dq.to(q.dtype), mask=there_q)
        tl.store(DK + at_k, dk.to(q.dtype), mask=there_k)
        tl.store(DV + at_k, dv.to(q.dtype), mask=there_k)


def _launch(kernel: Any, tensors: tuple[Tensor, ...], heads: int) -> None:
    """tensors: queries, keys, values, then what else the kernel reads and writes."""
    q, k = tensors[0], tensors[1]
    batch, queries, width = q.shape
    channels = width // heads
    blocks = [max(16, triton.next_power_of_2(n)) for n in (queries, k.shape[1], channels)]
    kernel[(batch * heads,)](
        *tensors, channels**-0.5, queries, k.shape[1], heads, channels, *blocks,
        num_warps=1 if max(blocks) <= 32 else 2,
    )  # fmt: skip


def _torchs(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2).contiguous()


@torch.library.custom_op("qbench_training::short_attention", mutates_args=())
def short_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of (batch, tokens, heads * channels), at most 64 tokens on a GPU."""
    if not q.is_cuda:
        return _torchs(q, k, v, heads)
    q, k, v = (x.contiguous() for x in (q, k, v))
    out = torch.empty_like(q)
    _launch(_forward, (q, k, v, out), heads)
    return out


@torch.library.custom_op("qbench_training::short_attention_backward", mutates_args=())
def short_attention_backward(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, grad = (x.contiguous() for x in (q, k, v, grad))
    if not q.is_cuda:
        scale = (q.shape[2] // heads) ** -0.5
        q, k, v, grad = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v, grad))
        p = (q @ k.transpose(2, 3) * scale).softmax(-1)
        dp = grad @ v.transpose(2, 3)
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
        dq, dk, dv = ds @ k, ds.transpose(2, 3) @ q, p.transpose(2, 3) @ grad
        made = [x.transpose(1, 2).flatten(2).contiguous() for x in (dq, dk, dv)]
        return made[0], made[1], made[2]
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _launch(_backward, (q, k, v, grad, *grads), heads)
    return grads


def _like(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in tensors)


def _keep(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.heads = inputs[3]


def _grads(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *short_attention_backward(*ctx.saved_tensors, grad, ctx.heads), None


short_attention.register_fake(lambda q, k, v, heads: _like(q)[0])
short_attention_backward.register_fake(lambda q, k, v, grad, heads: _like(q, k, v))
short_attention.register_autograd(_grads, setup_context=_keep)


class ShortAttention:
    """diffusers' processor for the blocks of a UNet, which mask nothing and add nothing."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        given = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(given), attn.to_v(given)
        out: Tensor = attn.to_out[0](short_attention(q, k, v, attn.heads))
        return out


def agrees(device: str) -> bool:
    """Whether it computes here what torch does, gradients too; said where it does not."""
    try:
        for queries, keys in ((17, 17), (64, 64), (64, 24)):
            shapes = (64, queries, 64), (64, keys, 64), (64, keys, 64), (64, queries, 64)
            *inputs, grad = (torch.randn(s, device=device, dtype=torch.bfloat16) for s in shapes)
            for x in inputs:
                x.requires_grad_()
            ours = short_attention(*inputs, 8)
            q, k, v = (x.float() for x in inputs)
            theirs = _torchs(q, k, v, 8)
            pairs = [(ours.float(), theirs)]
            pairs += zip(
                torch.autograd.grad(ours, inputs, grad),
                torch.autograd.grad(theirs, inputs, grad.float()),
                strict=True,
            )
            worst = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
            print(f"short attention, {queries} on {keys}: {worst:.1%} off", flush=True)
            if not worst < 0.03:
                return False
    except Exception as error:
        print(f"short attention is not used: {error!r}", flush=True)
        return False
    return True
