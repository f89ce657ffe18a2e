"""Which records may be compared with which, and in what order they are shown."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from qbench import escape
from qbench.quality.floor import Floor
from qbench.quality.metrics import catalogue
from qbench.quality.ratios import SpeedWord, speed_words
from qbench.quality.verdict import Candidate, Judged, judge
from qbench.recipe.files import fields
from qbench.recipe.schema import Recipe
from qbench.results.record import SIZES, Record
from qbench.results.speed import Timing, timing

LABEL = 160  # characters of a name with what tells it apart
Key = tuple[str, str, str]
NAMED = 8  # variants that a note names
# Times as long that the reference takes beside a run as in its own: within 1 % of it in 150 runs on
# GPUs, up to a third above on shared CPUs.
CHANGED_PACE = 1.25
TOLD = 3  # differences that a title names
FIRST = ("measure.unit",)  # of those that tell as much

LOOKED_AT_ALL = 4  # version of the schema from which records have figures of picture and motion


@dataclass(frozen=True)
class Ranking:
    """Records that may be compared: same settings, prompts, weights, hardware and software."""

    machine: str
    records: tuple[Record, ...]
    folders: tuple[Path, ...]
    # The record that the others are compared with, if it is here and sound.
    reference: Record | None
    # Runs of the reference besides the one shown that made the same videos, as shards of a sweep
    # on one machine do: what was compared with them was compared with the one shown.
    twins: frozenset[str]
    foreign: frozenset[str]  # runs that were compared with a reference of another ranking
    other_runs: frozenset[str]  # of this ranking, shown or not
    timings: dict[Key, Timing]
    apart: str = ""  # what tells it apart from others of the same title

    def timing(self, record: Record) -> Timing:
        """How fast a run is, by the rule that every table and chart shows it by."""
        found = self.timings.get(_key(record))  # none of an older run, which is not shown
        return found if found is not None else timing(record, self.reference)

    def speed_word(self, record: Record) -> str:
        """What may be said of a run's speed-up: faster, SLOWER, no difference ..."""
        return self._speed_words.get(_key(record), "")

    @cached_property
    def _speed_words(self) -> dict[Key, SpeedWord]:
        """Corrected for the number of rows."""
        words = speed_words([self.timing(record).speed_up for record in self._whole])
        return {_key(record): word for record, word in zip(self._whole, words, strict=True)}

    @cached_property
    def _whole(self) -> list[Record]:
        """Runs that came to their end, whatever their videos are."""
        return [record for record in self.records if record.status in ("ok", "invalid")]

    def notes(self) -> list[str]:
        """What a reader must know about who was compared with whom."""
        found = []
        lost: dict[tuple[str, str], list[str]] = {}
        for record in self._whole:
            if record.reference is None:
                continue
            run = record.reference.run
            if record.run in self.foreign:
                kind = "a reference of other settings, so there is no speed-up and no verdict"
            elif record.run in self.judged or not (record.quality or record.status == "invalid"):
                continue
            elif run in self.other_runs:
                kind = "another run of the reference, which made other videos: no verdict"
            elif self.reference is None:
                kind = "a run of the reference that is not here: no verdict"
            else:
                kind = (
                    "an earlier run of the reference, which is not here: no verdict until run anew"
                )
            lost.setdefault((run, kind), []).append(label(record, self))
        for (run, kind), names in lost.items():
            found.append(f"{_listed(names)}: compared with {run}, {kind}.")
        if alike := [label(r, self) for r in self._whole if self._drifts(r)]:
            found.append(
                f"Neighbouring turns are alike: {_listed(alike)}. Turns that drift together amount "
                "to few independent ones, so more of them are needed (measure.repeats)."
            )
        paces = [(label(r, self), 1 / self.timing(r).scale) for r in self._whole]
        paced = [f"{name} ({x:.2f}x)" for name, x in paces if max(x, 1 / x) > CHANGED_PACE]
        if paced:
            found.append(
                f"The machine changed pace: the reference's turns beside {_listed(paced)} took so "
                "many times as long as its own run. Speed-ups are of those turns and seconds "
                "follow them; first calls and energy are as they were measured."
            )
        return found

    def _drifts(self, record: Record) -> bool:
        """Whether its turns amount to less than half of their number."""
        ratio = self.timing(record).speed_up
        if ratio is None or not ratio.interleaved:
            return False
        return bool(ratio.n and ratio.effective_n and ratio.effective_n < ratio.n / 2)

    @cached_property
    def commits(self) -> frozenset[str]:
        """The states of the source tree that the records were measured with."""
        return frozenset(record.environment.commit or "unknown" for record in self.records)

    @cached_property
    def measured(self) -> list[Record]:
        """Runs whose videos were compared with this ranking's reference."""
        reference = self.reference
        if reference is None:
            return []
        shown = [r for r in self._whole if r is not reference and r.run not in self.foreign]
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
                each = [fields(recipe.model_dump()) for recipe in recipes]
                known = set().union(*each)
                found[name] = frozenset(
                    field for field in known if len({repr(one.get(field)) for one in each}) > 1
                )
        return found

    def title(self) -> str:
        first = self.records[0]
        shape = next((r.generation for r in self.records if r.generation.keys() >= SIZES), {})
        parts = [escape.clipped(first.recipe.model, LABEL), f"on {first.environment.device_name}"]
        if first.environment.device == "cpu":
            parts.append(f"({first.environment.threads} threads)")
        if shape:
            parts.append(
                f"- {shape['frames']}x{shape['height']}x{shape['width']}, {shape['steps']} steps"
            )
        if limit := first.recipe.measure.memory_limit_gib:
            parts.append(f"- a card of {limit:g} GiB, simulated")
        if self.apart:
            parts.append(f"- {escape.clipped(self.apart, LABEL)}")
        return " ".join(parts)


def _key(record: Record) -> Key:
    """Tells the rows of a ranking apart, even where two records claim to be the same run."""
    return record.run, record.recipe.name, record.fingerprints.recipe


def rankings(found: list[tuple[Path, Record]]) -> list[Ranking]:
    """Sort records into rankings; of one recipe run twice the latest counts. Fullest first.

    Of several runs of the reference the one counts that most variants were compared with, so that
    another run of it in the same folder takes no verdict away.
    """
    groups: dict[tuple[str, ...], list[tuple[Path, Record]]] = {}
    ranked_in: dict[str, tuple[str, ...]] = {}
    for path, record in found:
        of = record.fingerprints.ranking()
        groups.setdefault(of, []).append((path, record))
        ranked_in[record.run] = of
    made = []
    for of, group in groups.items():
        asked = {record.reference.run for _, record in group if record.reference}
        made.append(_ranking(group, {run for run in asked if ranked_in.get(run, of) != of}))
    return _told_apart(sorted(made, key=lambda ranking: -len(ranking.records)))


def _told_apart(made: list[Ranking]) -> list[Ranking]:
    """The rankings, of which those that would have one title say what they differ in."""
    same: dict[str, list[int]] = {}
    for i, ranking in enumerate(made):
        same.setdefault(ranking.title(), []).append(i)
    told = list(made)
    for places in same.values():
        if len(places) > 1:
            facts = [_shared(made[i].records[0]) for i in places]
            names = _telling(facts)
            for i, own in zip(places, facts, strict=True):
                apart = ", ".join(f"{name}={own.get(name)}" for name in names)
                told[i] = replace(made[i], apart=apart)
    return told


def _telling(shared: list[dict[str, object]]) -> list[str]:
    """The fields that tell these apart: each the first of those that tell most of them."""
    names = sorted(dict.fromkeys(itertools.chain(*shared)), key=lambda name: name not in FIRST)
    found: list[str] = []

    def told(*fields: str) -> int:
        return len({repr([facts.get(field) for field in fields]) for facts in shared})

    while len(found) < TOLD and told(*found) < len(shared):
        best = max(names, key=lambda name: told(*found, name))
        if told(*found, best) == told(*found):
            break
        found.append(best)
    return found


def _shared(record: Record) -> dict[str, object]:
    """All that a ranking's records have in common, settings first."""
    prints, place = record.fingerprints, record.environment
    return {
        **fields(record.recipe.measured_settings()),
        "prompts": prints.prompts,
        "weights": prints.model,
        "metric networks": prints.networks,
        **fields(place.hardware()),
        **fields(place.software()),
    }


def _ranking(group: list[tuple[Path, Record]], elsewhere: set[str]) -> Ranking:
    """One ranking. `elsewhere`: runs of references that other settings were measured with."""
    alike = _alike([record for _, record in group])
    asked: Counter[str] = Counter()
    latest: dict[tuple[str, str], Record] = {}
    for _, record in group:
        key = (record.recipe.name, record.fingerprints.recipe)
        if key not in latest or latest[key].started < record.started:
            latest[key] = record
    for record in latest.values():
        if record.reference and not record.recipe.is_reference:
            for run in alike.get(record.reference.run, (record.reference.run,)):
                asked[run] += 1

    def worth(record: Record) -> tuple[bool, int, str]:
        sound = record.recipe.is_reference and record.status == "ok"
        return sound and asked[record.run] > 0, asked[record.run] if sound else 0, record.started

    chosen: dict[tuple[str, str], tuple[Path, Record]] = {}
    for path, record in group:
        key = (record.recipe.name, record.fingerprints.recipe)
        if key not in chosen or worth(chosen[key][1]) < worth(record):
            chosen[key] = (path, record)
    sound = [r for _, r in chosen.values() if r.recipe.is_reference and r.status == "ok"]
    reference = max(sound, key=worth, default=None)
    foreign = frozenset(
        record.run
        for _, record in chosen.values()
        if record.reference and record.reference.run in elsewhere
    )
    timings = {
        _key(record): timing(record, reference, comparable=record.run not in foreign)
        for _, record in chosen.values()
    }
    rows = sorted(
        chosen.values(), key=lambda item: _order(item[1], reference, timings[_key(item[1])])
    )
    return Ranking(
        machine=rows[0][1].environment.machine(),
        records=tuple(record for _, record in rows),
        folders=tuple(path.parent for path, _ in rows),
        reference=reference,
        twins=frozenset(alike.get(reference.run, ())) if reference else frozenset(),
        foreign=foreign,
        other_runs=frozenset(record.run for _, record in group),
        timings=timings,
    )


def _alike(records: list[Record]) -> dict[str, tuple[str, ...]]:
    """Run of the reference -> those with its recipe whose every figure of every video is equal."""
    groups: dict[object, list[str]] = {}
    for record in records:
        if not record.recipe.is_reference or record.status != "ok":
            continue
        figures = {name: metric.samples for name, metric in sorted(record.quality.items())}
        if any(figures.values()):
            samples = tuple((name, tuple(values or ())) for name, values in figures.items())
            key = (record.recipe.name, record.fingerprints.recipe, samples)
            groups.setdefault(key, []).append(record.run)
    return {run: tuple(group) for group in groups.values() for run in group}


def _order(
    record: Record, reference: Record | None, shown: Timing
) -> tuple[bool, bool, bool, float, float, str]:
    """The reference, then what is sound from fast to slow, then the rest; untimed by quality."""
    ratio = shown.speed_up
    slowness = 1 / ratio.value if ratio and ratio.value > 0 else shown.seconds or float("inf")
    psnr = record.quality["psnr"].value if "psnr" in record.quality else 0.0
    sound = record.status == "ok"
    return record is not reference, not sound, ratio is None, slowness, -psnr, record.recipe.name


def _listed(names: list[str]) -> str:
    shown = names[:NAMED]
    return ", ".join(shown) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def label(record: Record, ranking: Ranking) -> str:
    """The recipe's name, and what tells it apart from others of that name."""
    name = record.recipe.name
    if name not in ranking.differing:
        return name
    own = fields(record.recipe.model_dump())
    told = ", ".join(f"{field}={own.get(field)}" for field in sorted(ranking.differing[name]))
    return escape.clipped(f"{name} ({told})", LABEL)
