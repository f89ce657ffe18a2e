"""Denoisers that left the Python model: exported, built, and put back behind the same interface.

An engine is one file here, of the name that recipes use; docs/extending/engine.md says how.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines.base import engine
from qbench.optimizations.rules import Rule, always
from qbench.recipe.choices import ENGINES

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.pipelines.base import VideoPipeline
    from qbench.pipelines.values import Conditioning, Resolved
    from qbench.recipe.schema import Recipe

__all__ = ["SPARED", "build", "packages", "rules"]

# Of the build that an earlier one had spent; negative, of the start of a process of its own. The
# record counts the build as if neither were.
SPARED = "engine_spared_s"
PARITY_STEPS = 4  # of a short schedule over the whole range, on which parity is checked

RULES: tuple[Rule, ...] = (
    Rule(
        "engines and the denoiser",
        lambda v: v.engine is not None,
        always,
        "engine: the denoiser of this family is not exported yet",
        fits=lambda _, model: model.exports,
    ),
)


def rules() -> tuple[Rule, ...]:
    """What engines need, all of them."""
    return (*RULES, *(rule for name in ENGINES for rule in engine(name).RULES))


def packages() -> tuple[str, ...]:
    """The packages that rules of engines ask for, each once."""
    return tuple(dict.fromkeys(one for name in ENGINES for one in engine(name).PACKAGES))


def build(
    video: VideoPipeline,
    run: Resolved,
    conditioning: Conditioning,
    latents: Tensor,
    recipe: Recipe,
    work: Path,
) -> dict[str, float]:
    """Build the engine of the recipe's variant in `work`, check it, and put it into the pipeline.

    conditioning, latents: of one video. The inputs that the engine is built for and checked on are
    those that the pipeline itself passes in its loop for them.
    Returns facts for the record: the parity with the module, and the seconds that the build took.
    """
    from qbench.engines import static_seen
    from qbench.engines.denoiser import EngineDenoiser
    from qbench.engines.inputs import interface, signature
    from qbench.engines.parity import by_own_rules, parity
    from qbench.pipelines import specs

    variant = recipe.variant
    if variant.engine is None:
        raise ValueError("the variant has no engine to build")
    module, kind = video.denoiser, engine(variant.engine)
    steps = video.captured(run, conditioning, latents, steps=PARITY_STEPS)
    calls = [call for step in steps for call in step]
    built_for = signature(video, run, conditioning, latents)
    example = built_for.tensors((), calls[0])
    work.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    model = specs.find(recipe.model)
    seen = static_seen.along_trajectories(video, run, recipe, model)
    bound = kind.write(video, built_for, example, variant, work, seen)
    facts = {"engine_build_s": time.perf_counter() - began + bound.spared_s}
    if bound.spared_s:
        facts[SPARED] = bound.spared_s
    written = interface(recipe, module, built_for, example, bound)
    stored = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    built = EngineDenoiser(
        module, built_for, kind.open(work, module, written), stored, written.inputs
    )
    facts |= parity(module, built, calls, exact=not by_own_rules(variant))
    video.denoiser = built
    return facts
