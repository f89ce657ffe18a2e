"""Launchers of the VAE's kernels, and their reference implementations.

Activations are blocked by eight channels (a block is called a plane here); `vae_conv.cu` says why.
On a CPU the same numbers are computed with plain tensor operations, which is what the kernels are
tested against. Meta tensors are only allocated, to count memory.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from qbench.optimizations.kernels import HOPPER, Kernel, build
from qbench.optimizations.vae import causal
from qbench.optimizations.vae import group_norm as group_norm_of

if TYPE_CHECKING:
    from torch.nn.modules.conv import _ConvNd

    from qbench.optimizations.parallel.rows import Rows as Whole

EACH = 8  # channels a plane
CHUNK = 64  # input channels of one GEMM, as in the source
TILE = 16
TILES, STAGES = 2, 6  # of the input and of weights in flight
CHANNELS = 1024  # of an output
PART = 4096  # pixels, at least, whose moments a block takes
PARTS = 128


def to_planes(x: torch.Tensor) -> torch.Tensor:
    """(batch, channels, frames, height, width) as (batch, planes, frames, height, width, 8)."""
    short = -x.shape[1] % EACH
    if short:
        x = functional.pad(x, (0, 0, 0, 0, 0, 0, 0, short))
    return x.unflatten(1, (-1, EACH)).permute(0, 1, 3, 4, 5, 2).contiguous()


def from_planes(x: torch.Tensor, channels: int) -> torch.Tensor:
    """The way back."""
    return x.permute(0, 1, 5, 2, 3, 4).flatten(1, 2)[:, :channels]


# How three taps on an upsampled input add up to two on the input, for even and odd outputs.
FOLDED = [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]


class Weights:
    """How a convolution's weights lie in memory, and what it needs to know of them besides.

    `grow` is 2 for a 3 x 3 convolution after 2x nearest-neighbour upsampling. `border` rows above
    and below come with every input, and no output is made for them.
    """

    def __init__(self, conv: _ConvNd, grow: int = 1, border: int = 0) -> None:
        weight = conv.weight
        self.outputs, self.inputs = weight.shape[:2]
        self.grow = grow
        self.border = border
        self.taps = 2 if grow == 2 else weight.shape[-1]
        self.taps_t = weight.shape[2] if weight.dim() == 5 else 1
        self.wide = EACH if self.outputs <= EACH else 128  # output channels a block makes
        self.planes = -(-self.outputs // EACH)
        self.chunks = -(-self.inputs // CHUNK)

    def packed(self, weight: torch.Tensor) -> torch.Tensor:
        """(out, in, [frames,] rows, columns) as the kernel reads them, tile by tile.

        A tile is what one tap makes of 64 input channels, in core matrices of eight output and
        eight input channels.
        """
        kinds, of_n = self.grow**2, -(-self.outputs // self.wide)
        each = weight.reshape(1, self.outputs, self.inputs, self.taps_t, -1)
        if self.grow == 2:
            fold = torch.tensor(FOLDED, dtype=torch.float32, device=weight.device)
            folded = torch.einsum("apr,bqc,oirc->aboipq", fold, fold, weight.float())
            each = folded.to(weight.dtype).reshape(kinds, self.outputs, self.inputs, 1, -1)
        padded = weight.new_zeros(
            kinds, of_n * self.wide, self.chunks * CHUNK, self.taps_t, self.taps**2
        )
        padded[:, : self.outputs, : self.inputs] = each
        cut = padded.flatten(0, 1).unflatten(1, (-1, CHUNK // 8, 8))
        cut = cut.unflatten(0, (kinds * of_n, -1, 8))
        return cut.permute(6, 3, 7, 0, 4, 1, 2, 5).contiguous()

    def unpacked(self, packed: torch.Tensor) -> torch.Tensor:
        """The way back, (kinds, out, in, frames, rows, columns)."""
        plain = packed.permute(3, 5, 6, 1, 4, 7, 0, 2).flatten(3, 5).flatten(0, 2)
        plain = plain.unflatten(0, (self.grow**2, -1))[:, : self.outputs, : self.inputs]
        return plain.unflatten(4, (self.taps, self.taps))


def convolve(
    x: torch.Tensor,
    weights: Weights,
    packed: torch.Tensor,
    bias: torch.Tensor,
    before: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    copies: int = 1,
) -> torch.Tensor:
    """A convolution of blocked activations, with zeros around each frame, plus `residual`.

    With weights that grow, the input is upsampled 2x by nearest neighbour first.

    Each output frame sees its own and earlier input frames. Ahead of the first come those of
    `before`, or else the first again. Every output frame is given `copies` times, but for the first
    of an odd number. Rows of the weights' border are seen, and nothing is made of them.
    """
    frames = x.shape[2]
    once = int(copies > 1 and frames % 2 == 1)
    out_frames = frames * copies - once * (copies - 1)
    if x.is_cpu:
        return _convolved(x, weights, packed, bias, before, residual, copies, out_frames)
    if weights.outputs > CHANNELS:
        raise ValueError(f"at most {CHANNELS} output channels, not {weights.outputs}")
    batch, width, grow = x.shape[0], x.shape[4], weights.grow
    height = x.shape[3] - 2 * weights.border
    out = x.new_empty(batch, weights.planes, out_frames, grow * height, grow * width, EACH)
    if x.is_meta:
        return out
    tiles = -(-height // TILE) * -(-width // TILE) * -(-weights.outputs // weights.wide)
    kernel, at_once = _convolution(x.device.index or 0, weights.wide, x.dtype)
    side = TILE + weights.taps - 1
    kernel(
        (min(at_once, tiles * grow**2 * frames * batch), 1, 1),
        (384, 1, 1),
        [
            *(_map(x, side), _map(x if before is None else before, side), packed, bias),
            *(out if residual is None else residual, out),
            *(batch, weights.chunks, weights.planes, frames, height, width),
            *(weights.taps_t, weights.taps, grow, copies, once, out_frames),
            *(int(before is not None), int(residual is not None), weights.border),
        ],
        shared_mem=_shared(weights.wide),
    )
    return out


def _convolved(
    x: torch.Tensor,
    weights: Weights,
    packed: torch.Tensor,
    bias: torch.Tensor,
    before: torch.Tensor | None,
    residual: torch.Tensor | None,
    copies: int,
    out_frames: int,
) -> torch.Tensor:
    seen = torch.cat([*causal.earlier(x, weights.taps_t - 1, before), x], dim=2)
    plain = from_planes(seen, weights.inputs)
    made = []
    for number, weight in enumerate(weights.unpacked(packed)):
        around = [weights.taps // 2] * 4
        if weights.grow == 2:
            down, right = divmod(number, 2)
            around = [1 - right, right, 1 - down, down]
        framed = functional.pad(plain, around)
        made.append(functional.conv3d(framed, weight, bias[: weights.outputs]))
    out = made[0]
    if weights.grow == 2:
        rows = [torch.stack(pair, dim=-1).flatten(-2) for pair in (made[:2], made[2:])]
        out = torch.stack(rows, dim=-2).flatten(-3, -2)
    if lent := weights.border * weights.grow:
        out = out[:, :, :, lent:-lent]
    if copies > 1:
        out = out.repeat_interleave(copies, dim=2)[:, :, -out_frames:]
    planes = to_planes(out)
    return planes if residual is None else planes + residual


def group_norm(
    layer: torch.nn.GroupNorm,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    in_place: bool = False,
    whole: Whole | None = None,
) -> torch.Tensor:
    """silu(norm(x) * scale + shift); scale and shift are upsampled by nearest neighbour.

    whole: of a frame of which `x` has only some rows.
    """
    if x.is_cpu:
        made = _normed(layer, x, scale, shift, whole)
        return x.copy_(made) if in_place else made
    out = x if in_place else torch.empty_like(x)
    if x.is_meta:
        return out
    batch, planes, frames, height, width, _ = x.shape
    pixels = frames * height * width
    alike, blocks = (pixels, 1) if whole is None else whole.common(frames * width, height)
    most = max(1, min(PARTS // blocks, alike // PART))
    parts = next(n for n in range(most, 0, -1) if alike % n == 0) * (pixels // alike)
    moments = x.new_empty(batch * planes, parts, 2, EACH, dtype=torch.float32)
    factors = x.new_empty(batch, planes * EACH, 2, dtype=torch.float32)
    part_moments, affine, modulate = _others(x.device.index or 0, x.dtype)
    part_moments((parts, batch * planes, 1), (256, 1, 1), [x, moments, pixels, pixels // parts])
    if whole is not None:
        moments = whole.parts(moments, parts)
    affine(
        (batch * layer.num_groups, 1, 1),
        (32, 1, 1),
        [
            *(moments, layer.weight, layer.bias, factors),
            *(planes * EACH, layer.num_groups, moments.shape[1], layer.eps),
        ],
    )
    modulate(
        (-(-height * width // 256), frames, batch * planes),
        (256, 1, 1),
        [x, out, factors, scale, shift, frames, height, width, *scale.shape[2:5]],
    )
    return out


def _normed(
    layer: torch.nn.GroupNorm,
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    whole: Whole | None,
) -> torch.Tensor:
    plain = from_planes(x, layer.num_channels)
    if whole is not None:
        plain = group_norm_of.normed(layer, plain, *whole.moments(layer, plain))
    else:
        plain = functional.group_norm(plain, layer.num_groups, layer.weight, layer.bias, layer.eps)
    normed = to_planes(plain)
    times, rows, columns = causal.latents_of(x.shape[2:5], scale.shape[2:5])
    scale, shift = (z[:, :, times][:, :, :, rows][:, :, :, :, columns] for z in (scale, shift))
    return functional.silu(normed * scale + shift)


def _defines(wide: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"these kernels are for BF16 and FP16, not {dtype}")
    return {"WIDE": wide, "IS_BF16": int(dtype == torch.bfloat16)}


def compile_all(dtype: torch.dtype) -> None:
    """Compile every kernel of the decode for VAEs of this dtype, ahead of the first video."""
    device = torch.cuda.current_device()
    for wide in (EACH, 128):
        _convolution(device, wide, dtype)
    _others(device, dtype)


@functools.cache
def _convolution(device: int, wide: int, dtype: torch.dtype) -> tuple[Kernel, int]:
    """The kernel, and how many of its blocks run at once."""
    defines = _defines(wide, dtype)
    (kernel,) = build("vae_conv.cu", "convolve", capability=HOPPER, defines=defines)
    kernel.set_shared_memory_config(_shared(wide))
    return kernel, torch.cuda.get_device_properties(device).multi_processor_count


def _shared(wide: int) -> int:
    tile, weights = (TILE + 2) ** 2 * CHUNK, wide * CHUNK
    return 2 * (TILES * tile + STAGES * weights)


@functools.cache
def _others(_: int, dtype: torch.dtype) -> list[Kernel]:
    names = ("part_moments", "affine", "modulate")
    return build("vae_conv.cu", *names, capability=HOPPER, defines=_defines(EACH, dtype))


def _map(x: torch.Tensor, side: int) -> torch.Tensor:
    """Where boxes of `side` x `side` pixels of planes lie, as the copy engine wants to know it."""
    return _map_at(x.data_ptr(), tuple(x.shape), side, x.device.index or 0)


@functools.lru_cache(maxsize=4096)  # torch hands out the same addresses from video to video
def _map_at(address: int, shape: tuple[int, ...], side: int, device: int) -> torch.Tensor:
    batch, planes, frames, height, width, _ = shape
    sizes = (width * EACH, height, frames, planes, batch)
    strides = [2 * width * EACH]
    for size in sizes[1:4]:
        strides.append(strides[-1] * size)
    box = (side * EACH, side, 1, CHUNK // EACH, 1)
    words = torch.empty(128, dtype=torch.uint8, pin_memory=True)
    status = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled(
        ctypes.c_void_p(words.data_ptr()),
        ctypes.c_int(1),  # 16-bit words
        ctypes.c_uint32(5),
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 5)(*sizes),
        (ctypes.c_uint64 * 4)(*strides),
        (ctypes.c_uint32 * 5)(*box),
        (ctypes.c_uint32 * 5)(1, 1, 1, 1, 1),
        *(ctypes.c_int(0), ctypes.c_int(0)),  # no interleaving, no swizzle
        *(ctypes.c_int(3), ctypes.c_int(0)),  # L2 reads 256 bytes ahead; zeros outside
    )
    if status:
        raise RuntimeError(f"CUDA error {status}: no map of a tensor of {shape}")
    return words.to(f"cuda:{device}", non_blocking=True)
