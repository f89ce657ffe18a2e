"""The noise floors that verdicts rest on: the reference in other guises, where it has none yet."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from qbench.recipe.schema import Compile, Recipe, Variant, Verdict
from qbench.results.record import Record

FEWEST = 8  # prompts below which no verdict would settle, floor or not
LIMIT_S = 600.0  # what all floors of a reference may take together to be run unasked
COMPILING_S = 60.0


def wanted(record: Record, others: Iterable[Recipe]) -> bool:
    """Whether verdicts will be given that need the floors of this run of a reference."""
    reference = record.recipe
    judged = [
        recipe
        for recipe in others
        if recipe.reference == reference.name and not recipe.is_reference and not recipe.noise_floor
    ]
    return bool(judged) and record.videos >= FEWEST


def missing(reference: Recipe, others: Iterable[Recipe], device: str) -> list[Recipe]:
    """The floors that are not among the others: another seed, another kernel, compiled."""
    variant = reference.variant
    guises: dict[str, tuple[Variant, str, Verdict]] = {
        "seed": (
            variant.model_copy(update={"seed_offset": 1_000_000}),
            "from other noise",
            "drift",
        )
    }
    if not variant.left_python:
        if variant.attention != "math":
            math = variant.model_copy(update={"attention": "math"})
            guises["kernel"] = (math, "with another attention kernel", "indistinguishable")
        if variant.compile is None and (device != "cpu" or _compiler()):
            compiled = variant.model_copy(update={"compile": Compile()})
            guises["compiled"] = (compiled, "compiled", "indistinguishable")
    there = [r.variant for r in others if r.noise_floor and r.reference == reference.name]
    return [
        reference.model_copy(
            update={
                "name": f"floor/{kind}",
                "about": f"Noise floor: the reference {how}",
                "reference": reference.name,
                "noise_floor": True,
                "expects": expects,
                "variant": guise,
            }
        )
        for kind, (guise, how, expects) in guises.items()
        if guise not in there
    ]


def affordable(
    floors: list[Recipe], reference: Record, limit_s: float = LIMIT_S
) -> tuple[list[Recipe], float]:
    """Those that fit within `limit_s` together, the cheapest first, and what all would take."""
    video = reference.latency.median if reference.latency else 0.0
    each = video * (reference.videos + reference.recipe.measure.warmup + 1)
    chosen, spent, total = [], 0.0, 0.0
    for floor in floors:
        cost = each + (COMPILING_S if floor.variant.compile else 0.0)
        total += cost
        if spent + cost <= limit_s:
            chosen.append(floor)
            spent += cost
    return chosen, total


def _compiler() -> bool:
    return any(map(shutil.which, ("g++", "clang++", "c++")))
