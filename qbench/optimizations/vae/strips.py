"""The decode of CogVideoX's VAE in strips of rows: the same video in less memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_cogvideox as kinds
from diffusers.models.upsampling import CogVideoXUpsample3D
from torch.nn import functional

from qbench.optimizations.changes import Changes, Forward
from qbench.optimizations.vae import causal, group_norm

Layer = Any  # of diffusers, which types none of them
Moments = Callable[[torch.nn.GroupNorm, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
STRIP_BYTES = 2**27  # of a layer's input, a strip: enough work for any GPU


def apply(vae: Layer, changes: Changes, moments: Moments = group_norm.moments) -> None:
    """Have the decoder's layers work through their rows in strips; what they compute is the same.

    An untiled decode holds a layer's input and output, and up to ten more short-lived tensors of
    their size: padded inputs, norms, scales. Tiles avoid that and change the video: convolutions
    pad with zeros at the edges of tiles, and group norms see only a part of the frame. `moments`
    are of whole frames, also where those are split between GPUs.
    """
    ours: dict[type, Forward] = {
        kinds.CogVideoXCausalConv3d: _convolved,
        kinds.CogVideoXSpatialNorm3D: functools.partial(_spatially_normed, moments=moments),
        CogVideoXUpsample3D: _upsampled,
    }
    for layer in vae.decoder.modules():
        if type(layer) in ours:
            changes.compute(layer, ours[type(layer)])
            if isinstance(layer, kinds.CogVideoXSpatialNorm3D):
                # Called, not only read: an offload brings a layer's weights as it is called.
                changes.compute(layer.norm_layer, group_norm.normed)
        elif isinstance(layer, torch.nn.SiLU):
            changes.replace(layer, "inplace", True)  # on a norm's output, which nothing else reads


def _strips(x: torch.Tensor) -> list[tuple[int, int]]:
    """Rows from and to, of (batch, channels, frames, height, width)."""
    height = x.shape[3]
    rows = max(1, STRIP_BYTES // (x.numel() // height * x.element_size()))
    return [(start, min(start + rows, height)) for start in range(0, height, rows)]


def _convolved(
    layer: Layer, x: torch.Tensor, conv_cache: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """CogVideoXCausalConv3d: each strip with the rows around it that its outputs see."""
    conv, ahead, height = layer.conv, layer.time_kernel_size - 1, x.shape[3]
    if layer.pad_mode == "replicate" or not ahead:
        return type(layer).forward(layer, x, conv_cache)
    before = causal.earlier(x, ahead, conv_cache)
    out: Layer = None
    for start, stop in _strips(x):
        low, high = max(0, start - layer.height_pad), min(height, stop + layer.height_pad)
        strip = torch.cat([part[:, :, :, low:high] for part in (*before, x)], dim=2)
        made = conv(strip)
        if out is None:
            out = x.new_empty(*made.shape[:3], height, made.shape[4])
        out[:, :, :, start:stop] = made[:, :, :, start - low : stop - low]
    return out, causal.kept(x, ahead, conv_cache)


def _spatially_normed(
    layer: Layer, f: torch.Tensor, zq: torch.Tensor, conv_cache: Layer = None, *, moments: Moments
) -> tuple[torch.Tensor, dict[str, Layer]]:
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


def _upsampled(layer: Layer, x: torch.Tensor) -> torch.Tensor:
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
