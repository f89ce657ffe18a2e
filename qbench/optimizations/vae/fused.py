"""The decode of CogVideoX's VAE on qbench's own kernels (`kernels/vae_conv.cu`).

Layers stay diffusers' own and are called as before, so that an offload still brings their weights;
what changes is the function that each computes with, and the layout of its weights. Activations are
blocked by eight channels from the first convolution to the last. A norm's scale, shift and SiLU are
in the norm's pass, a residual is added in the convolution's, and no input is padded: the frames
before the first one are a tensor of their own.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from diffusers.models.autoencoders import autoencoder_kl_cogvideox as kinds
from diffusers.models.upsampling import CogVideoXUpsample3D

from qbench.errors import Unsupported
from qbench.optimizations.changes import Changes
from qbench.optimizations.kernels import vae_conv
from qbench.optimizations.vae import causal

if TYPE_CHECKING:
    from qbench.optimizations.parallel.rows import Rows
    from qbench.pipelines.base import Module


def apply(vae: Module, changes: Changes, rows: Rows | None = None) -> None:
    """Change the decoder in place. Raises Unsupported unless channels come in eights.

    rows: of several GPUs, between which frames are split.
    """
    border = 0 if rows is None else 1
    decoder = vae.decoder
    norms = [x for x in decoder.modules() if isinstance(x, torch.nn.GroupNorm)]
    if any(norm.num_channels % vae_conv.EACH for norm in norms):
        raise Unsupported(f"decode.fused is for VAEs with channels in multiples of {vae_conv.EACH}")
    for layer in decoder.modules():
        if isinstance(layer, kinds.CogVideoXSpatialNorm3D):
            changes.compute(layer, _normed)
            changes.compute(layer.norm_layer, functools.partial(vae_conv.group_norm, whole=rows))
        elif isinstance(layer, kinds.CogVideoXResnetBlock3D):
            changes.compute(layer, _resnet)
            for conv in (layer.conv1, layer.conv2):
                _pack(changes, conv.conv, border=border)
                changes.compute(conv, _causal)
            if hasattr(layer, "conv_shortcut"):
                _pack(changes, layer.conv_shortcut)
        elif isinstance(layer, CogVideoXUpsample3D):
            _pack(changes, layer.conv, grow=2, border=border)
            changes.compute(layer, _upsampled)
        elif isinstance(layer, torch.nn.SiLU):
            changes.compute(layer, lambda _, x: x)  # done with the norm before it
    for conv, forward in ((decoder.conv_in, _entered), (decoder.conv_out, _left)):
        _pack(changes, conv.conv, border=border)
        changes.compute(conv, forward)


def _pack(changes: Changes, conv: Module, grow: int = 1, border: int = 0) -> None:
    """Lay the weights out as the kernel reads them; undone, they are what they were, bit for bit.

    Folded weights (`grow`) cannot be unfolded, so those of the few upsamplers are kept aside.
    """
    weights = vae_conv.Weights(conv, grow, border)
    shape, kept = conv.weight.shape, None
    if grow > 1 and not conv.weight.is_meta:
        kept = conv.weight.data.cpu()

    def unpack() -> None:
        plain = weights.unpacked(conv.weight.data) if kept is None else kept
        conv.weight.data = plain.reshape(shape).contiguous().to(conv.weight.device)
        conv.bias.data = conv.bias.data[: weights.outputs].clone()

    conv.weight.data = weights.packed(conv.weight.data)
    short = weights.planes * vae_conv.EACH - weights.outputs
    conv.bias.data = torch.nn.functional.pad(conv.bias.data, (0, short))
    changes.on_undo(unpack)
    changes.compute(conv, functools.partial(_convolved, weights))


def _convolved(
    weights: vae_conv.Weights,
    conv: Module,
    x: torch.Tensor,
    before: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    copies: int = 1,
) -> torch.Tensor:
    return vae_conv.convolve(x, weights, conv.weight, conv.bias, before, residual, copies)


def _causal(
    layer: Module,
    x: torch.Tensor,
    conv_cache: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """CogVideoXCausalConv3d, blocked; its cache is the last frames that it saw."""
    out = layer.conv(x, before=conv_cache, residual=residual)
    wide = torch.complex128  # copied 16 bytes at a time
    cache = None if conv_cache is None else conv_cache.view(wide)
    return out, causal.kept(x.view(wide), layer.time_kernel_size - 1, cache).view(x.dtype)


def _entered(
    layer: Module, x: torch.Tensor, conv_cache: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    return _causal(layer, vae_conv.to_planes(x), conv_cache)


def _left(
    layer: Module, x: torch.Tensor, conv_cache: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    out, cache = _causal(layer, x, conv_cache)
    # A copy: a video's three channels are kept to the end, and their block has eight.
    return vae_conv.from_planes(out, layer.conv.out_channels).contiguous(), cache


def _normed(
    layer: Module,
    f: torch.Tensor,
    zq: torch.Tensor,
    conv_cache: dict[str, torch.Tensor] | None = None,
    in_place: bool = False,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """CogVideoXSpatialNorm3D and the SiLU after it, blocked.

    Scale and shift are 1x1 convolutions of the latents, so they are computed before upsampling.
    """
    scale, shift = (vae_conv.to_planes(conv.conv(zq)) for conv in (layer.conv_y, layer.conv_b))
    return layer.norm_layer(f, scale, shift, in_place), {}


def _resnet(
    layer: Module,
    x: torch.Tensor,
    temb: None,
    zq: torch.Tensor,
    conv_cache: dict[str, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """CogVideoXResnetBlock3D, blocked.

    An input that goes through a shortcut is the decoder's largest tensor, and nothing reads it
    after that: it is normalized in place, and freed while the caller still refers to it.
    """
    caches, shortened = conv_cache or {}, hasattr(layer, "conv_shortcut")
    residual = layer.conv_shortcut(x) if shortened else x
    hidden, _ = layer.norm1(x, zq, in_place=shortened)
    hidden, first = layer.conv1(hidden, caches.get("conv1"))
    if shortened:
        x.data = x.new_empty(0)
    hidden, _ = layer.norm2(hidden, zq, in_place=True)
    hidden, second = layer.conv2(hidden, caches.get("conv2"), residual=residual)
    return hidden, {"conv1": first, "conv2": second}


def _upsampled(layer: Module, x: torch.Tensor) -> torch.Tensor:
    """CogVideoXUpsample3D, blocked: the frames that upsampling in time adds are copies."""
    copies = 2 if layer.compress_time and x.shape[2] > 1 else 1
    return layer.conv(x, copies=copies)
