"""What a comparison of two records holds, as `--json` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qbench.decisions.changes import Change
from qbench.decisions.limits import Result
from qbench.quality.ratios import Ratio
from qbench.results.record import Record, Strict

How = Literal["turns", "by way of the reference", "one after the other"]
TimeWord = Literal[
    "faster", "slower", "not distinguishable", "too few", "faster?", "slower?",
    "not distinguishable?",
]  # fmt: skip
MetricWord = Literal[
    "better", "worse", "same", "equivalent", "not distinguishable", "too few", "no interval"
]
DONE = ("ok",)


class Time(Strict):
    """A time of both. speed: before over after, above 1 is faster.

    over_reference: the same of each one's speed-up over the reference that took turns with it,
    where both have such turns: drift cancels in it, and so does what slows the reference as well.
    """

    figure: Literal["latency", "step"]
    before_s: float
    after_s: float
    speed: Ratio
    how: How
    word: TimeWord
    over_reference: Ratio | None = None


class Quality(Strict):
    """A metric of both. gain: of the mean, above 0 is better; margin: null where it has none."""

    metric: str
    unit: str
    before: float
    after: float
    n: int
    paired: bool
    gain: float
    low: float | None
    high: float | None
    margin: float | None
    word: MetricWord


class Size(Strict):
    """A figure of both that has no interval; null where one lacks it."""

    figure: str
    before: float | None
    after: float | None


class Check(Strict):
    """What a `--fail-if` comes to in one row. needed: samples of each that would decide it."""

    variant: str
    limit: str
    result: Result
    said: str
    needed: int | None = None


class Row(Strict):
    """Two records, before and after."""

    variant: str
    before: str  # runs
    after: str
    changes: tuple[Change, ...]
    time: Time | None
    quality: tuple[Quality, ...]
    sizes: tuple[Size, ...]
    verdict_before: str | None
    verdict_after: str | None
    dead: str = ""  # why the one after has no figures, where the one before has
    notes: tuple[str, ...] = ()


class Compared(Strict):
    """All rows. exit_code: 0 passes, 1 a regression, 2 not to be told from these records."""

    before: str
    after: str
    rows: tuple[Row, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    exit_code: int


@dataclass(frozen=True)
class Pair:
    """Two records that are compared, with the earlier runs of the same beside each."""

    a: Record
    b: Record
    runs_a: tuple[Record, ...]
    runs_b: tuple[Record, ...]
    changed: tuple[Change, ...]

    @property
    def alive(self) -> bool:
        return self.a.status in DONE and self.b.status in DONE

    def changed_in(self, *kinds: str) -> bool:
        return any(change.kind in kinds for change in self.changed)
