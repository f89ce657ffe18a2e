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

CHUNK, CLUSTER, QUERIES = 512, 2, 64  # as in the sources; QUERIES are a warpgroup's
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


class Skip(NamedTuple):
    """Which tiles the skipping kernel leaves out, and where it counts those that it computes.

    A block is 64 queries and a tile of keys. It is left out where each of its weights is below
    `threshold` times the largest of its row so far, in [0, 1); none is below 0. As a row's largest
    weight is kept, n keys left out held less than n * threshold of what the others hold together.
    Below 2**-15 a weight's code is zero anyway, and leaving the block out changes nothing.

    computed: int64, one number, on the inputs' device, to which blocks computed are added.
    """

    threshold: float
    computed: torch.Tensor

    @property
    def depth(self) -> float:
        """The threshold in codes below a row's largest score."""
        return -8 * math.log2(self.threshold) if self.threshold else math.inf


def attend_skipping(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, skip: Skip) -> torch.Tensor:
    """`attend` without the blocks that `skip` says. At a threshold of 0 it is `attend` itself.

    A block with a value that is NaN or infinite is always computed, and so is all of a head whose
    keys, and all of a row whose query, has one.
    """
    if skip.threshold:
        return _launch(q, k, v, skip)
    skip.computed.add_(blocks(q, k))
    return _launch(q, k, v)


def blocks(q: torch.Tensor, k: torch.Tensor) -> int:
    """How many blocks of 64 queries and a tile of keys there are, over all heads and videos."""
    tile = SHAPES[q.shape[3]].tile
    return q.shape[0] * q.shape[2] * -(-q.shape[1] // QUERIES) * -(-k.shape[1] // tile)


@custom_op("qbench::fp8_attention", mutates_args=())  # one node for torch.compile
def _operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return _launch(q, k, v)


@_operator.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return q.new_empty(q.shape)


def _tile_bytes(dim: int) -> int:
    return SHAPES[dim].tile * (dim + dim + 8) + 128


class Kernels(NamedTuple):
    """The kernels of one head dimension, compiled for the current device."""

    stats: Kernel
    totals: Kernel
    pack: Kernel
    attend: Kernel


@functools.cache
def _kernels(_: int, dim: int, is_bf16: int, skips: bool) -> Kernels:
    defines = {"D": dim, "SKIP": 1} if skips else {"D": dim}

    def made(file: str, *names: str, **known: int) -> list[Kernel]:
        layout = ("fp8_attention_layout.cu",)
        known = {**defines, **known}
        return build(file, *names, capability=HOPPER, defines=known, after=layout)

    names = ("stats", "attention_totals", "pack")
    stats, totals, pack = made("fp8_pack.cu", *names, IS_BF16=is_bf16)
    (attention,) = made("fp8_attention.cu", "attend")
    attention.set_shared_memory_config(SHAPES[dim].stages * _tile_bytes(dim))
    return Kernels(stats, totals, pack, attention)


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    _check_shapes(q, k, v)
    if q.dtype not in (torch.bfloat16, torch.float16) or not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"BF16 or FP16, the same for all three, not {q.dtype}")


def _check_shapes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
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


def readable(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy where its channels are not read as they lie, sixteen bytes at once."""
    fits = x.stride(3) == 1 and x.data_ptr() % 16 == 0
    if fits and not any(x.stride(i) % 8 for i in range(3)):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _launch(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, skip: Skip | None = None
) -> torch.Tensor:
    _check(q, k, v)
    q, k, v = (readable(x) for x in (q, k, v))
    batch, tokens, heads, dim = k.shape
    work = Work(q, tokens, CHUNK)
    kernels = _kernels(q.device.index or 0, dim, int(q.dtype == torch.bfloat16), skip is not None)
    kernels.stats(
        (batch * heads, work.chunks, 1),
        (256, 1, 1),
        [k, v, work.partial, work.k_norm, tokens, heads, work.chunks, *strides(k), *strides(v)],
    )
    return pack_and_attend(work, q, k, v, skip)


class Work:
    """What passes between the kernels of one call: see their sources."""

    def __init__(self, q: torch.Tensor, tokens: int, chunk: int) -> None:
        """q: (batch, queries, heads, channels). tokens: keys, whose statistics are by `chunk`s."""
        batch, queries, heads, dim = q.shape
        shape, rows = SHAPES[dim], batch * heads
        self.chunks = -(-tokens // chunk)
        self.tiles = -(-tokens // (shape.at_once * shape.tile)) * shape.at_once
        self.q_tiles = -(-queries // shape.tile)
        queries_each = QUERIES * shape.consumers  # a block's
        self.blocks = -(-queries // (queries_each * CLUSTER)) * CLUSTER
        self.padded = max(self.blocks * queries_each, self.q_tiles * shape.tile)

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=q.device)

        self.partial = empty(rows, self.chunks, 2, dim)
        self.totals = empty(rows, 2, dim)
        self.q8 = empty(rows, self.padded, dim, dtype=torch.uint8)
        self.q_scale = empty(rows, self.padded, 2)
        self.packed = empty(rows, self.tiles, _tile_bytes(dim), dtype=torch.uint8)
        self.v_scale = empty(rows, dim)
        self.k_norm = empty(rows)
        self.shape = q.shape


def pack_and_attend(
    work: Work,
    q: torch.Tensor | None,
    k: torch.Tensor,
    v: torch.Tensor,
    skip: Skip | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of inputs whose statistics are in `work`, and of queries in it if there is no `q`.

    q, k, v: as `readable` gives them. out: what to write to, which may be `k` itself.
    """
    batch, queries, heads, dim = work.shape
    tokens, rows, is_bf16 = k.shape[1], batch * heads, int(k.dtype == torch.bfloat16)
    kernels = _kernels(k.device.index or 0, dim, is_bf16, skip is not None)
    kernels.totals(
        (rows, 1, 1),
        (2 * dim, 1, 1),
        [work.partial, work.totals, work.v_scale, tokens, work.chunks],
    )
    nothing = torch.empty(0, device=k.device)  # a null pointer
    kernels.pack(
        (rows, work.tiles if q is None else max(work.tiles, work.q_tiles), 1),
        (256, 1, 1),
        [
            *(nothing if q is None else q, k, v, work.totals, work.q8, work.q_scale, work.packed),
            *(work.k_norm, queries, tokens, heads, work.padded),
            *([0, 0, 0] if q is None else strides(q)),
            *(*strides(k), *strides(v), 1 / math.sqrt(dim)),
        ],
    )
    shape = SHAPES[dim]
    out = torch.empty(work.shape, dtype=k.dtype, device=k.device) if out is None else out
    kernels.attend(
        (work.blocks, rows, 1),
        (128 * (shape.consumers + 1), 1, 1),
        [
            *(work.q8, work.q_scale, work.packed, work.v_scale, work.k_norm, out),
            *(queries, tokens, heads, work.padded, is_bf16),
            *((float(skip.depth), skip.computed) if skip else ()),
        ],
        shared_mem=shape.stages * _tile_bytes(dim),
    )
    return out


def strides(x: torch.Tensor) -> list[int]:
    """Of batch, tokens and heads."""
    return [x.stride(i) for i in range(3)]


def emulated(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, skip: Skip | None = None
) -> torch.Tensor:
    """What `attend` or `attend_skipping` computes, in plain operations, on any device; float32.

    FP16 accumulation inside the first GEMM is the one thing that is not reproduced bit by bit.
    In FP64 where FP32 would depend on how a library adds or vectorises. Every block is computed,
    and those that are skipped are left out: skipping saves no time here.
    """
    dim, tokens = q.shape[-1], k.shape[1]
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    codes = 8 / math.sqrt(dim) * math.log2(math.e)  # one unit of q.k in e4m3 codes
    shape = SHAPES[dim]
    unit = q.abs().amax(-1, keepdim=True).clamp_min(1e-20) / shape.q_max * codes
    unit = _eleven_bits(unit, up=True).clamp_min(6e-5 / 256)
    q8 = _e4m3(q * (codes / unit)).double()
    k = k - k.mean(2, keepdim=True)
    bound = q.norm(dim=-1, keepdim=True) * codes * k.norm(dim=-1).amax(-1)[..., None, None]
    loud = _eleven_bits(unit * (LOUDEST / bound), up=False)
    unit = torch.where(bound <= LOUDEST, unit, torch.where(bound < torch.inf, loud, torch.nan))
    v_scale = v.abs().amax(2, keepdim=True).clamp_min(1e-20) / V_MAX
    v8 = _e4m3(v / v_scale).double()
    running = torch.full_like(q[..., :1], -60000.0)
    out, total = torch.zeros_like(q), torch.zeros_like(q[..., :1])
    for begin in range(0, tokens, shape.tile):
        part = slice(begin, begin + shape.tile)
        top = k[:, :, part].abs().amax((2, 3), keepdim=True).clamp_min(1e-20)
        scale = torch.exp2(torch.ceil(torch.log2(top / K_MAX)))
        k8 = _e4m3(k[:, :, part] / scale)
        scores = (q8 @ k8.transpose(-1, -2).double()).half().float() * (unit * scale)
        here = scores.amax(-1, keepdim=True)
        highest = torch.maximum(running, here)
        now = 1024 + TOP - _half_down(1024 + TOP - highest)
        code = torch.round(scores - now + TOP).clamp_min(0)
        weights = code.to(torch.uint8).view(torch.float8_e4m3fn).float()
        if skip:
            matters = ~(here < running - skip.depth)  # so a NaN does
            forced = ~v[:, :, part].isfinite().all(3).all(2)
            kept = _any_of_64(matters) | forced[..., None, None]
            skip.computed.add_(kept[:, :, ::QUERIES].sum())
            now, weights = torch.where(kept, now, running), weights * kept
        shrink = torch.exp2((running - now).double() / 8).float()
        out = out * shrink + (weights.double() @ v8[:, :, part]).float()
        total = total * shrink + weights.sum(-1, keepdim=True)
        running = now
    return (out / total * v_scale).transpose(1, 2)


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, skip: Skip | None = None
) -> torch.Tensor:
    """`emulated`, checked and in the inputs' dtype, which may be FP32 too."""
    _check_shapes(q, k, v)
    return emulated(q, k, v, skip).to(q.dtype)


def _any_of_64(x: torch.Tensor) -> torch.Tensor:
    """For each query whether it is so for any of its 64; (batch, heads, queries, 1) in and out."""
    queries = x.shape[2]
    padded = torch.nn.functional.pad(x, (0, 0, 0, -queries % QUERIES))
    any_of = padded.unflatten(2, (-1, QUERIES)).any(3, keepdim=True)
    return any_of.expand(-1, -1, -1, QUERIES, -1).flatten(2, 3)[:, :, :queries]


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
