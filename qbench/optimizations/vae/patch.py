"""How the VAE decodes: split group norms, strips, or fused on qbench's kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from qbench.errors import Unsupported
from qbench.optimizations.vae import causal
from qbench.recipe.schema import Decode

PARTS = 512  # at most so many of a group: 32 groups of them fill any GPU
STRIP_BYTES = 2**27  # of a layer's input, a strip: enough work for any GPU


def apply(pipeline: Any, wanted: Decode) -> None:
    if wanted.fused and fuses(pipeline.vae):
        from qbench.optimizations.vae import fused

        fused.apply(pipeline.vae)
    elif wanted.split_norms:
        for layer in pipeline.vae.modules():
            if isinstance(layer, torch.nn.GroupNorm) and layer.affine:
                computed_by(layer, split_group_norm)
    if wanted.strips:
        _in_strips(pipeline.vae)


def computed_by(layer: Any, forward: Callable[..., Any]) -> None:
    """Have `forward(layer, ...)` compute what is asked of the layer, in place of its own."""
    layer.forward = functools.partial(forward, layer)


def fuses(vae: Any) -> bool:
    """Whether qbench's own kernels are made for this VAE."""
    from diffusers import AutoencoderKLCogVideoX

    return isinstance(vae, AutoencoderKLCogVideoX)


def split_group_norm(layer: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
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


# In strips ---------------------------------------------------------------------------------------


def _in_strips(vae: Any) -> None:
    """Have the decoder's layers work through their rows in strips; what they compute is the same.

    An untiled decode holds a layer's input and output, and up to ten more tensors of their size
    that are soon gone: padded inputs, norms, scales. Tiles avoid that and change the video: their
    convolutions see borders that are none, and their group norms only a part of the frame.
    """
    from diffusers.models.autoencoders import autoencoder_kl_cogvideox as kinds
    from diffusers.models.upsampling import CogVideoXUpsample3D

    if not fuses(vae):
        raise Unsupported(
            "decode.strips is for CogVideoX's VAE; memory.vae_slicing decodes other videos frame "
            "by frame"
        )
    ours: dict[type, Callable[..., Any]] = {
        kinds.CogVideoXCausalConv3d: _convolved,
        kinds.CogVideoXSpatialNorm3D: _spatially_normed,
        CogVideoXUpsample3D: _upsampled,
    }
    for layer in vae.decoder.modules():
        if type(layer) in ours:
            computed_by(layer, ours[type(layer)])
            if isinstance(layer, kinds.CogVideoXSpatialNorm3D):
                # Called, not only read: an offload brings a layer's weights as it is called.
                computed_by(layer.norm_layer, normed)
        elif isinstance(layer, torch.nn.SiLU):
            layer.inplace = True  # of a norm's output, which nobody else reads


def _strips(x: torch.Tensor) -> list[tuple[int, int]]:
    """Rows from and to, of (batch, channels, frames, height, width)."""
    height = x.shape[3]
    rows = max(1, STRIP_BYTES // (x.numel() // height * x.element_size()))
    return [(start, min(start + rows, height)) for start in range(0, height, rows)]


def _convolved(
    layer: Any, x: torch.Tensor, conv_cache: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """CogVideoXCausalConv3d: each strip with the rows around it that its outputs see."""
    conv, ahead, height = layer.conv, layer.time_kernel_size - 1, x.shape[3]
    if layer.pad_mode == "replicate" or not ahead:
        return type(layer).forward(layer, x, conv_cache)
    before = causal.earlier(x, ahead, conv_cache)
    out: Any = None
    for start, stop in _strips(x):
        low, high = max(0, start - layer.height_pad), min(height, stop + layer.height_pad)
        strip = torch.cat([part[:, :, :, low:high] for part in (*before, x)], dim=2)
        made = conv(strip)
        if out is None:
            out = x.new_empty(*made.shape[:3], height, made.shape[4])
        out[:, :, :, start:stop] = made[:, :, :, start - low : stop - low]
    return out, causal.kept(x, ahead, conv_cache)


def _spatially_normed(
    layer: Any, f: torch.Tensor, zq: torch.Tensor, conv_cache: Any = None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """CogVideoXSpatialNorm3D: a group norm, scaled and shifted by what the latents say there.

    Both are convolutions of one latent each, so they come before the latents are enlarged.
    """
    of_whole = moments(layer.norm_layer, f)
    times, rows, columns = causal.latents_of(f.shape[2:], zq.shape[2:], f.device)
    scale, shift = (conv.conv(zq)[:, :, times] for conv in (layer.conv_y, layer.conv_b))
    out = torch.empty_like(f)
    for start, stop in _strips(f):
        strip = layer.norm_layer(f[:, :, :, start:stop], *of_whole)
        strip *= scale[:, :, :, rows[start:stop]][..., columns]
        strip += shift[:, :, :, rows[start:stop]][..., columns]
        out[:, :, :, start:stop] = strip
    return out, {}


def _upsampled(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """CogVideoXUpsample3D, frame by frame: those that time is filled up with are alike."""
    frames = x.shape[2]
    copies = [2 if layer.compress_time and frames > 1 else 1] * frames
    if frames % 2 == 1:
        copies[0] = 1
    made = None
    for number, count in enumerate(copies):
        frame = layer.conv(functional.interpolate(x[:, :, number], scale_factor=2.0))
        if made is None:
            made = x.new_empty(*frame.shape[:2], sum(copies), *frame.shape[2:])
        at = sum(copies[:number])
        made[:, :, at : at + count] = frame[:, :, None]
    return made  # type: ignore[return-value]
