"""Reusing what earlier denoise steps computed, by diffusers' own hooks."""

from __future__ import annotations

from typing import Any

from qbench.recipe import Cache

# Timesteps, of 1000, in which attention may be reused: the ends of the schedule change fastest
# (PAB, Zhao 2024, figure 2; FasterCache, Lv 2024).
PAB_RANGE = (100, 800)
FASTER_RANGE = (-1, 681)
FASTER_GUIDANCE_RANGE = (-1, 641)
FASTER_WEIGHT = 0.3  # of the newer of two cached attentions
FULL_STEPS = 3  # TaylorSeer computes so many before it predicts


def apply(pipeline: Any, wanted: Cache, steps: int) -> None:
    """Put the hooks on the denoiser, for videos of so many denoise steps.

    The pipeline resets them at the end of each video.
    """
    from qbench.errors import Unsupported
    from qbench.models import denoiser

    module = denoiser(pipeline)
    if not hasattr(module, "enable_cache"):
        raise Unsupported(f"cache: diffusers' hooks know no blocks of a {type(module).__name__}")
    module.enable_cache(_config(pipeline, wanted, steps))


def _config(pipeline: Any, wanted: Cache, steps: int) -> Any:
    import diffusers

    def now() -> int:
        return int(pipeline.current_timestep)

    if wanted.kind == "first_block":
        return diffusers.FirstBlockCacheConfig(threshold=wanted.threshold)
    if wanted.kind == "pab":
        return diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=wanted.interval,
            spatial_attention_timestep_skip_range=_range(PAB_RANGE, wanted),
            current_timestep_callback=now,
        )
    if wanted.kind == "faster":
        return diffusers.FasterCacheConfig(
            spatial_attention_block_skip_range=wanted.interval,
            spatial_attention_timestep_skip_range=_range(FASTER_RANGE, wanted),
            unconditional_batch_skip_range=5,
            unconditional_batch_timestep_skip_range=_range(FASTER_GUIDANCE_RANGE, wanted),
            attention_weight_callback=lambda _: FASTER_WEIGHT,
            tensor_format="BFCHW",
            current_timestep_callback=now,
        )
    # The default patterns of TaylorSeer name layers that CogVideoX does not have. Its 'lite' ones
    # do fit: blocks are skipped whole and the last projection is predicted.
    first = FULL_STEPS if wanted.start is None else round(wanted.start * steps)
    return diffusers.TaylorSeerCacheConfig(
        cache_interval=wanted.interval,
        disable_cache_before_step=max(2, first),  # a slope takes two
        max_order=1,
        use_lite_mode=True,
    )


def _range(own: tuple[int, int], wanted: Cache) -> tuple[int, int]:
    """Timesteps, from 1000 down, in which work is reused; `start` cuts off the early ones."""
    low, high = own
    return (low, high) if wanted.start is None else (low, round(1000 * (1 - wanted.start)))
