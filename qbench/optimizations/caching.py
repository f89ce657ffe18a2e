"""Reusing what earlier denoise steps computed, by diffusers' own hooks.

`CACHES` is the one table; docs/extending/cache.md says how to add a cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.errors import Unsupported
from qbench.optimizations.changes import Changes
from qbench.optimizations.rules import ModelFacts, Rule, always
from qbench.recipe.schema import Cache, Variant

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.pipelines.base import Module, VideoPipeline

    Total = Callable[[Tensor], Tensor]  # the sum of everybody's

# Timesteps, of 1000, in which work may be reused: the first steps change fastest (PAB, Zhao 2024,
# figure 2; FasterCache, Lv 2024). The last step is always computed in full, whatever the method's
# authors do: its output is the video, and no later step mends it. On the bundled model TaylorSeer
# came to 43.2 dB with the last step predicted and to 55.7 with it computed, at the same cost.
PAB_RANGE = (100, 800)
FASTER_HIGH, FASTER_GUIDANCE_HIGH = 681, 641
FASTER_WEIGHT = 0.3  # of the newer of two cached attentions
FULL_STEPS = 3  # TaylorSeer computes so many before it predicts


@dataclass(frozen=True)
class Schedule:
    """What a cache may go by.

    steps: denoise steps of a video.
    last: a timestep just above the last step's, which a range from here on leaves out.
    now: the timestep that the pipeline is at.
    """

    steps: int
    last: int
    now: Callable[[], int]


@dataclass(frozen=True)
class Method:
    """One cache.

    config: makes diffusers' configuration of it.
    inner: whether it hooks the attention inside each block, which a compiled block has no more.
    guided: whether it needs guidance, because it predicts the unconditional half of the batch.
    one_batch: whether it keeps one state for both halves of guidance, so that they must come in one
        batch.
    """

    config: Callable[[Cache, Schedule], object]
    inner: bool = False
    guided: bool = False
    one_batch: bool = False


def apply(video: VideoPipeline, wanted: Cache, steps: int, agree: Total | None = None) -> Changes:
    """Put the hooks on the denoiser, for videos of so many denoise steps.

    The pipeline resets them at the end of each video. agree: adds up over the GPUs that share a
    batch, where what is skipped depends on what the latents are. Raises Unsupported where
    diffusers' hooks do not know the denoiser's blocks.
    """
    module, pipe = video.denoiser, video.pipe
    if not hasattr(module, "enable_cache"):
        raise Unsupported(UNKNOWN_BLOCKS)
    last = pipe.scheduler.config.num_train_timesteps // steps
    schedule = Schedule(steps, last, lambda: int(pipe.current_timestep))
    changes = Changes("cache")
    for layer in module.modules():  # diffusers leaves a forward behind where it takes a hook off
        if "forward" not in vars(layer):
            changes.on_undo(functools.partial(vars(layer).pop, "forward", None))
    module.enable_cache(CACHES[wanted.kind].config(wanted, schedule))
    changes.on_undo(module.disable_cache)
    if agree is not None and wanted.by_content:
        _decide_together(module, agree)
    return changes


def _decide_together(module: Module, total: Total) -> None:
    """Have the first-block cache compare the residual of the whole batch and of all its tokens.

    Each GPU has a part of them, and all must skip the same steps: those that one GPU would.
    """
    import torch
    from diffusers.hooks import first_block_cache

    name = first_block_cache._FBC_LEADER_BLOCK_HOOK
    registries = [getattr(layer, "_diffusers_hook", None) for layer in module.modules()]
    (hook,) = (one.get_hook(name) for one in registries if one and one.get_hook(name))

    @torch.compiler.disable
    def should_compute(residual: Tensor) -> bool:
        before = hook.state_manager.get_state().head_block_residual
        if before is None:
            return True
        sums = [x.abs().sum(dtype=torch.float32) for x in (residual - before, before)]
        count = torch.full_like(sums[0], residual.numel())
        moved, was, values = total(torch.stack([*sums, count]))
        # Means are rounded as diffusers' are: a step near the threshold is decided as on one GPU.
        share = (moved / values).to(residual.dtype) / (was / values).to(residual.dtype)
        return bool(share.item() > hook.threshold)

    hook._should_compute_remaining_blocks = should_compute


def _first_block(wanted: Cache, _: Schedule) -> object:
    import diffusers

    return diffusers.FirstBlockCacheConfig(threshold=wanted.threshold)


def _pab(wanted: Cache, schedule: Schedule) -> object:
    import diffusers

    return diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=wanted.interval,
        spatial_attention_timestep_skip_range=PAB_RANGE,
        current_timestep_callback=schedule.now,
    )


def _faster(wanted: Cache, schedule: Schedule) -> object:
    import diffusers

    return diffusers.FasterCacheConfig(
        spatial_attention_block_skip_range=wanted.interval,
        spatial_attention_timestep_skip_range=(schedule.last, FASTER_HIGH),
        unconditional_batch_skip_range=5,
        unconditional_batch_timestep_skip_range=(schedule.last, FASTER_GUIDANCE_HIGH),
        attention_weight_callback=lambda _: FASTER_WEIGHT,
        tensor_format="BFCHW",
        current_timestep_callback=schedule.now,
    )


def _taylorseer(wanted: Cache, schedule: Schedule) -> object:
    """The default patterns of TaylorSeer name layers that CogVideoX does not have.

    Its 'lite' ones do fit: blocks are skipped whole and the last projection is predicted.
    """
    import diffusers

    return diffusers.TaylorSeerCacheConfig(
        cache_interval=wanted.interval,
        disable_cache_before_step=FULL_STEPS,
        disable_cache_after_step=schedule.steps - 1,
        max_order=1,
        use_lite_mode=True,
    )


CACHES: dict[str, Method] = {
    "first_block": Method(_first_block),
    "pab": Method(_pab, inner=True, one_batch=True),
    "faster": Method(_faster, inner=True, guided=True, one_batch=True),
    "taylorseer": Method(_taylorseer),
}


def _method(variant: Variant) -> Method | None:
    return CACHES[variant.cache.kind] if variant.cache else None


def _inner(variant: Variant) -> bool:
    method = _method(variant)
    return method is not None and method.inner


def _guided(variant: Variant) -> bool:
    method = _method(variant)
    return method is not None and method.guided


def _one_batch(variant: Variant) -> bool:
    method = _method(variant)
    return method is not None and method.one_batch


def _has_blocks(_: Variant, model: ModelFacts) -> bool:
    return model.blocks


UNKNOWN_BLOCKS = "cache: diffusers' cache hooks do not know the blocks of this denoiser"
RULES: tuple[Rule, ...] = (
    Rule(
        "caches and the denoiser's blocks",
        lambda v: v.cache is not None,
        always,
        UNKNOWN_BLOCKS,
        fits=_has_blocks,
    ),
    Rule(
        "FasterCache and guidance",
        _guided,
        always,
        "FasterCache predicts the unconditional half of the batch, which there is with guidance "
        "above 1 only: raise generation.guidance, or choose another cache",
        fits=lambda _, model: model.guided,
    ),
    Rule(
        "caches and separate calls of guidance",
        _one_batch,
        always,
        "cache: diffusers' PAB and FasterCache keep one state for both halves of guidance, which "
        "this family computes in calls of their own: choose taylorseer or first_block",
        fits=lambda _, model: not model.separate_guidance,
    ),
    Rule(
        "caches inside compiled blocks",
        lambda v: v.compile is not None and _inner(v),
        lambda _: False,
        "PAB and FasterCache hook the attention inside each block: compiled, every block becomes "
        "a program of its own; use taylorseer or first_block, or leave out compile",
        fails=False,
    ),
    Rule(
        "caches and a model compiled whole",
        lambda v: v.compile is not None and v.cache is not None and v.compile.scope == "model",
        lambda _: False,
        "a cache decides between blocks, which one compiled program cannot: compile with scope "
        "blocks",
        fails=False,
    ),
)
