"""Which records may be compared with which, and in what order they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qbench.quality.metrics import catalogue
from qbench.quality.verdict import Candidate, Floor, Judged, judge
from qbench.recipe.schema import Recipe
from qbench.results.record import Record

LOOKED_AT_ALL = 4  # version of the schema from which records have figures of picture and motion


@dataclass(frozen=True)
class Ranking:
    """Records that may be compared: same settings, prompts, weights, hardware and software."""

    machine: str
    records: tuple[Record, ...]
    folders: tuple[Path, ...]
    # Runs of the reference besides the one shown that made the same videos, as shards of a sweep
    # on one machine do: what was compared with them was compared with the one shown.
    twins: frozenset[str] = frozenset()

    @cached_property
    def reference(self) -> Record | None:
        """The record that the others are compared with, if it is here and sound."""
        sound = [r for r in self.records if r.recipe.is_reference and r.status == "ok"]
        return sound[0] if sound else None

    @cached_property
    def measured(self) -> list[Record]:
        """Runs whose videos were compared with this ranking's reference."""
        reference = self.reference
        if reference is None:
            return []
        shown = [r for r in self.records if r.status in ("ok", "invalid") and r is not reference]
        same = {reference.run, *self.twins}
        paired = [r for r in shown if r.reference and r.reference.run in same]
        return [r for r in paired if r.quality or r.status == "invalid"]

    @cached_property
    def floor(self) -> Floor:
        """The reference in other guises, by run."""
        floors = [r for r in self.measured if r.recipe.noise_floor and r.status == "ok"]
        return Floor(
            same_noise={r.run: r.quality for r in floors if not r.recipe.variant.seed_offset},
            other_noise={r.run: r.quality for r in floors if r.recipe.variant.seed_offset},
        )

    @cached_property
    def candidates(self) -> list[Candidate]:
        return [
            Candidate(
                r.run,
                r.quality,
                invalid=r.reason if r.status == "invalid" else "",
                other_noise=r.recipe.variant.seed_offset > 0,
                older=r.schema_version < LOOKED_AT_ALL,
            )
            for r in self.measured
        ]

    @cached_property
    def judged(self) -> dict[str, Judged]:
        """Run -> its verdict, of every run that was compared with this ranking's reference."""
        reference = self.reference
        if reference is None:
            return {}
        margins = catalogue.margins(reference.recipe.quality, reference.quality)
        found = judge(self.candidates, reference.quality, self.floor, margins)
        return {one.name: one for one in found}

    @cached_property
    def differing(self) -> dict[str, frozenset[str]]:
        """Name that several recipes have here -> the fields in which these differ."""
        alike: dict[str, list[Recipe]] = {}
        for record in self.records:
            alike.setdefault(record.recipe.name, []).append(record.recipe)
        found = {}
        for name, recipes in alike.items():
            if len(recipes) > 1:
                each = [_fields(recipe.model_dump()) for recipe in recipes]
                known = set().union(*each)
                found[name] = frozenset(
                    field for field in known if len({repr(one.get(field)) for one in each}) > 1
                )
        return found

    def title(self) -> str:
        first = self.records[0]
        shape = next((r.generation for r in self.records if r.generation), {})
        parts = [first.recipe.model, f"on {first.environment.device_name}"]
        if first.environment.device == "cpu":
            parts.append(f"({first.environment.threads} threads)")
        if shape:
            parts.append(
                f"- {shape['frames']}x{shape['height']}x{shape['width']}, {shape['steps']} steps"
            )
        if limit := first.recipe.measure.memory_limit_gib:
            parts.append(f"- a card of {limit:g} GiB, simulated")
        return " ".join(parts)


def rankings(found: list[tuple[Path, Record]]) -> list[Ranking]:
    """Sort records into rankings; of one recipe run twice the latest counts. Fullest first."""
    groups: dict[tuple[str, ...], dict[tuple[str, str], tuple[Path, Record]]] = {}
    references: dict[tuple[str, ...], list[Record]] = {}
    for path, record in found:
        if record.recipe.is_reference and record.status == "ok":
            references.setdefault(record.fingerprints.ranking(), []).append(record)
        group = groups.setdefault(record.fingerprints.ranking(), {})
        key = (record.recipe.name, record.fingerprints.recipe)
        if key not in group or group[key][1].started < record.started:
            group[key] = (path, record)
    made = []
    for of, group in groups.items():
        rows = sorted(group.values(), key=lambda item: _order(item[1]))
        records = tuple(record for _, record in rows)
        made.append(
            Ranking(
                machine=records[0].environment.machine(),
                records=records,
                folders=tuple(path.parent for path, _ in rows),
                twins=_twins(records, references.get(of, [])),
            )
        )
    return sorted(made, key=lambda ranking: -len(ranking.records))


def _twins(shown: tuple[Record, ...], references: list[Record]) -> frozenset[str]:
    """Runs among `references` whose every figure of every video is that of the one shown."""
    runs = {record.run for record in shown}
    kept = [record for record in references if record.run in runs]
    if not kept or not any(metric.samples for metric in kept[0].quality.values()):
        return frozenset()
    ours = {name: metric.samples for name, metric in kept[0].quality.items()}
    return frozenset(
        other.run
        for other in references
        if other.fingerprints.recipe == kept[0].fingerprints.recipe
        and {name: metric.samples for name, metric in other.quality.items()} == ours
    )


def _order(record: Record) -> tuple[bool, bool, float, float, str]:
    """The reference, then what is sound from fast to slow, then the rest; untimed by quality."""
    seconds = record.video_seconds() or record.step_seconds() or float("inf")
    psnr = record.quality["psnr"].value if "psnr" in record.quality else 0.0
    sound = record.status == "ok"
    return not record.recipe.is_reference, not sound, seconds, -psnr, record.recipe.name


def label(record: Record, ranking: Ranking) -> str:
    """The recipe's name, and what tells it apart from others of that name."""
    name = record.recipe.name
    if name not in ranking.differing:
        return name
    own = _fields(record.recipe.model_dump())
    told = ", ".join(f"{field}={own.get(field)}" for field in sorted(ranking.differing[name]))
    return f"{name} ({told})"


def _fields(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names, as `--set` takes them."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= _fields(value, f"{above}{name}.")
        else:
            found[above + name] = value
    return found
