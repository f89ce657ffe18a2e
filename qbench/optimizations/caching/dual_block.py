"""DBCache, by the package cache-dit.

Its first blocks are computed in every step, and the others skipped while the residual of the first
ones moves little. Put on the denoiser alone: put on a pipeline, cache-dit patches the `__call__` of
its class, which every other pipeline of that class then has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.errors import Unsupported
from qbench.optimizations.caching.base import Schedule
from qbench.recipe.schema import Cache

if TYPE_CHECKING:
    from qbench.optimizations.caching.base import Begin
    from qbench.optimizations.changes import Changes
    from qbench.pipelines.base import Module, VideoPipeline

PACKAGE = "cache_dit"
PIPELINES = ("CogVideoXPipeline", "WanPipeline")
FRONT, FULL_STEPS, ANY_NUMBER = 8, 8, -1  # cache-dit's own defaults


def dbcache(video: VideoPipeline, wanted: Cache, schedule: Schedule, changes: Changes) -> Begin:
    """Raises Unsupported where no block would be left to skip."""
    import cache_dit

    module, steps = video.denoiser, schedule.steps
    blocks = video.repeated_blocks()
    front, back = wanted.front or FRONT, wanted.back or 0
    first = min(wanted.first or FULL_STEPS, steps)
    if front + back >= len(blocks):
        raise Unsupported(
            f"cache: {front + back} of this denoiser's {len(blocks)} blocks would be computed in "
            "every step, which leaves none to skip: lower variant.cache.front or back"
        )
    # The first steps too must be in the mask: cache-dit forgets its own count of them beside one.
    mask = [1] * first + [0] * (steps - first - 1) + [1] * (steps > first)
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=front,
        Bn_compute_blocks=back,
        residual_diff_threshold=wanted.threshold,
        max_warmup_steps=first,
        max_continuous_cached_steps=wanted.longest or ANY_NUMBER,
        enable_separate_cfg=video.separate_guidance,
        num_inference_steps=steps,
        steps_computation_mask=mask if wanted.last else None,
    )
    order = wanted.order or 0
    taylor = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=order) if order else None
    _restore_afterwards(changes, [module, *module.children(), *blocks])
    cache_dit.enable_cache(module, cache_config=config, calibrator_config=taylor)

    def begin() -> None:
        # Where halves of guidance come in turns cache-dit tells them by counting calls, so it must
        # know of a video without guidance that there are no turns.
        turns = video.separate_guidance and video.pipe.do_classifier_free_guidance
        changed = cache_dit.DBCacheConfig().reset(enable_separate_cfg=turns)
        cache_dit.refresh_context(module, cache_config=changed)

    return begin


def _restore_afterwards(changes: Changes, modules: list[Module]) -> None:
    """Take off all that cache-dit hangs on modules.

    Its own way back calls a method that a `forward` which others put there may not have.
    """
    found = [(module, dict(vars(module))) for module in modules]

    def restore() -> None:
        for module, before in found:
            for name in vars(module).keys() - before.keys():
                delattr(module, name)
            if "forward" in before:
                module.forward = before["forward"]

    changes.on_undo(restore)
