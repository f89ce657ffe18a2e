"""What is different between two records, named: recipe, workload, prompts, hardware, software."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from qbench.errors import shortened
from qbench.results.record import Record, Strict

Kind = Literal["recipe", "workload", "prompts", "hardware", "software", "code", "measuring"]
REFUSED: tuple[Kind, ...] = ("hardware", "prompts", "workload")  # without --across
LABELS = {"name", "about", "reference", "noise_floor", "expects", "device"}
# What is not the same if a field of a recipe is not: its own, or one of its sections'.
KINDS: dict[str, Kind] = {
    "model": "workload",
    "weights": "workload",
    "weights_variant": "workload",
    "outliers": "workload",
    "generation": "workload",
    "measure.unit": "workload",
    "variant": "recipe",
    "measure": "measuring",
    "quality": "measuring",
}


class Change(Strict):
    """One thing that is not the same in both; null where one of them lacks it."""

    kind: Kind
    name: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        return f"{self.name} {_shown(self.before)} -> {_shown(self.after)}"


def _shown(value: str | None) -> str:
    return "none" if value is None else shortened(value, 60)


def changes(before: Record, after: Record) -> tuple[Change, ...]:
    """All of them, what forbids a comparison first."""
    found = [
        *_hardware(before, after),
        *_prompts(before, after),
        *_recipe(before, after),
        *_software(before, after),
    ]
    order = [*REFUSED, "recipe", "code", "software", "measuring"]
    return tuple(sorted(found, key=lambda change: order.index(change.kind)))


def software_changes(before: Record, after: Record) -> tuple[Change, ...]:
    """Only libraries, driver, interpreter, environment variables and qbench's own code."""
    return tuple(_software(before, after))


def _hardware(a: Record, b: Record) -> list[Change]:
    ours, theirs = a.environment.hardware(), b.environment.hardware()
    ours |= {"card simulated, GiB": a.recipe.measure.memory_limit_gib}
    theirs |= {"card simulated, GiB": b.recipe.measure.memory_limit_gib}
    return _differing("hardware", ours, theirs)


def _prompts(a: Record, b: Record) -> list[Change]:
    if a.fingerprints.prompts == b.fingerprints.prompts:
        return []
    told = [
        f"{r.recipe.prompts.set or 'the set of ' + r.recipe.model} ({r.fingerprints.prompts})"
        for r in (a, b)
    ]
    return [Change(kind="prompts", name="prompts", before=told[0], after=told[1])]


def _recipe(a: Record, b: Record) -> list[Change]:
    found = []
    for name, ours, theirs in _leaves(a.recipe.model_dump(), b.recipe.model_dump()):
        if name in LABELS or name.startswith("prompts.") or name == "measure.memory_limit_gib":
            continue
        if name.startswith("generation."):  # what a recipe leaves to the model is in the record
            ours, theirs = (_generated(r, name, v) for r, v in ((a, ours), (b, theirs)))
            if ours == theirs:
                continue
        kind = KINDS[name if name in KINDS else name.partition(".")[0]]
        found.append(Change(kind=kind, name=name, before=_text(ours), after=_text(theirs)))
    one, other = a.fingerprints, b.fingerprints
    if one.model != other.model:
        name = "fingerprint of the weights"
        found.append(Change(kind="workload", name=name, before=one.model, after=other.model))
    if one.networks != other.networks:
        name = "fingerprint of the metrics' networks"
        found.append(Change(kind="measuring", name=name, before=one.networks, after=other.networks))
    known = a.generation and b.generation  # a run that did not come to it has none
    if known and not any(change.kind == "workload" for change in found):  # left to defaults
        found += _differing("workload", dict(a.generation), dict(b.generation), "generation.")
    return found


def _generated(record: Record, name: str, value: object) -> object:
    return record.generation.get(name.removeprefix("generation."), value)


def _leaves(
    ours: dict[str, object], theirs: dict[str, object], above: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Dotted name and both values of each field that differs; an axis that one lacks as a whole."""
    for name in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(name), theirs.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _leaves(a, b, f"{above}{name}.")
        elif a != b:
            yield f"{above}{name}", a, b


def _software(a: Record, b: Record) -> list[Change]:
    one, other = a.environment, b.environment
    found = _differing("software", dict(one.libraries), dict(other.libraries))
    for name in ("python", "cuda", "driver"):
        found += _differing("software", {name: getattr(one, name)}, {name: getattr(other, name)})
    found += _differing("software", dict(one.variables), dict(other.variables))
    for name, words in (("qbench", "qbench"), ("commit", "commit"), ("code", "measuring code")):
        found += _differing("code", {words: getattr(one, name)}, {words: getattr(other, name)})
    return found


def _differing(
    kind: Kind, ours: dict[str, object], theirs: dict[str, object], above: str = ""
) -> list[Change]:
    return [
        Change(
            kind=kind, name=f"{above}{name}", before=_text(ours.get(name)),
            after=_text(theirs.get(name)),
        )
        for name in dict.fromkeys([*ours, *theirs])
        if _text(ours.get(name)) != _text(theirs.get(name))
    ]  # fmt: skip


def _text(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, dict):  # as in a recipe, without what is left at its default
        said = {k: v for k, v in value.items() if v not in (None, False, [], {})}
        return "{" + ", ".join(f"{k}: {v}" for k, v in said.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
