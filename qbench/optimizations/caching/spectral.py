"""SeaCache (Chung 2026) by diffusers' hooks, given what CogVideoX's pipeline does not tell them.

They want to know the step and its noise level, and where the latents are. Of a pipeline that does
not say, diffusers computes every step and warns once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qbench.optimizations.caching.base import Schedule
from qbench.optimizations.caching.hooks import enable
from qbench.recipe.schema import Cache

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

    from qbench.optimizations.changes import Changes
    from qbench.pipelines.base import Module, VideoPipeline

Kwargs = dict[str, Any]


def sea(video: VideoPipeline, wanted: Cache, schedule: Schedule, changes: Changes) -> None:
    import diffusers
    import torch

    pipe, module = video.pipe, video.denoiser
    # Wan's pipeline tells them all this itself.
    flow = pipe.scheduler.config.get("use_flow_sigmas", False)
    telling = hasattr(pipe.scheduler, "alphas_cumprod") and not flow
    assert wanted.threshold is not None

    def latents(_: object, args: tuple[Tensor, ...], kwargs: Kwargs) -> list[Tensor]:
        """Of each video (channels, frames, height, width), once where guidance has them twice."""
        found = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        half = len(found) // 2
        if torch.equal(found[:half], found[half:]):  # false of an odd number, whose shapes differ
            found = found[:half]
        signal, noise = levels(pipe.scheduler, schedule)
        return [one.transpose(0, 1) / (signal + noise) for one in found]

    given: Kwargs = {"raw_vision_callback": latents} if telling else {}
    if wanted.order is not None:
        given["residual_order"] = wanted.order
    if wanted.first is not None:
        given["retention_steps"] = wanted.first
    if wanted.longest is not None:
        given["max_consecutive_cached"] = wanted.longest
    config = diffusers.SeaCacheConfig(
        threshold=wanted.threshold, cache_end_steps=1 if wanted.last else 0, **given
    )
    enable(video, config, changes)
    if telling:
        plain = module.cache_context

        def context(name: str, **where: object) -> AbstractContextManager[None]:
            signal, noise = levels(pipe.scheduler, schedule)
            told = {
                "step_index": schedule.step(),
                "num_inference_steps": len(pipe.scheduler.timesteps),
                "sigma": noise / (signal + noise),
            }
            inside: AbstractContextManager[None] = plain(name, **(told | where))
            return inside

        changes.replace(module, "cache_context", context)


def levels(scheduler: Module, schedule: Schedule) -> tuple[float, float]:
    """The factors a and b of latents a x0 + b noise, whose squares add up to 1.

    SeaCache's filter is for (1 - s) x0 + s noise: those latents are that times a + b, with s =
    b / (a + b).
    """
    kept = float(scheduler.alphas_cumprod[schedule.now()])
    return kept**0.5, (1 - kept) ** 0.5
