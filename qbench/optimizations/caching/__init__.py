"""Reusing what earlier denoise steps computed: by diffusers' own hooks, or by cache-dit.

`CACHES` is the one table; docs/extending/cache.md says how to add a cache.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.errors import InputError, Unsupported
from qbench.optimizations.caching import dual_block, hooks, magnitudes, spectral
from qbench.optimizations.caching.base import Method, Schedule
from qbench.optimizations.caching.computed import Counter
from qbench.optimizations.changes import Changes
from qbench.optimizations.rules import ModelFacts, Rule, always, clash, never
from qbench.recipe.schema import Cache, Variant

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from qbench.optimizations.caching.base import Begin, Total
    from qbench.optimizations.calibration import Occasion
    from qbench.pipelines.base import VideoPipeline

CACHES: dict[str, Method] = {
    "first_block": Method(hooks.first_block),
    "pab": Method(hooks.pab, inner=True, one_batch=True),
    "faster": Method(hooks.faster, inner=True, guided=True, one_batch=True),
    "taylorseer": Method(hooks.taylorseer),
    "mag": Method(hooks.mag),
    "sea": Method(spectral.sea, split=False),
    "dbcache": Method(dual_block.dbcache, split=False, package="cache-dit"),
}
PACKAGES = (dual_block.PACKAGE,)


@dataclass(frozen=True)
class Cached:
    """A cache in effect.

    counter: of what it leaves to compute. library: whose it is, with its version.
    ratios: that MagCache goes by. calibration_s: that they took.
    """

    changes: Changes
    counter: Counter
    library: str
    ratios: tuple[float, ...] = ()
    calibration_s: float = 0.0


def fitted(
    video: VideoPipeline,
    wanted: Cache,
    occasion: Occasion | None = None,
    agree: Total | None = None,
) -> tuple[Cache, float]:
    """The cache with all that it goes by, and the seconds that it took to find out.

    MagCache's ratios are calibrated where the recipe has none: of the denoiser as it is, and before
    it is compiled, because the compiler's time belongs to the first call. occasion: the
    trajectories. agree: as `apply` has it. Raises what `apply` raises.
    """
    _check(video)
    if wanted.kind != "mag" or wanted.ratios:
        return wanted, 0.0
    if occasion is None:
        raise ValueError("MagCache without ratios needs an occasion to calibrate them on")
    began = time.perf_counter()
    found = magnitudes.ratios(video, occasion, wanted.prompts or magnitudes.PROMPTS)
    if agree is not None:
        found = magnitudes.agreed(found, agree, video.pipe._execution_device)
    cache = wanted.model_copy(update={"ratios": found, "prompts": None})
    return cache, time.perf_counter() - began


def apply(
    video: VideoPipeline,
    wanted: Cache,
    steps: int,
    agree: Total | None = None,
    calibration_s: float = 0.0,
) -> Cached:
    """Put the cache on the denoiser, for videos of so many denoise steps.

    It forgets a video as the next one begins. wanted, calibration_s: from `fitted`. agree: adds up
    over the GPUs that share a batch, where what is skipped depends on what they compute. Raises
    Unsupported where diffusers' hooks do not know the denoiser's blocks, none is left to skip, or a
    step is several calls; InputError for ratios of another number of steps.
    """
    import importlib.metadata

    _check(video)
    if wanted.ratios and len(wanted.ratios) != steps:
        raise InputError(
            f"variant.cache.ratios: {len(wanted.ratios)} of them, and a video has {steps} "
            "denoise steps: give one a step, or none to have them calibrated"
        )
    module, method, changes = video.denoiser, CACHES[wanted.kind], Changes("cache")
    counter = Counter(video, method.inner)
    try:
        # diffusers leaves a forward behind where it takes a hook off.
        for layer in module.modules():
            if "forward" not in vars(layer):
                changes.on_undo(functools.partial(vars(layer).pop, "forward", None))
        counter.watch(changes)
        schedule = Schedule(video.pipe, steps)
        begin = method.enable(video, wanted, schedule, changes)
        _begin_anew(video, schedule, begin, changes)
        if agree is not None and wanted.kind == "first_block":
            hooks.decide_together(module, agree, schedule if wanted.last else None)
        counter.watch_calls(module, changes)
    except Exception:
        changes.undo()
        raise
    library = f"{method.package} {importlib.metadata.version(method.package)}"
    return Cached(changes, counter, library, tuple(wanted.ratios or ()), calibration_s)


def _begin_anew(
    video: VideoPipeline, schedule: Schedule, begin: Begin | None, changes: Changes
) -> None:
    """Have every video start without what the one before left, even of one that was cut short.

    diffusers' pipelines reset hooks as a video ends, and only where it does.
    """
    module, seen = video.denoiser, set[str]()
    plain, before = module.cache_context, -1

    def context(name: str, **where: object) -> AbstractContextManager[None]:
        nonlocal before
        step = schedule.step()
        if step < before or (step == before and name in seen) or before < 0:
            seen.clear()  # else the other half of guidance would begin the video once more
            module._reset_stateful_cache()
            if begin is not None:
                begin()
        if step != before:
            seen.clear()
        seen.add(name)
        before = step
        inside: AbstractContextManager[None] = plain(name, **where)
        return inside

    changes.replace(module, "cache_context", context)


def _check(video: VideoPipeline) -> None:
    scheduler = video.pipe.scheduler
    if not hasattr(video.denoiser, "enable_cache"):
        raise Unsupported(UNKNOWN_BLOCKS)
    if getattr(scheduler, "order", 1) > 1:
        raise Unsupported(
            f"cache: a {type(scheduler).__name__} calls the denoiser several times a step, and "
            "caches count calls: choose another generation.scheduler"
        )


def _by(says: Callable[[Method], bool]) -> Callable[[Variant], bool]:
    """Whether a variant has a cache of which this is so."""
    return lambda variant: variant.cache is not None and says(CACHES[variant.cache.kind])


_inner = _by(lambda method: method.inner)
_decides_alone = _by(lambda method: not method.split)


def _calibrates(variant: Variant) -> bool:
    cache = variant.cache
    return cache is not None and cache.kind == "mag" and not cache.ratios


def _has_blocks(_: Variant, model: ModelFacts) -> bool:
    return model.blocks


def _kind(*kinds: str) -> Callable[[Variant], bool]:
    return lambda variant: variant.cache is not None and variant.cache.kind in kinds


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
        _by(lambda method: method.guided),
        always,
        "FasterCache predicts the unconditional half of the batch, which there is with guidance "
        "above 1 only: raise generation.guidance, or choose another cache",
        fits=lambda _, model: model.guided,
    ),
    Rule(
        "caches and separate calls of guidance",
        _by(lambda method: method.one_batch),
        always,
        "cache: diffusers' PAB and FasterCache keep one state for both halves of guidance, which "
        "this family computes in calls of their own: choose taylorseer or first_block",
        fits=lambda _, model: not model.separate_guidance,
    ),
    Rule(
        "DBCache",
        _kind("dbcache"),
        lambda m: dual_block.PACKAGE in m.packages,
        "cache-dit is not installed: pip install --no-deps cache-dit==1.5.3",
    ),
    Rule(
        "MagCache's calibration, offloaded",
        lambda v: v.memory.offload is not None and _calibrates(v),
        never,
        "MagCache is calibrated before anything is offloaded, when text encoder and denoiser are "
        "on two devices: leave out offload, or give variant.cache.ratios, which the record of a "
        "run without offload has",
        fails=False,  # on a CPU both are on one
    ),
    Rule(
        "SeaCache, DBCache and families",
        _kind("sea", "dbcache"),
        always,
        "cache: SeaCache and DBCache are driven here for CogVideoX and Wan alone",
        fits=lambda _, model: model.pipeline in dual_block.PIPELINES,
    ),
    clash(
        "SeaCache, DBCache and several GPUs",
        lambda v: v.parallel is not None and _decides_alone(v),
        "cache: SeaCache and DBCache decide by what a GPU has of a video, so GPUs that share one "
        "would skip different steps: choose first_block, mag or taylorseer",
    ),
    clash(
        "caches inside compiled blocks",
        lambda v: v.compile is not None and _inner(v),
        "PAB and FasterCache hook the attention inside each block: compiled, every block becomes "
        "a program of its own; use taylorseer or first_block, or leave out compile",
    ),
    clash(
        "caches and a model compiled whole",
        lambda v: v.compile is not None and v.cache is not None and v.compile.scope == "model",
        "a cache decides between blocks, which one compiled program cannot: compile with scope "
        "blocks",
    ),
)
