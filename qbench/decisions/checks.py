"""The limits of a comparison, held against its rows."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from qbench.decisions import limits
from qbench.decisions.compared import Check, Pair, Row
from qbench.decisions.differences import over_reference, samples_pair
from qbench.decisions.figures import Figure
from qbench.decisions.limits import Limit
from qbench.quality.means import LEAST
from qbench.quality.ratios import speed_up


def checks(pairs: Sequence[Pair], rows: Sequence[Row], asked: Sequence[Limit]) -> tuple[Check, ...]:
    """Bounds are at 2.5 %, over the number of figures that are held against a limit."""
    items = [(pair, row, limit) for pair, row in zip(pairs, rows, strict=True) for limit in asked]
    measured = [item for item in items if item[0].alive and _has(*item)]
    chance = limits.one_sided(len(measured))
    found = []
    for pair, row, limit in items:
        if not pair.alive:
            continue
        if not _has(pair, row, limit):
            said = f"no {limit.figure.name} in both records"
            found.append(_check(row, limit, limits.Answer("not measured", said)))
            continue
        answers = [_answer(pair, row, limit, change, chance) for change in limit.changes]
        found.append(_check(row, limit, _together(answers)))
    return tuple(found)


def _check(row: Row, limit: Limit, answer: limits.Answer) -> Check:
    return Check(
        variant=row.variant, limit=limit.text, result=answer.result, said=answer.said,
        needed=answer.needed,
    )  # fmt: skip


def _together(answers: Sequence[limits.Answer]) -> limits.Answer:
    """With `and`: beyond all of them, or within one of them."""
    said = ", ".join(answer.said for answer in answers)
    results = {answer.result for answer in answers}
    result: limits.Result = "undecided"
    if results == {"FAILS"}:
        result = "FAILS"
    elif "passes" in results:
        result = "passes"
    counts = [a.needed for a in answers if a.result == "undecided"]
    needed = None if None in counts else max((c for c in counts if c), default=None)
    return limits.Answer(result, said, needed if result == "undecided" else None)


def _has(pair: Pair, row: Row, limit: Limit) -> bool:
    figure = limit.figure
    if figure.name in ("latency", "step"):
        return row.time is not None and row.time.figure == figure.name
    if figure.name == "speedup":
        return row.time is not None and over_reference(pair) is not None
    return figure.value(pair.a) is not None and figure.value(pair.b) is not None


def _answer(
    pair: Pair, row: Row, limit: Limit, change: limits.Change, chance: float
) -> limits.Answer:
    figure = limit.figure
    if row.time is not None and figure.name in ("latency", "step"):
        return limits.of_ratio(change, row.time.speed, row.time.before_s, figure, chance)
    if figure.name == "speedup":
        over = over_reference(pair)
        assert over is not None
        return limits.of_ratio(change, over, 1.0, figure, chance)
    if figure.kind in ("seconds", "joules"):
        return _of_runs(pair, figure, change, chance)
    before, after = figure.value(pair.a) or 0.0, figure.value(pair.b) or 0.0
    if figure.kind == "bytes":
        return limits.of_single(change, before, after, figure)
    ours, theirs = figure.samples(pair.b), figure.samples(pair.a)
    if min(len(ours), len(theirs)) < LEAST:
        return limits.Answer("undecided", f"{before:.4g} to {after:.4g}, without an interval")
    return limits.of_metric(
        change, ours, theirs, figure, chance, samples_pair(pair.a, pair.b, figure.name)
    )


def _of_runs(pair: Pair, figure: Figure, change: limits.Change, chance: float) -> limits.Answer:
    """A first call is one sample a run: several runs of each make an interval."""
    if figure.name == "energy":
        ours, theirs = figure.samples(pair.b), figure.samples(pair.a)
    else:
        ours, theirs = (
            [value for run in runs for value in figure.samples(run)]
            for runs in (pair.runs_b, pair.runs_a)
        )
    few = min(len(ours), len(theirs))
    if few < LEAST or min(*ours, *theirs) <= 0:
        texts = " to ".join(figure.text(median(x)) for x in (theirs, ours))
        return limits.Answer("undecided", f"{texts}, n = {few}", LEAST)
    return limits.of_ratio(change, speed_up(theirs, ours), median(theirs), figure, chance)


def exit_code(rows: Sequence[Row], checks: Sequence[Check], asked: bool) -> int:
    if not asked:
        return 0
    if any(check.result == "FAILS" for check in checks) or any(row.dead for row in rows):
        return 1
    wanted = {check.limit for check in checks}
    told = {check.limit for check in checks if check.result != "not measured"}
    return 2 if wanted - told or not checks else 0
