"""Damage on purpose: faults that published variants have shipped with, to see that they are caught.

Each does what its name says to the live pipeline, and nothing else in the program knows of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qbench.recipe.schema import Fault


def apply(pipeline: Any, fault: Fault) -> None:
    """Plant the fault in the denoiser, or in the frames that the pipeline decodes."""
    from qbench.pipelines.specs import denoiser, family

    kinds = family(pipeline)
    frames = {
        "last_frames_repeated": _last_repeated,
        "channels_swapped": lambda video: video.flip(2),
        "black": lambda video: video * 0 - 1,
    }
    if fault in frames:
        _change_frames(pipeline, frames[fault])
        return
    module = denoiser(pipeline)
    blocks = kinds.repeated_blocks(module)
    middle = blocks[len(blocks) // 2]
    if fault == "scale_doubled":
        _double(middle)
    elif fault == "block_skipped":
        middle.forward = kinds.pass_through
    elif fault == "norms_fp8":
        _round_norms(module)
    else:
        raise ValueError(f"no such fault: {fault}")


def _change_frames(pipeline: Any, change: Callable[[Any], Any]) -> None:
    """Have `change` applied to what the VAE decodes: (batch, frames, 3, h, w) in [-1, 1]."""
    plain = pipeline.decode_latents

    def decode_latents(latents: Any) -> Any:
        return change(plain(latents).transpose(1, 2)).transpose(1, 2)

    pipeline.decode_latents = decode_latents


def _last_repeated(video: Any) -> Any:
    """The last quarter of the frames stands still. video: (batch, frames, 3, height, width)."""
    count = video.shape[1]
    kept = count - max(1, count // 4)
    return video[:, [min(i, kept - 1) for i in range(count)]]


def _double(block: Any) -> None:
    """A scale that is wrong by two: the block's last linear, as a dequantization would have it."""
    import torch

    linears = [layer for layer in block.modules() if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        linears[-1].weight.mul_(2)


def _round_norms(module: Any) -> None:
    """Every layer norm's output rounded to FP8 (E4M3), though nothing after it expects that."""
    import torch

    def rounded(_: Any, __: Any, output: Any) -> Any:
        return output.to(torch.float8_e4m3fn).to(output.dtype)

    for layer in module.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            layer.register_forward_hook(rounded)
