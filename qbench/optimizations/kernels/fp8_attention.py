"""FP8 attention for NVIDIA Hopper at head dimension 64: launcher and reference implementation.

`fp8_attention.cu` says how it works. It is compiled by NVRTC at first use (about two seconds), so
neither nvcc nor a build step is needed. `emulated` computes the same numbers with plain tensor
operations on any device: what the kernel is tested against, and how its accuracy can be studied
without a GPU.
"""

from __future__ import annotations

import functools
import math

import torch
from torch.library import custom_op

from qbench.optimizations.kernels import HOPPER, Kernel, build

HEAD_DIM = 64
TILE, CHUNK = 128, 512  # as in the source
CONSUMERS, CLUSTER, STAGES = 3, 2, 6
ROWS = 72
TILE_BYTES = TILE * HEAD_DIM + TILE * ROWS + 128
TOP = 120
Q_MAX, K_MAX, V_MAX = 16.0, 32.0, 448.0


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(64)) v of (batch, tokens, heads, 64) tensors in BF16 or FP16.

    Raises ValueError for other shapes and dtypes. Scores past 5,000 in magnitude are not supported.
    """
    return _operator(q, k, v)


@custom_op("qbench::fp8_attention", mutates_args=())  # one node for torch.compile
def _operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return _launch(q, k, v)


@_operator.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return q.new_empty(q.shape)


@functools.cache
def _kernels(_: int) -> tuple[Kernel, Kernel, Kernel]:
    """The three kernels of the source, compiled for the current device."""
    stats, pack, attention = build("fp8_attention.cu", "stats", "pack", "attend", capability=HOPPER)
    attention.set_shared_memory_config(STAGES * TILE_BYTES)
    return stats, pack, attention


def _launch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    batch, tokens, heads, dim = q.shape
    if dim != HEAD_DIM or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(f"three tensors of one shape (batch, tokens, heads, 64), not {q.shape}")
    if q.dtype not in (torch.bfloat16, torch.float16) or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"BF16 or FP16, the same for all three, not {q.dtype}")
    q, k, v = (x if x.stride()[2:] == (dim, 1) else x.contiguous() for x in (q, k, v))
    stats, pack, attention = _kernels(q.device.index or 0)
    rows = batch * heads
    chunks = -(-tokens // CHUNK)
    tiles = -(-tokens // (2 * TILE)) * 2
    blocks = -(-tokens // (64 * CONSUMERS * CLUSTER)) * CLUSTER
    padded = max(blocks * 64 * CONSUMERS, tiles * TILE)
    is_bf16 = int(q.dtype == torch.bfloat16)

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    partial = empty(rows, chunks, 2 * dim, dtype=torch.float32)
    q8 = empty(rows, padded, dim, dtype=torch.uint8)
    q_scale = empty(rows, padded, dtype=torch.float32)
    packed = empty(rows, tiles, TILE_BYTES, dtype=torch.uint8)
    v_scale = empty(rows, dim, dtype=torch.float32)
    out = torch.empty((batch, tokens, heads, dim), dtype=q.dtype, device=q.device)
    strides = [x.stride(i) for x in (q, k, v) for i in (0, 1)]
    stats(
        (chunks, rows, 1),
        (256, 1, 1),
        [k, v, partial, tokens, heads, chunks, *strides[2:], is_bf16],
    )
    pack(
        (tiles, rows, 1),
        (256, 1, 1),
        [
            *(q, k, v, partial, q8, q_scale, packed, v_scale),
            *(tokens, heads, chunks, padded, *strides, is_bf16, 1 / math.sqrt(dim)),
        ],
    )
    attention(
        (blocks, rows, 1),
        (128 * (CONSUMERS + 1), 1, 1),
        [q8, q_scale, packed, v_scale, out, tokens, heads, padded, is_bf16],
        shared_mem=STAGES * TILE_BYTES,
    )
    return out


def emulated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What `attend` computes, in plain operations, for shapes whose scores fit in memory.

    FP16 accumulation inside the first GEMM is the one thing that is not reproduced bit by bit.
    """
    dim, tokens = q.shape[-1], q.shape[1]
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    codes = 8 / math.sqrt(dim) * math.log2(math.e)  # one unit of q.k in e4m3 codes
    unit = q.abs().amax(-1, keepdim=True).clamp_min(1e-20) / Q_MAX * codes
    unit = _half_up(unit * 256).clamp_min(6e-5) / 256
    q8 = _e4m3(q * (codes / unit))
    k = k - k.mean(2, keepdim=True)
    tiles = -(-tokens // TILE)
    top = torch.stack([part.abs().amax((2, 3)) for part in k.split(TILE, 2)], -1).clamp_min(1e-20)
    scale = torch.exp2(torch.ceil(torch.log2(top / K_MAX)))  # (batch, heads, tiles)
    scale = scale.repeat_interleave(TILE, -1)[..., None, :tokens]
    k8 = _e4m3(k / scale.transpose(-1, -2))
    v_scale = v.abs().amax(2, keepdim=True).clamp_min(1e-20) / V_MAX
    v8 = _e4m3(v / v_scale)
    scores = (q8 @ k8.transpose(-1, -2)).half().float() * (unit * scale)
    weights = torch.zeros_like(scores)
    running = torch.full_like(scores[..., :1], -60000.0)
    for i in range(tiles):
        part = slice(i * TILE, (i + 1) * TILE)
        highest = torch.maximum(running, scores[..., part].amax(-1, keepdim=True))
        now = 1024 + TOP - _half_down(1024 + TOP - highest)
        weights[..., : i * TILE] *= torch.exp2((running - now) / 8)
        code = torch.round(scores[..., part] - now + TOP).clamp_min(0)
        weights[..., part] = code.to(torch.uint8).view(torch.float8_e4m3fn).float()
        running = now
    out = (weights @ v8) / weights.sum(-1, keepdim=True) * v_scale
    return out.transpose(1, 2)


def _e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def _half_up(x: torch.Tensor) -> torch.Tensor:
    half = x.half()
    above = torch.nextafter(half, torch.full_like(half, torch.inf))
    return torch.where(half.float() < x, above, half).float()


def _half_down(x: torch.Tensor) -> torch.Tensor:
    return -_half_up(-x)
