"""Damage on purpose: faults that published variants have shipped with, to see that they are caught.

Each does what its name says to the live pipeline, and nothing else in the program knows of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qbench.recipe.schema import Fault

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.pipelines.base import Resolved, VideoPipeline


def apply(video: VideoPipeline, fault: Fault) -> None:
    """Plant the fault in the denoiser, or in the frames that the pipeline decodes."""
    frames: dict[str, Callable[[Tensor], Tensor]] = {
        "last_frames_repeated": _last_repeated,
        "channels_swapped": lambda shown: shown.flip(2),
        "black": lambda shown: shown * 0,
    }
    if fault in frames:
        _change_frames(video, frames[fault])
        return
    module = video.denoiser
    blocks = video.repeated_blocks()
    middle = blocks[len(blocks) // 2]
    if fault == "scale_doubled":
        _double(middle)
    elif fault == "block_skipped":
        video.skip(middle)
    elif fault == "norms_fp8":
        _round_norms(module)
    else:
        raise ValueError(f"no such fault: {fault}")


def _change_frames(video: VideoPipeline, change: Callable[[Tensor], Tensor]) -> None:
    """Have `change` applied to what the VAE decodes: (batch, frames, 3, h, w) in [0, 1]."""
    plain = video.decode

    def decode(run: Resolved, latents: Tensor) -> Tensor:
        return change(plain(run, latents))

    video.decode = decode  # type: ignore[method-assign]


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
