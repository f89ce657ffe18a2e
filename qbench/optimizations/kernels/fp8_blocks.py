"""Whole transformer blocks between whose FP8 linears nothing is written that is only read again.

A block of Wan 2.1 norms, modulates and quantizes before each GEMM, and adds a gated residual behind
it: one pass of `fp8_norms` in place of three.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from qbench.optimizations.kernels import fp8_attention, fp8_rotary, rows
from qbench.optimizations.kernels.fp8_linear import Fp8FeedForward, Fp8Linear
from qbench.optimizations.kernels.fp8_norms import Fp8LayerNorm
from qbench.optimizations.kernels.fp8_rotary import RotaryNorm
from qbench.pipelines.attention import kernel_of

Block = Any  # diffusers' WanTransformerBlock, after `fp8_linear.replace`, or a part of one


def fuse(module: nn.Module) -> int:
    """Have every block of a known kind that is in FP8 throughout run fused; how many there are."""
    fused = 0
    for block in list(module.modules()):
        if type(block).__name__ == "WanTransformerBlock" and _is_fp8(block):
            for name in ("norm1", "norm2", "norm3"):
                setattr(block, name, Fp8LayerNorm(getattr(block, name)))
            for name in ("norm_q", "norm_k"):
                setattr(block.attn1, name, RotaryNorm(getattr(block.attn1, name)))
            block.forward = functools.partial(_wan, block)
            fused += 1
    return fused


def _is_fp8(block: Block) -> bool:
    """Whether each linear of a Wan block is in FP8 and each norm what the kernels compute."""
    attn1, attn2 = block.attn1, block.attn2
    linears = (
        *(getattr(attn1, "to_qkv", None), attn1.to_out[0]),
        *(attn2.to_q, getattr(attn2, "to_kv", None), attn2.to_out[0]),
    )
    norms = (block.norm1, block.norm2, block.norm3)
    return (
        all(isinstance(linear, Fp8Linear) for linear in linears)
        and isinstance(block.ffn, Fp8FeedForward)
        and all(isinstance(norm, nn.LayerNorm) for norm in norms)
        and block.norm2.weight is not None
        and attn2.add_k_proj is None
        and rows.takes(attn1.to_out[0].in_features)
    )


def _wan(
    block: Block,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    temb: torch.Tensor,
    rotary_emb: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """diffusers' WanTransformerBlock.forward for time embeddings (batch, 6, channels)."""
    if temb.ndim != 3:
        raise ValueError(f"one time step a video, (batch, 6, channels), not {tuple(temb.shape)}")
    modulation = (block.scale_shift_table.float() + temb.float()).chunk(6, dim=1)
    shift, scale, gate, last_shift, last_scale, last_gate = modulation
    attn1, attn2 = block.attn1, block.attn2

    x, quantized = block.norm1(hidden_states, scale, shift)
    q, k, v = attn1.to_qkv(quantized, pieces=3)
    out = _rotary_attended(attn1, q, k, v, rotary_emb)
    x, quantized = block.norm2(x, more=out, gate=gate)
    q = attn2.norm_q(attn2.to_q(quantized))
    k, v = attn2.to_kv(encoder_hidden_states, pieces=2)
    out = _attended(attn2, q, attn2.norm_k(k), v)
    x, quantized = block.norm3(x, last_scale, last_shift, more=out)
    out = block.ffn(quantized)
    return (x.float() + out.float() * last_gate).type_as(x)


def _rotary_attended(
    attn: Block, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: fp8_rotary.Tables
) -> torch.Tensor:
    norms = attn.norm_q, attn.norm_k
    if kernel_of(attn) is fp8_attention.attend and fp8_rotary.takes(q, norms, rotary):
        out: torch.Tensor = attn.to_out[0](fp8_rotary.attend(q, k, v, norms, rotary).flatten(2, 3))
        return out
    return _attended(attn, attn.norm_q(q, rotary), attn.norm_k(k, rotary), v)


def _attended(attn: Block, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    heads = [x.unflatten(2, (attn.heads, -1)) for x in (q, k, v)]
    backend = attn.processor._attention_backend
    out: torch.Tensor = dispatch_attention_fn(*heads, backend=backend)
    out = attn.to_out[0](out.flatten(2, 3).type_as(q))
    return out
