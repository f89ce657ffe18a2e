"""`--fail-if`: limits of what may become worse, and whether two records are beyond them.

    FIGURE CHANGE [and CHANGE ...]        latency +5% and +0.05s        psnr -0.5        peak +1GiB

A limit is passed over only where it is for certain: each bound is one-sided, at 2.5 % over the
number of checks made. With `and` all of the changes have to be beyond their limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qbench.decisions import figures
from qbench.decisions.figures import Figure
from qbench.errors import InputError
from qbench.quality.comparison import Comparison, compare, compare_unpaired, pairs_needed
from qbench.quality.means import ALPHA, LEAST, difference, moments, student_quantile
from qbench.quality.metrics.catalogue import METRICS
from qbench.quality.ratios import Ratio

Result = Literal["passes", "FAILS", "undecided", "not measured"]
MOST = 1_000_000  # samples; what would need more is said to need more
POWER = 0.8
EXAMPLE = "'latency +5% and +0.05s' or 'psnr -0.5'"


@dataclass(frozen=True)
class Change:
    """How much worse is too much: a share of the figure before, or an amount in its base unit."""

    size: float
    of: Literal["share", "unit"]
    text: str


@dataclass(frozen=True)
class Limit:
    """One `--fail-if`."""

    figure: Figure
    changes: tuple[Change, ...]
    text: str


@dataclass(frozen=True)
class Answer:
    """What one change of one limit comes to. needed: samples that would decide it."""

    result: Result
    said: str
    needed: int | None = None


def parsed(text: str) -> Limit:
    """Raises InputError, in one line with what is wrong and what would be right."""
    option = f"--fail-if {text[:80]!r}"
    word, _, rest = text.strip().partition(" ")
    if not word or not rest.strip():
        raise InputError(f"{option}: name a figure and a change, as in {EXAMPLE}")
    figure = figures.find(word, option)
    parts = re.split(r"\s*\band\b\s*", rest.strip())
    return Limit(figure, tuple(_change(part, figure, option) for part in parts), text.strip())


def _change(part: str, figure: Figure, option: str) -> Change:
    sign = {"higher": "-", "lower": "+", "zero": "+"}[figure.better]
    compact = part.replace(" ", "")
    if compact[:1] not in ("+", "-"):
        raise InputError(f"{option}: {part[:40]!r} has no sign; a loss of {figure.name} is {sign}")
    if compact[0] != sign:
        better = {"+": "a higher one", "-": "a lower one"}[compact[0]]
        raise InputError(f"{option}: {better} is no loss of {figure.name}; write {sign}")
    if figure.better == "zero" and compact.endswith("%"):
        raise InputError(f"{option}: {figure.name} is best at 0, of which there is no share")
    units = {"%": 0.01} | figure.units
    value = figures.number(compact, units, option, "+5%")
    return Change(abs(value), "share" if compact.endswith("%") else "unit", compact)


# Ratios of times and energies ---------------------------------------------------------------------


def of_ratio(limit: Change, speed: Ratio, before: float, figure: Figure, chance: float) -> Answer:
    """speed: before over after, so above 1 is better. before: the median that a share is of."""
    low, high = speed.bounds(chance)
    few = speed.n is not None and speed.n < LEAST
    # How many times as much the figure is: what bounds the speed from above bounds this from below.
    values = [1 / x if x > 0 else math.inf for x in (high, speed.value, low)]
    if figure.better == "higher":  # a share lost of a speed-up
        values = [2 - x for x in (high, speed.value, low)]
    scale = 1.0 if limit.of == "share" else before
    least, value, most = ((x - 1) * scale for x in values)
    if low <= 0:
        why = f"n = {speed.n}" if few else "too few independent samples for an interval"
        said = f"{_amount(value, limit, figure)}, {why}"
        return Answer("undecided", said, LEAST if few else None)
    said = f"{_amount(value, limit, figure)} [{_ends(least, most, limit, figure)}]"
    if least > limit.size:
        return Answer("FAILS", said)
    if most <= limit.size:
        return Answer("passes", said)
    return Answer("undecided", said, _ratio_needs(limit, speed, scale, figure, chance))


def _ratio_needs(
    limit: Change, speed: Ratio, scale: float, figure: Figure, chance: float
) -> int | None:
    """Samples at which a change of this size is told from the limit."""
    low, high = speed.bounds(chance)
    if low <= 0 or speed.n is None or speed.effective_n is None:
        return None
    edge = 1 + limit.size / scale
    edge = max(2 - edge, 1e-9) if figure.better == "higher" else 1 / edge
    error = math.log(high / low) / 2 / student_quantile(speed.freedom, 1 - chance)
    # Samples that are alike tell less, so that more of them are needed in the same proportion.
    sigma = error * math.sqrt(speed.n)
    return _needed(sigma, abs(math.log(speed.value / edge)), chance)


def _needed(sigma: float, gap: float, chance: float) -> int | None:
    if not gap > 0 or sigma / gap > math.sqrt(MOST) / 3:
        return None
    return max(pairs_needed(sigma, gap, 2 * chance, POWER), LEAST)


# Figures without samples --------------------------------------------------------------------------


def of_single(limit: Change, before: float, after: float, figure: Figure) -> Answer:
    """Peaks and sizes have no spread that was seen: the figure itself decides."""
    loss = before - after if figure.better == "higher" else after - before
    if limit.of == "share":
        loss = loss / abs(before) if before else math.inf if loss > 0 else 0.0
    said = f"{_amount(loss, limit, figure)} (one figure, no interval)"
    return Answer("FAILS" if loss > limit.size else "passes", said)


# Metrics ------------------------------------------------------------------------------------------


def of_metric(
    limit: Change,
    ours: Sequence[float],
    theirs: Sequence[float],
    figure: Figure,
    chance: float,
    paired: bool,
) -> Answer:
    """By the tests that verdicts are made of, with the limit as the margin."""
    scale = abs(sum(theirs) / len(theirs)) if limit.of == "share" else 1.0
    margin = limit.size * scale
    if min(len(ours), len(theirs)) < LEAST:
        return Answer("undecided", f"{min(len(ours), len(theirs))} videos", LEAST)
    if paired and list(ours) == list(theirs):
        return Answer("passes", f"the same in all {len(ours)} videos")
    found = tested(figure.name, ours, theirs, margin or 1e-12, paired)
    loss = -found.gain
    ends = [-x if x is not None else y for x, y in ((found.high, -math.inf), (found.low, math.inf))]
    shown = [x / scale if scale else math.inf for x in (loss, *ends)]
    said = f"{_amount(shown[0], limit, figure)} [{_ends(shown[1], shown[2], limit, figure)}]"
    if found.beyond_p < chance:
        return Answer("FAILS", said)
    spread = _spread(ours, theirs, paired)
    if found.no_loss_p < chance:
        return Answer("passes", said)
    return Answer("undecided", said, _needed(spread, abs(loss - margin), chance))


def tested(
    name: str, ours: Sequence[float], theirs: Sequence[float], margin: float, paired: bool
) -> Comparison:
    """Ours against theirs, either way one-sided; of a figure that is best at 0, how far from it."""
    better = METRICS[name].better
    if better == "zero":
        ours, theirs = [abs(x) for x in ours], [abs(x) for x in theirs]
        better = "lower"
    if paired:
        return compare(name, ours, theirs, better, margin)
    return compare_unpaired(name, ours, theirs, better, margin)


def _spread(ours: Sequence[float], theirs: Sequence[float], paired: bool) -> float:
    """Standard deviation of one pair's difference, or what stands for it where none are pairs."""
    if paired:
        return moments([a - b for a, b in zip(ours, theirs, strict=True)]).error * math.sqrt(
            len(ours)
        )
    gap = difference(moments(ours), moments(theirs))
    return gap.error * math.sqrt(min(len(ours), len(theirs)))


def _amount(loss: float, limit: Change, figure: Figure) -> str:
    """A loss with the figure's own sign: a latency rises, a PSNR falls."""
    value = -loss if figure.better == "higher" else loss
    if not math.isfinite(value):
        return "?"
    if limit.of == "share":
        return f"{value:+.1%}"
    if figure.kind == "metric":
        return f"{value:+.3g}"
    return ("-" if value < 0 else "+") + figure.text(abs(value))


def _ends(least: float, most: float, limit: Change, figure: Figure) -> str:
    ends = (most, least) if figure.better == "higher" else (least, most)
    return ", ".join(_amount(end, limit, figure) for end in ends)


def one_sided(checks: int) -> float:
    """The chance that each of so many checks may err with."""
    return ALPHA / 2 / max(checks, 1)
