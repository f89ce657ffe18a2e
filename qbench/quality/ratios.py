"""Ratios of times: speed-ups, their intervals, and what a table may say of them.

How often these err was simulated, as all in `statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qbench.quality.means import ALPHA, CONFIDENCE, LEAST, student, student_quantile
from qbench.quality.statistics import (
    NORMAL,
    central,
    effective_n,
    freedom,
    holm,
    resampled_medians,
    stretch_of,
)

INDEPENDENT = 3.0  # effective samples below which no speed-up is claimed


class Ratio(BaseModel):
    """A ratio of medians with its interval, e.g. a speed-up: above 1 is faster.

    `interleaved`: whether reference and variant took turns, so that drift of the machine cancels.
    Null, as `n` and `p`, in records of earlier versions, which hold ratios of such pairs alone.
    `p`: of no difference, two-sided.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: float
    low: float
    high: float
    n: int | None = None
    effective_n: float | None = None  # independent samples that would tell as much
    p: float | None = None
    interleaved: bool | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 1. A table of many rows needs `speed_words` instead."""
        return self.low > 1 or self.high < 1

    @property
    def correlated(self) -> bool:
        """Whether neighbouring samples are so alike that they amount to too few."""
        return self.effective_n is not None and self.effective_n < INDEPENDENT

    def no_difference_p(self) -> float:
        """`p`, or what the interval implies where a record holds none."""
        from scipy.special import ndtr

        if self.p is not None:
            return self.p
        if not 0 < self.low < self.high:
            return 1.0
        error = _log_error(self.value, self.low, self.high)
        return float(2 * ndtr(-abs(math.log(self.value)) / error))

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the interval; infinite in records that do not hold their n."""
        return math.inf if self.effective_n is None else freedom(self.effective_n)

    def bounds(self, chance: float) -> tuple[float, float]:
        """Low and high, each of which the true ratio is beyond with this chance at most.

        Those of the 95 % interval, scaled on a log scale by Student's quantiles. Samples too few
        or too alike bound nothing: (0, infinity).
        """
        few = self.n is not None and self.n < LEAST
        if few or self.correlated or not 0 < self.low < self.high:
            return 0.0, math.inf
        ends = [student_quantile(self.freedom, 1 - c) for c in (chance, (1 - CONFIDENCE) / 2)]
        wider = ends[0] / ends[1]
        return (
            self.value * (self.low / self.value) ** wider,
            self.value * (self.high / self.value) ** wider,
        )

    def inverse(self) -> Ratio:
        """The same seen from the other side: slower instead of faster."""
        ends = {"value": 1 / self.value, "low": 1 / self.high, "high": 1 / self.low}
        return self.model_copy(update=ends)


SpeedWord = Literal["faster", "SLOWER", "no difference", "not interleaved", "too few", ""]


def speed_words(ratios: Sequence[Ratio | None]) -> list[SpeedWord]:
    """What a table may say of the speed-up in each of its rows; "" where there is none.

    Corrected for the number of rows (Holm): of twenty equal variants one in twenty tables calls
    any faster or slower. Runs that did not take turns with the reference carry no claim, for drift
    of the machine is not in their interval.
    """
    tested = [i for i, ratio in enumerate(ratios) if ratio is not None and _testable(ratio)]
    corrected = holm([_p(ratios[i]) for i in tested])
    said = dict(zip(tested, corrected, strict=True))
    words: list[SpeedWord] = []
    for i, ratio in enumerate(ratios):
        if ratio is None:
            words.append("")
        elif ratio.interleaved is False:
            words.append("not interleaved")
        elif i not in said:
            words.append("too few")
        elif said[i] >= ALPHA:
            words.append("no difference")
        else:
            words.append("faster" if ratio.value > 1 else "SLOWER")
    return words


def _testable(ratio: Ratio) -> bool:
    few = ratio.n is not None and ratio.n < LEAST
    return ratio.interleaved is not False and not few and not ratio.correlated


def _p(ratio: Ratio | None) -> float:
    return 1.0 if ratio is None else ratio.no_difference_p()


def speed_up(reference: Sequence[float], variant: Sequence[float]) -> Ratio:
    """median(reference) / median(variant) of runs one after the other, bootstrapped over both.

    Whatever drifts between the two runs is in the ratio and not in its interval.
    """
    theirs, ours = tuple(reference), tuple(variant)
    ratios = resampled_medians(theirs, 0) / resampled_medians(ours, 1)
    value = median(theirs) / median(ours)
    fewest = min(effective_n(theirs) / len(theirs), effective_n(ours) / len(ours))
    n = min(len(reference), len(variant))
    return _ratio(value, *central(ratios), n, n * fewest, interleaved=False)


def paired_speed_up(reference: Sequence[float], variant: Sequence[float]) -> Ratio:
    """The median of reference / variant, turn by turn, bootstrapped over the pairs."""
    import numpy as np

    if len(reference) != len(variant) or not reference:
        raise ValueError(f"pairs need equal lengths, got {len(reference)} and {len(variant)}")
    ratios = np.asarray(reference, dtype=np.float64) / np.asarray(variant, dtype=np.float64)
    low, high = central(resampled_medians(tuple(ratios.tolist()), 0))
    value = median(ratios.tolist())
    return _ratio(value, low, high, len(ratios), effective_n(ratios), interleaved=True)


def _ratio(
    value: float, low: float, high: float, n: int, effective: float, *, interleaved: bool
) -> Ratio:
    """With an interval stretched on a log scale for autocorrelation, and its p."""
    if n < LEAST:
        return Ratio(value=value, low=low, high=high, n=n, interleaved=interleaved, p=1.0)
    stretch = stretch_of(n, effective)
    error = _log_error(value, low, high) * math.sqrt(n / effective)
    t = abs(math.log(value)) / error if error > 0 else 0.0  # no spread at all is too few
    return Ratio(
        value=value,
        low=value * (low / value) ** stretch,
        high=value * (high / value) ** stretch,
        n=n,
        effective_n=round(effective, 3),
        p=float(2 * student()(freedom(effective), -t)),
        interleaved=interleaved,
    )


def _log_error(value: float, low: float, high: float) -> float:
    """Standard error of log(value) by its interval: by half of it, or by the part towards 1.

    The wider of the two, so that nothing is faster or slower whose interval holds 1.
    """
    inner = math.log(value / low) if value > 1 else math.log(high / value)
    return max(math.log(high / low) / 2, inner) / NORMAL
