"""Caches by diffusers' own hooks, with the last step computed unless a recipe says otherwise.

The last step's output is the video, and no later step mends it. On the bundled model TaylorSeer
came to 43.2 dB with the last step predicted and to 55.7 with it computed, at the same cost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.optimizations.caching.base import Schedule
from qbench.recipe.schema import Cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from qbench.optimizations.caching.base import Total
    from qbench.optimizations.changes import Changes
    from qbench.pipelines.base import Module, VideoPipeline

# Timesteps, of 1000, in which work may be reused: the first steps change fastest (PAB, Zhao 2024,
# figure 2; FasterCache, Lv 2024).
PAB_RANGE = (100, 800)
FASTER_HIGH, FASTER_GUIDANCE_HIGH = 681, 641
FASTER_WEIGHT = 0.3  # of the newer of two cached attentions
FULL_STEPS = 3  # TaylorSeer computes so many before it predicts
MAG_FULL_SHARE, MAG_LONGEST = 0.2, 3  # MagCache's own defaults
ALWAYS_COMPUTED = 1e9  # a ratio of magnitudes that no threshold lets pass


def enable(video: VideoPipeline, config: object, changes: Changes) -> None:
    """By one of diffusers' configurations."""
    video.denoiser.enable_cache(config)
    changes.on_undo(video.denoiser.disable_cache)


def first_block(video: VideoPipeline, wanted: Cache, schedule: Schedule, changes: Changes) -> None:
    import diffusers

    assert wanted.threshold is not None
    enable(video, diffusers.FirstBlockCacheConfig(threshold=wanted.threshold), changes)
    if wanted.last:
        _decide(video.denoiser, lambda decided: lambda x: schedule.is_last() or decided(x))


def pab(video: VideoPipeline, wanted: Cache, schedule: Schedule, changes: Changes) -> None:
    """The last step lies below its range of timesteps, of few steps too."""
    import diffusers

    low, high = (schedule.timestep(one) for one in PAB_RANGE)
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=wanted.interval,
        spatial_attention_timestep_skip_range=(max(low, schedule.below), high),
        current_timestep_callback=schedule.now,
    )
    enable(video, config, changes)


def faster(video: VideoPipeline, wanted: Cache, schedule: Schedule, changes: Changes) -> None:
    import diffusers

    low = schedule.below if wanted.last else -1
    config = diffusers.FasterCacheConfig(
        spatial_attention_block_skip_range=wanted.interval,
        spatial_attention_timestep_skip_range=(low, schedule.timestep(FASTER_HIGH)),
        unconditional_batch_skip_range=5,
        unconditional_batch_timestep_skip_range=(low, schedule.timestep(FASTER_GUIDANCE_HIGH)),
        attention_weight_callback=lambda _: FASTER_WEIGHT,
        tensor_format="BFCHW",
        current_timestep_callback=schedule.now,
    )
    enable(video, config, changes)


def taylorseer(video: VideoPipeline, wanted: Cache, schedule: Schedule, changes: Changes) -> None:
    """The default patterns of TaylorSeer name layers that CogVideoX does not have.

    Its 'lite' ones do fit: blocks are skipped whole and the last projection is predicted.
    """
    import diffusers

    config = diffusers.TaylorSeerCacheConfig(
        cache_interval=wanted.interval,
        disable_cache_before_step=wanted.first or FULL_STEPS,
        disable_cache_after_step=schedule.steps - 1 if wanted.last else None,
        max_order=1 if wanted.order is None else wanted.order,
        taylor_factors_dtype=video.denoiser.dtype,  # diffusers' default is BF16 of any model
        use_lite_mode=True,
    )
    enable(video, config, changes)


def mag(video: VideoPipeline, wanted: Cache, schedule: Schedule, changes: Changes) -> None:
    """MagCache (Ma 2025), whose ratios are this video's own number of steps.

    diffusers would stretch those of another number: a step of 25 would then have the ratio of one
    of 50, where two of these are to be multiplied.
    """
    import diffusers

    ratios = list(wanted.ratios or ())
    assert len(ratios) == schedule.steps
    assert wanted.threshold is not None
    if wanted.last:
        ratios[-1] = ALWAYS_COMPUTED
    first = round(MAG_FULL_SHARE * schedule.steps) if wanted.first is None else wanted.first
    config = diffusers.MagCacheConfig(
        threshold=wanted.threshold,
        max_skip_steps=wanted.longest or MAG_LONGEST,
        retention_ratio=first / schedule.steps,
        num_inference_steps=schedule.steps,
        mag_ratios=ratios,
    )
    enable(video, config, changes)


def decide_together(module: Module, total: Total, ends: Schedule | None) -> None:
    """Have the first-block cache compare the residual of the whole batch and of all its tokens.

    Each GPU has a part of them, and all must skip the same steps: those that one GPU would. ends:
    whose last step is computed.
    """
    import torch

    hook = _first_block_hook(module)

    def should_compute(residual: Tensor) -> bool:
        before = hook.state_manager.get_state().head_block_residual
        if before is None or (ends is not None and ends.is_last()):
            return True
        sums = [x.abs().sum(dtype=torch.float32) for x in (residual - before, before)]
        count = torch.full_like(sums[0], residual.numel())
        moved, was, values = total(torch.stack([*sums, count]))
        # Means are rounded as diffusers' are: a step near the threshold is decided as on one GPU.
        share = (moved / values).to(residual.dtype) / (was / values).to(residual.dtype)
        return bool(share.item() > hook.threshold)

    hook._should_compute_remaining_blocks = torch.compiler.disable(should_compute)


def _decide(module: Module, around: Callable[[Callable[[Tensor], bool]], object]) -> None:
    import torch

    hook = _first_block_hook(module)
    decided = hook._should_compute_remaining_blocks
    hook._should_compute_remaining_blocks = torch.compiler.disable(around(decided))


def _first_block_hook(module: Module) -> Module:
    from diffusers.hooks import first_block_cache

    name = first_block_cache._FBC_LEADER_BLOCK_HOOK
    registries = [getattr(layer, "_diffusers_hook", None) for layer in module.modules()]
    (hook,) = (one.get_hook(name) for one in registries if one and one.get_hook(name))
    return hook
