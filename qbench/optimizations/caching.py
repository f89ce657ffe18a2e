"""Reusing what earlier denoise steps computed, by diffusers' own hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qbench.recipe.schema import Cache

if TYPE_CHECKING:
    from qbench.pipelines.base import VideoPipeline

# Timesteps, of 1000, in which work may be reused: the first steps change fastest (PAB, Zhao 2024,
# figure 2; FasterCache, Lv 2024). The last step is always computed in full, whatever the method's
# authors do: its output is the video, and no later step mends it. On the bundled model TaylorSeer
# came to 43.2 dB with the last step predicted and to 55.7 with it computed, at the same cost.
PAB_RANGE = (100, 800)
FASTER_HIGH, FASTER_GUIDANCE_HIGH = 681, 641
FASTER_WEIGHT = 0.3  # of the newer of two cached attentions
ONE_BATCH = ("pab", "faster")  # their hooks expect both halves of guidance in one batch
FULL_STEPS = 3  # TaylorSeer computes so many before it predicts


def apply(video: VideoPipeline, wanted: Cache, steps: int) -> None:
    """Put the hooks on the denoiser, for videos of so many denoise steps.

    The pipeline resets them at the end of each video.
    """
    from qbench.errors import Unsupported

    module = video.denoiser
    if not hasattr(module, "enable_cache"):
        raise Unsupported(f"cache: diffusers' hooks know no blocks of a {type(module).__name__}")
    if video.separate_guidance and wanted.kind in ONE_BATCH:
        raise Unsupported(
            f"cache: diffusers' {wanted.kind} keeps one state for both halves of guidance, which a "
            f"{video.pipeline_class} computes in calls of their own: choose taylorseer or "
            "first_block"
        )
    module.enable_cache(_config(video.pipe, wanted, steps))


def _config(pipeline: Any, wanted: Cache, steps: int) -> Any:
    import diffusers

    # Just above the last step's timestep, which a range from here on leaves out.
    last = pipeline.scheduler.config.num_train_timesteps // steps

    def now() -> int:
        return int(pipeline.current_timestep)

    if wanted.kind == "first_block":
        return diffusers.FirstBlockCacheConfig(threshold=wanted.threshold)
    if wanted.kind == "pab":
        return diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=wanted.interval,
            spatial_attention_timestep_skip_range=PAB_RANGE,
            current_timestep_callback=now,
        )
    if wanted.kind == "faster":
        return diffusers.FasterCacheConfig(
            spatial_attention_block_skip_range=wanted.interval,
            spatial_attention_timestep_skip_range=(last, FASTER_HIGH),
            unconditional_batch_skip_range=5,
            unconditional_batch_timestep_skip_range=(last, FASTER_GUIDANCE_HIGH),
            attention_weight_callback=lambda _: FASTER_WEIGHT,
            tensor_format="BFCHW",
            current_timestep_callback=now,
        )
    # The default patterns of TaylorSeer name layers that CogVideoX does not have. Its 'lite' ones
    # do fit: blocks are skipped whole and the last projection is predicted.
    return diffusers.TaylorSeerCacheConfig(
        cache_interval=wanted.interval,
        disable_cache_before_step=FULL_STEPS,
        disable_cache_after_step=steps - 1,
        max_order=1,
        use_lite_mode=True,
    )
