"""Damage on purpose: faults that published variants have shipped with, to see that they are caught.

Each does what its name says to the live pipeline, and nothing else in the program knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qbench.optimizations.changes import Changes
from qbench.optimizations.frame_faults import CHANGES
from qbench.recipe.schema import Fault

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from qbench.pipelines.base import Exchange, OnStep, VideoPipeline
    from qbench.pipelines.values import Conditioning, Resolved

OTHER_SEED = 2_000_000  # the noise of a splice's first half


def apply(video: VideoPipeline, fault: Fault) -> Changes:
    """Plant the fault in the denoiser, or in the frames that the pipeline decodes."""
    changes = Changes("fault", of_weights=fault == "scale_doubled")
    if fault in CHANGES:
        _change_frames(video, CHANGES[fault], changes)
        return changes
    if fault == "first_half_other_seed":
        _splice(video, changes)
        return changes
    blocks = video.repeated_blocks()
    middle = blocks[len(blocks) // 2]
    if fault == "scale_doubled":
        _double(middle, changes)
    elif fault == "block_skipped":
        changes.replace(middle, "forward", middle.forward)
        video.skip(middle)
    elif fault == "norms_fp8":
        _round_norms(video.denoiser, changes)
    else:
        raise ValueError(f"no such fault: {fault}")
    return changes


def _change_frames(
    video: VideoPipeline, change: Callable[[Tensor], Tensor], changes: Changes
) -> None:
    """Have `change` applied to what the VAE decodes: (batch, frames, 3, h, w) in [0, 1]."""
    plain = video.decode

    def decode(run: Resolved, latents: Tensor) -> Tensor:
        return change(plain(run, latents))

    changes.replace(video, "decode", decode)


def _splice(video: VideoPipeline, changes: Changes) -> None:
    """The first half of every video is one of the same prompt from other noise."""
    import torch

    plain_denoise, plain_decode = video.denoise, video.decode
    others: list[Tensor] = []

    def denoise(
        run: Resolved,
        conditioning: Conditioning,
        latents: Tensor,
        on_step: OnStep,
        *,
        generators: Sequence[Generator],
        steps: int | None = None,
        exchange: Exchange | None = None,
    ) -> Tensor:
        if exchange is None and steps is None:
            seeds = [OTHER_SEED + i for i in range(len(latents))]
            noise = torch.cat([video.noise(run, seed) for seed in seeds])
            of_its_own = video.generators(seeds)
            others[:] = [
                plain_denoise(run, conditioning, noise, lambda _: None, generators=of_its_own)
            ]
        return plain_denoise(
            run, conditioning, latents, on_step,
            generators=generators, steps=steps, exchange=exchange,
        )  # fmt: skip

    def decode(run: Resolved, latents: Tensor) -> Tensor:
        shown = plain_decode(run, latents)
        if others and others[0].shape == latents.shape:
            half = shown.shape[1] // 2
            shown = torch.cat([plain_decode(run, others[0])[:, :half], shown[:, half:]], dim=1)
        return shown

    changes.replace(video, "denoise", denoise)
    changes.replace(video, "decode", decode)


def _double(block: nn.Module, changes: Changes) -> None:
    """A scale that is wrong by two: the block's last linear, as a dequantization would have it."""
    import torch

    last = [layer for layer in block.modules() if isinstance(layer, torch.nn.Linear)][-1]

    def scale(factor: float) -> None:
        with torch.no_grad():
            last.weight.mul_(factor)

    scale(2)
    changes.on_undo(lambda: scale(0.5))


def _round_norms(module: nn.Module, changes: Changes) -> None:
    """Every layer norm's output rounded to FP8 (E4M3), though nothing after it expects that."""
    import torch

    def rounded(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output.to(torch.float8_e4m3fn).to(output.dtype)

    for layer in module.modules():
        if isinstance(layer, torch.nn.LayerNorm):
            changes.on_undo(layer.register_forward_hook(rounded).remove)
