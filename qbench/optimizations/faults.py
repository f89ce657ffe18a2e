"""Damage on purpose: faults that published variants have shipped with, to see that they are caught.

Each does what its name says to the live pipeline, and nothing else in the program knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qbench.optimizations.frame_faults import CHANGES
from qbench.recipe.schema import Fault

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from qbench.pipelines.base import Conditioning, Exchange, OnStep, Resolved, VideoPipeline

OTHER_SEED = 2_000_000  # the noise of a splice's first half


def apply(video: VideoPipeline, fault: Fault) -> None:
    """Plant the fault in the denoiser, or in the frames that the pipeline decodes."""
    if fault in CHANGES:
        _change_frames(video, CHANGES[fault])
        return
    if fault == "first_half_other_seed":
        _splice(video)
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


def _splice(video: VideoPipeline) -> None:
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

    video.denoise = denoise  # type: ignore[method-assign]
    video.decode = decode  # type: ignore[method-assign]


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
