"""A comparison as lines for a terminal, and as Markdown for a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from qbench import escape
from qbench.decisions import figures
from qbench.decisions.changes import Change
from qbench.decisions.compared import Check, Compared, Quality, Row, Size, Time
from qbench.quality.ratios import Ratio
from qbench.report import tables

Item = TypeVar("Item")
CHANGES = 12  # that are named of one row
RESULT = {0: "passes", 1: "regression", 2: "cannot be told from these records"}


def lines(made: Compared) -> list[str]:
    """Plain text; what comes from records is not escaped yet."""
    common = _common(made.rows)
    said = [f"before: {made.before}", f"after:  {made.after}"]
    if common:
        said.append(f"changed: {_listed(common)}")
    elif not any(row.changes for row in made.rows):
        said.append("changed: nothing that the records know of")
    shared = _in_every([row.notes for row in made.rows])
    for row in made.rows:
        own = row.model_copy(update={"notes": [n for n in row.notes if n not in shared]})
        said += [row.variant, *(f"  {line}" for line in _row(own, common))]
    for place, names in (("before", made.only_before), ("after", made.only_after)):
        if names:
            said.append(f"only {place}: {', '.join(names)}")
    said += [f"note: {note}" for note in (*shared, *made.notes)]
    if made.checks or made.exit_code:
        said += [f"{check.result:<12} {_check(check)}" for check in made.checks]
        said += [f"FAILS        {row.variant}: {row.dead}" for row in made.rows if row.dead]
        said.append(f"result: {RESULT[made.exit_code]}")
    return said


def _row(row: Row, common: Sequence[Change]) -> list[str]:
    own = [change for change in row.changes if change not in common]
    found = [f"changed: {_listed(own)}"] if own else []
    if row.dead:
        return [*found, row.dead, *(f"note: {note}" for note in row.notes)]
    if row.time:
        found.append(_time(row.time))
    words: dict[str, list[str]] = {}
    for q in row.quality:
        words.setdefault(q.word, []).append(_quality(q))
    found += [f"{word}: {', '.join(items)}" for word, items in words.items()]
    if sizes := [_size(size) for size in row.sizes]:
        found.append("; ".join(sizes))
    if row.verdict_before or row.verdict_after:
        found.append(f"verdict {_arrow(row.verdict_before, row.verdict_after)}")
    return [*found, *(f"note: {note}" for note in row.notes)]


def _time(time: Time) -> str:
    before, after = tables.time_text(time.before_s), tables.time_text(time.after_s)
    return f"{time.figure} {before} -> {after}: {time.word}, {ratio_text(time.speed)} ({time.how})"


def ratio_text(ratio: Ratio) -> str:
    if ratio.n is not None and ratio.n < tables.FEW:
        return f"{ratio.value:.2f}x (n = {ratio.n})"
    ends, digits = (ratio.value, ratio.low, ratio.high), 2
    while digits < 4 and any(float(f"{end:.{digits}f}") == 1 for end in ends):
        digits += 1
    value, low, high = (f"{end:.{digits}f}" for end in ends)
    return f"{value}x [{low}, {high}]"


def _quality(q: Quality) -> str:
    text = f"{q.metric} {q.before:.4g} -> {q.after:.4g}"
    if q.low is not None and q.high is not None:
        text += f" (gain {q.gain:+.2g} [{q.low:+.2g}, {q.high:+.2g}]"
        text += f", margin {q.margin:.2g})" if q.margin else ")"
    return text


def _size(size: Size) -> str:
    figure = figures.OWN[size.figure]
    name = {"size": "weights", "first_call": "first call"}.get(size.figure, size.figure)
    return f"{name} {_arrow(figure.text(size.before), figure.text(size.after))}"


def _arrow(before: str | None, after: str | None) -> str:
    one, other = before or "none", after or "none"
    return one if one == other else f"{one} -> {other}"


def _check(check: Check) -> str:
    text = f"{check.variant}: {check.limit}: {check.said}"
    if check.result == "undecided":
        more = (
            f"about {check.needed} of each would tell"
            if check.needed
            else "no number of samples can be named that would tell"
        )
        text += f"; {more}"
    return text


def _common(rows: Sequence[Row]) -> list[Change]:
    return _in_every([row.changes for row in rows])


def _in_every(rows: Sequence[Sequence[Item]]) -> list[Item]:
    """What stands in every row is said once."""
    count = Counter(item for row in rows for item in row)
    return [item for item in count if count[item] == len(rows)] if len(rows) > 1 else []


def _listed(changes: Sequence[Change]) -> str:
    shown = [f"{change.kind}: {change}" for change in changes[:CHANGES]]
    more = [f"and {len(changes) - CHANGES} more"] if len(changes) > CHANGES else []
    return "; ".join([*shown, *more])


# Markdown -----------------------------------------------------------------------------------------


def markdown(made: Compared) -> str:
    """One table, what changed, and the limits: as a comment to a pull request."""
    common = _common(made.rows)
    shown = common or [change for row in made.rows for change in row.changes]
    parts = [f"### qbench: {_title(made)}", ""]
    if shown:
        parts += [f"Changed: {escape.markdown(_listed(list(dict.fromkeys(shown))))}.", ""]
    head = ("variant", "time", "speed (95 %)", "", "quality", "peak memory", "verdict")
    parts += [tables.grid(head, [_cells(row) for row in made.rows]), ""]
    if made.checks or any(row.dead for row in made.rows):
        checks: list[Sequence[str]] = [
            (escape.markdown(c.variant), escape.code(c.limit), c.result, escape.markdown(_told(c)))
            for c in made.checks
        ]
        parts += [tables.grid(("variant", "limit", "result", ""), checks), ""]
    shared = _in_every([row.notes for row in made.rows])
    own = [f"{row.variant}: {n}" for row in made.rows for n in row.notes if n not in shared]
    notes = dict.fromkeys([*shared, *own, *made.notes])
    for place, names in (("before", made.only_before), ("after", made.only_after)):
        if names:
            notes[f"only {place}: {', '.join(names)}"] = None
    parts += [f"- {escape.markdown(escape.clipped(note, 500))}" for note in notes]
    return "\n".join(parts).rstrip() + "\n"


def _told(check: Check) -> str:
    return _check(check).removeprefix(f"{check.variant}: {check.limit}: ")


def _title(made: Compared) -> str:
    if made.checks or made.exit_code:
        return RESULT[made.exit_code]
    slower = sum(1 for row in made.rows if row.time and row.time.word == "slower")
    faster = sum(1 for row in made.rows if row.time and row.time.word == "faster")
    return f"{len(made.rows)} compared, {faster} faster, {slower} slower"


def _cells(row: Row) -> Sequence[str]:
    name = escape.markdown(row.variant)
    if row.dead:
        return (name, *["-"] * 5, escape.markdown(escape.clipped(row.dead, 200)))
    time, speed, word = "-", "-", "-"
    if row.time:
        shown = (tables.time_text(row.time.before_s), tables.time_text(row.time.after_s))
        time, speed, word = " -> ".join(shown), ratio_text(row.time.speed), row.time.word
    told = [
        f"{q.metric} {q.word}" for q in row.quality if q.word in ("worse", "better", "equivalent")
    ]
    peak = next((_size(s).removeprefix("peak ") for s in row.sizes if s.figure == "peak"), "-")
    verdict = _arrow(row.verdict_before, row.verdict_after)
    return (name, time, speed, word, escape.markdown(", ".join(told) or "-"), peak, verdict)
