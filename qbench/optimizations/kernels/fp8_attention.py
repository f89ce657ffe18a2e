"""FP8 attention for NVIDIA Hopper, heads of 64 or 128 channels: launcher and reference.

`fp8_attention.cu` says how it works. It is compiled by NVRTC at first use (about two seconds), so
neither nvcc nor a build step is needed. `emulated` computes the same numbers with plain tensor
operations on any device: what the kernel is tested against, and how its accuracy can be studied
without a GPU.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch.library import custom_op

from qbench.optimizations.kernels import HOPPER, Kernel, build

CHUNK, CLUSTER = 512, 2  # as in the sources
TOP = 120
K_MAX, V_MAX = 32.0, 448.0
LOUDEST = 56000.0


class Shape(NamedTuple):
    """What the sources fix by the channels of a head."""

    consumers: int  # warpgroups of 64 queries each
    tile: int  # keys
    stages: int  # tiles in flight
    at_once: int  # tiles that their number is a multiple of
    q_max: float  # |q| after scaling: with |k| up to 32 no sum of products passes what FP16 holds


SHAPES = {64: Shape(3, 128, 6, 2, 16.0), 128: Shape(2, 192, 4, 1, 15.0)}


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(channels)) v, BF16 or FP16, with 64 or 128 channels a head.

    q, and the result: (batch, queries, heads, channels). k and v: (batch, keys, heads, channels).
    A query of which some score might pass 4,850 by the norms of q and k (centred) is computed at
    scores scaled down to that. NaN and infinity give NaN. Raises ValueError for other shapes and
    dtypes.
    """
    return _operator(q, k, v)


@custom_op("qbench::fp8_attention", mutates_args=())  # one node for torch.compile
def _operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return _launch(q, k, v)


@_operator.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return q.new_empty(q.shape)


def _tile_bytes(dim: int) -> int:
    return SHAPES[dim].tile * (dim + dim + 8) + 128


@functools.cache
def _kernels(_: int, dim: int) -> tuple[Kernel, Kernel, Kernel]:
    """The three kernels for heads of `dim` channels, compiled for the current device."""

    def made(file: str, *names: str) -> list[Kernel]:
        layout = ("fp8_attention_layout.cu",)
        return build(file, *names, capability=HOPPER, defines={"D": dim}, after=layout)

    stats, pack = made("fp8_pack.cu", "stats", "pack")
    (attention,) = made("fp8_attention.cu", "attend")
    attention.set_shared_memory_config(SHAPES[dim].stages * _tile_bytes(dim))
    return stats, pack, attention


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    shapes = f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
    if q.ndim != 4 or q.shape[-1] not in SHAPES:
        raise ValueError(f"(batch, tokens, heads, 64 or 128), not {shapes}")
    if (
        k.shape != v.shape
        or k.ndim != 4
        or q.shape[::2] + q.shape[3:] != k.shape[::2] + k.shape[3:]
    ):
        raise ValueError(f"keys and values of one shape, with the queries' heads, not {shapes}")
    if not (k.shape[1] and q.numel()):
        raise ValueError(f"at least one query and one key, not {shapes}")
    if q.dtype not in (torch.bfloat16, torch.float16) or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"BF16 or FP16, the same for all three, not {q.dtype}")


def _readable(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy where its channels are not read as they lie, sixteen bytes at once."""
    fits = x.stride(3) == 1 and x.data_ptr() % 16 == 0
    if fits and not any(x.stride(i) % 8 for i in range(3)):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _launch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    _check(q, k, v)
    q, k, v = (_readable(x) for x in (q, k, v))
    batch, queries, heads, dim = q.shape
    tokens = k.shape[1]
    stats, pack, attention = _kernels(q.device.index or 0, dim)
    shape, rows = SHAPES[dim], batch * heads
    chunks = -(-tokens // CHUNK)
    tiles = -(-tokens // (shape.at_once * shape.tile)) * shape.at_once
    q_tiles = -(-queries // shape.tile)
    queries_each = 64 * shape.consumers  # a block's
    blocks = -(-queries // (queries_each * CLUSTER)) * CLUSTER
    padded = max(blocks * queries_each, q_tiles * shape.tile)
    shared_bytes = shape.stages * _tile_bytes(dim)
    is_bf16 = int(q.dtype == torch.bfloat16)

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=q.device)

    partial = empty(rows, chunks, 2 * dim, dtype=torch.float32)
    q8 = empty(rows, padded, dim, dtype=torch.uint8)
    q_scale = empty(rows, padded, 2, dtype=torch.float32)
    packed = empty(rows, tiles, _tile_bytes(dim), dtype=torch.uint8)
    v_scale = empty(rows, dim, dtype=torch.float32)
    k_norm = empty(rows, dtype=torch.float32)
    out = empty(batch, queries, heads, dim, dtype=q.dtype)
    strides = [x.stride(i) for x in (q, k, v) for i in range(3)]
    stats(
        (chunks, rows, 1),
        (256, 1, 1),
        [k, v, partial, k_norm, tokens, heads, chunks, *strides[3:], is_bf16],
    )
    pack(
        (max(tiles, q_tiles), rows, 1),
        (256, 1, 1),
        [
            *(q, k, v, partial, q8, q_scale, packed, v_scale, k_norm),
            *(queries, tokens, heads, chunks, padded, *strides, is_bf16, 1 / math.sqrt(dim)),
        ],
    )
    attention(
        (blocks, rows, 1),
        (128 * (shape.consumers + 1), 1, 1),
        [q8, q_scale, packed, v_scale, k_norm, out, queries, tokens, heads, padded, is_bf16],
        shared_mem=shared_bytes,
    )
    return out


def emulated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What `attend` computes, in plain operations, for shapes whose scores fit in memory.

    FP16 accumulation inside the first GEMM is the one thing that is not reproduced bit by bit.
    """
    dim, tokens = q.shape[-1], k.shape[1]
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    codes = 8 / math.sqrt(dim) * math.log2(math.e)  # one unit of q.k in e4m3 codes
    shape = SHAPES[dim]
    unit = q.abs().amax(-1, keepdim=True).clamp_min(1e-20) / shape.q_max * codes
    unit = _eleven_bits(unit, up=True).clamp_min(6e-5 / 256)
    q8 = _e4m3(q * (codes / unit))
    k = k - k.mean(2, keepdim=True)
    bound = q.norm(dim=-1, keepdim=True) * codes * k.norm(dim=-1).amax(-1)[..., None, None]
    loud = _eleven_bits(unit * (LOUDEST / bound), up=False)
    unit = torch.where(bound <= LOUDEST, unit, torch.where(bound < torch.inf, loud, torch.nan))
    tiles = -(-tokens // shape.tile)
    top = torch.stack([part.abs().amax((2, 3)) for part in k.split(shape.tile, 2)], -1).clamp_min(
        1e-20
    )
    scale = torch.exp2(torch.ceil(torch.log2(top / K_MAX)))  # (batch, heads, tiles)
    scale = scale.repeat_interleave(shape.tile, -1)[..., None, :tokens]
    k8 = _e4m3(k / scale.transpose(-1, -2))
    v_scale = v.abs().amax(2, keepdim=True).clamp_min(1e-20) / V_MAX
    v8 = _e4m3(v / v_scale)
    scores = (q8 @ k8.transpose(-1, -2)).half().float() * (unit * scale)
    weights = torch.zeros_like(scores)
    running = torch.full_like(scores[..., :1], -60000.0)
    for i in range(tiles):
        part = slice(i * shape.tile, (i + 1) * shape.tile)
        highest = torch.maximum(running, scores[..., part].amax(-1, keepdim=True))
        now = 1024 + TOP - _half_down(1024 + TOP - highest)
        weights[..., : i * shape.tile] *= torch.exp2((running - now) / 8)
        code = torch.round(scores[..., part] - now + TOP).clamp_min(0)
        weights[..., part] = code.to(torch.uint8).view(torch.float8_e4m3fn).float()
        running = now
    out = (weights @ v8) / weights.sum(-1, keepdim=True) * v_scale
    return out.transpose(1, 2)


def _e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def _eleven_bits(x: torch.Tensor, up: bool) -> torch.Tensor:
    """Positive values rounded to as many bits of mantissa as FP16 has."""
    bits = x.contiguous().view(torch.int32) + (0x1FFF if up else 0)
    return (bits & ~0x1FFF).view(torch.float32)


def _half_down(x: torch.Tensor) -> torch.Tensor:
    half = x.half()
    below = torch.nextafter(half, torch.full_like(half, -torch.inf))
    return torch.where(half.float() > x, below, half).float()
