"""`qbench compare A B`: what is different between two measurements, and whether it is noise.

A comes before, B after. The strongest comparison that the records allow is made, and named:

| how | when | what is in the interval |
| --- | --- | --- |
| turns | one of them is the reference that took turns with the other | drift cancels |
| by way of the reference | both took turns with one reference, under the same software | the same |
| one after the other | else | the spread within both, not the drift between |

Of the last kind a word has a question mark, unless both took turns with a reference and say the
same beside it: then drift of the machine is ruled out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from qbench.decisions import figures, limits
from qbench.decisions.changes import REFUSED, changes
from qbench.decisions.checks import checks, exit_code
from qbench.decisions.compared import DONE, Compared, Pair, Quality, Row, Size, Time
from qbench.decisions.differences import qualities, times
from qbench.decisions.places import Side, side
from qbench.errors import InputError, nearest
from qbench.quality.metrics.catalogue import METRICS
from qbench.results.record import Record


def compare(
    before: Path,
    after: Path,
    across: bool = False,
    fail_if: Sequence[str] = (),
    margins: Sequence[str] = (),
) -> Compared:
    """Compare what lies at two places. margins: `psnr=0.5`, besides those of the recipe.

    Raises InputError where nothing can be compared, or only with `across`.
    """
    asked = [limits.parsed(text) for text in fail_if]
    given = dict(_margin(text) for text in margins)
    one, other = side(before), side(after)
    pairs, only = _matched(one, other)
    for pair in pairs:
        _comparable(pair, across)
    timed, quality = times(pairs), qualities(pairs, given)
    rows = tuple(
        _row(name, pair, one, other, time, figures_)
        for name, pair, time, figures_ in zip(_names(pairs), pairs, timed, quality, strict=True)
    )
    checked = checks(pairs, rows, asked)
    notes = [f"left out: {line}" for line in (*one.unreadable, *other.unreadable)]
    return Compared(
        before=one.place,
        after=other.place,
        rows=rows,
        only_before=only[0],
        only_after=only[1],
        checks=checked,
        notes=tuple(notes),
        exit_code=exit_code(rows, checked, bool(asked)),
    )


def _margin(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    figure = figures.find(name.strip(), f"--margin {text[:60]!r}")
    if figure.kind != "metric" or not equals:
        raise InputError(f"--margin {text[:60]!r}: give a metric and a number, as in psnr=0.5")
    size = figures.number(value, figure.units, "--margin", "psnr=0.5")
    if not size > 0:
        raise InputError(f"--margin {text[:60]!r}: give a number above 0")
    return figure.name, size


# Which with which ---------------------------------------------------------------------------------


def _matched(one: Side, other: Side) -> tuple[list[Pair], tuple[tuple[str, ...], tuple[str, ...]]]:
    """Pairs of equal recipes; of two single runs the two, whatever they are."""
    ours, theirs = _latest(one.records), _latest(other.records)
    if len(ours) == len(theirs) == 1:
        return [_pair(next(iter(ours.values())), next(iter(theirs.values())))], ((), ())
    pairs = [_pair(runs, theirs[key]) for key, runs in ours.items() if key in theirs]
    left = [runs for key, runs in ours.items() if key not in theirs]
    right = [runs for key, runs in theirs.items() if key not in ours]
    for runs in list(left):
        name = runs[-1].recipe.name
        same = [r for r in right if r[-1].recipe.name == name]
        alike = [r for r in left if r[-1].recipe.name == name]
        if len(same) == 1 and len(alike) == 1:
            pairs.append(_pair(runs, same[0]))
            left.remove(runs)
            right.remove(same[0])
    names = [tuple(runs[-1].recipe.name for runs in rest) for rest in (left, right)]
    if not pairs and (both := sorted(set(names[0]) & set(names[1]))):
        raise InputError(
            f"{one.place} and {other.place}: {', '.join(both[:3])}: in both of other models or "
            "settings, and several in one of them: name two runs, or folders with one of a name"
        )
    if not pairs:
        near = nearest(names[0][0], names[1]) if names[0] and names[1] else ""
        raise InputError(
            f"{one.place} and {other.place}: no recipe is in both; "
            f"{names[0][0] if names[0] else 'nothing'} is only in the first{near}"
        )
    pairs.sort(key=lambda pair: (not pair.a.recipe.is_reference, pair.a.recipe.name))
    return pairs, (names[0], names[1])


def _latest(records: Sequence[Record]) -> dict[tuple[str, ...], tuple[Record, ...]]:
    """Recipe, workload and hardware -> its runs, the latest last: that is the one compared."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        prints = record.fingerprints
        key = (
            record.recipe.name, prints.recipe, prints.prompts, prints.model, prints.hardware,
        )  # fmt: skip
        found.setdefault(key, []).append(record)
    return {key: tuple(sorted(runs, key=lambda r: r.started)) for key, runs in found.items()}


def _pair(ours: tuple[Record, ...], theirs: tuple[Record, ...]) -> Pair:
    a, b = ours[-1], theirs[-1]
    one, other = (tuple(r for r in runs if _alike(r, runs[-1])) for runs in (ours, theirs))
    return Pair(a, b, one, other, changes(a, b))


def _alike(one: Record, other: Record) -> bool:
    """Whether both were made by the same software."""
    same = one.fingerprints.software == other.fingerprints.software
    return same and one.environment.commit == other.environment.commit


def _comparable(pair: Pair, across: bool) -> None:
    refused = [change for change in pair.changed if change.kind in REFUSED]
    if refused and not across:
        told = "; ".join(f"{change.kind}: {change}" for change in refused[:3])
        raise InputError(f"{pair.b.recipe.name}: {told}; --across compares them all the same")


# Rows ---------------------------------------------------------------------------------------------


def _names(pairs: Sequence[Pair]) -> list[str]:
    """Of the rows: the recipe's, with what tells it apart where several have one name."""
    told_by = [_told_by(pair.b) for pair in pairs]
    alike: dict[str, list[tuple[str, ...]]] = {}
    for pair, told in zip(pairs, told_by, strict=True):
        alike.setdefault(pair.b.recipe.name, []).append(told)
    differing = {
        name: [len({*column}) > 1 for column in zip(*rows, strict=True)]
        for name, rows in alike.items()
    }
    named = []
    for pair, told in zip(pairs, told_by, strict=True):
        name = pair.b.recipe.name
        names = dict.fromkeys(record.recipe.name for record in (pair.a, pair.b))
        own = list(itertools.compress(told, differing[name]))
        if not own and len(alike[name]) > 1:
            own = [f"recipe {pair.b.fingerprints.recipe}"]
        named.append(" -> ".join(names) + (f" ({', '.join(own)})" if own else ""))
    return named


def _told_by(record: Record) -> tuple[str, ...]:
    """What records of one name in a folder differ in, as a rule."""
    recipe, made = record.recipe, record.generation
    size = "x".join(str(made.get(side)) for side in ("frames", "height", "width"))
    return (
        recipe.model,
        record.environment.device_name,
        f"{size}, {made.get('steps')} steps",
        f"prompts {record.fingerprints.prompts}",
    )


def _row(
    variant: str,
    pair: Pair,
    one: Side,
    other: Side,
    time: Time | None,
    quality: tuple[Quality, ...],
) -> Row:
    a, b = pair.a, pair.b
    sizes = []
    for name in figures.SIZES:
        values = [figures.OWN[name].value(record) for record in (a, b)]
        if any(value is not None for value in values):
            sizes.append(Size(figure=name, before=values[0], after=values[1]))
    dead = f"{b.status}: {b.reason}" if a.status in DONE and b.status not in DONE else ""
    return Row(
        variant=variant,
        before=a.run,
        after=b.run,
        changes=pair.changed,
        time=time,
        quality=quality,
        sizes=tuple(sizes),
        verdict_before=one.verdict(a),
        verdict_after=other.verdict(b),
        dead=dead,
        notes=tuple(_notes(pair, time, quality)),
    )


def _notes(pair: Pair, time: Time | None, quality: tuple[Quality, ...]) -> list[str]:
    said = []
    if pair.a.run == pair.b.run:
        said.append("both are the same run")
    if pair.a.status not in DONE:
        said.append(f"the one before has no figures: {pair.a.status}: {pair.a.reason}")
    if time is not None and time.how == "one after the other":
        if time.over_reference is None:
            said.append("times one after the other: drift of the machine is not in the interval")
        elif time.word.endswith("?"):
            over = time.over_reference
            said.append(
                f"beside the reference's turns it is {over.value:.3f}x "
                f"[{over.low:.3f}, {over.high:.3f}]: what is more, or less, than that is drift of "
                "the machine, or a change that the reference shares"
            )
    if time is None and pair.alive:
        said.append("no time of the same kind in both")
    if any(not q.paired for q in quality):
        said.append("metrics not paired: other prompts, seeds or numbers of videos")
    references = [r.reference.outputs for r in (pair.a, pair.b) if r.reference]
    distances = [q.metric for q in quality if METRICS[q.metric].paired]
    if distances and len(set(references)) > 1:
        said.append(
            f"{', '.join(distances)}: each against its own reference's videos, which differ"
        )
    return said
