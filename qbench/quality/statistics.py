"""Summaries of samples: what a table may say of them, and how sure it is.

How often these intervals cover and these tests err was simulated: docs/quality.md has the figures
and `scripts/calibrate_verdicts.py` repeats them. Tests of paired figures are in `comparison`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, field_serializer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
RESAMPLES = 2000
NORMAL = 1.959964  # standard deviations to either side that hold 95 %
LEAST = 3  # samples below which there is no interval
INDEPENDENT = 3.0  # effective samples below which no speed-up is claimed


class Summary(BaseModel):
    """n samples in figures; `low` and `high` bound a 95 % interval of the mean or the median.

    Both are null where the samples are too few, or all the same: a spread that was not seen
    says nothing about how far the mean may be off.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    n: int
    mean: float
    median: float
    p90: float
    sigma: float | None  # of the sample (n - 1); null for one sample
    low: float | None
    high: float | None


class Metric(BaseModel):
    """One quality figure. `samples` is one value a video, where the metric has such.

    Those of a kernel distance are jackknife pseudo-values, whose mean is the distance; `scale` is
    then the spread of the reference's own features, in the same unit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: float
    unit: str
    better: Literal["higher", "lower", "zero"]  # zero: signed, and 0 is as the reference
    summary: Summary | None = None
    low: float | None = None  # bounds of a 95 % interval of a figure that a whole set has
    high: float | None = None
    samples: list[float] | None = None
    by_frame: list[float] | None = None  # mean over videos of each frame's figure
    scale: float | None = None
    note: str = ""

    @field_serializer("samples", "by_frame")
    def _digits(self, values: list[float] | None) -> list[float] | None:
        """Seven significant digits, as many as the float32 that they came from has."""
        return values and [float(f"{value:.7g}") for value in values]


def summarise(samples: Sequence[float], of: str = "mean") -> Summary:
    """Summary with a 95 % interval of the mean or of the median (`of`).

    The mean's is Student's and Hall's together (see `Moments`), the median's is bootstrapped.
    """
    import numpy as np

    if not samples:
        raise ValueError("no samples to summarise")
    values = np.asarray(samples, dtype=np.float64)
    low, high = {"mean": mean_interval, "median": median_interval}[of](values)
    return Summary(
        n=len(values),
        mean=float(values.mean()),
        median=float(np.median(values)),
        p90=float(np.quantile(values, 0.9)),
        sigma=float(values.std(ddof=1)) if len(values) > 1 else None,
        low=low,
        high=high,
    )


# The mean -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """What intervals and tests of a mean are made of.

    `tail` and `bound` take the more careful of Student's t and Hall's transformation of it, which
    corrects for skewness (Hall 1992, "On the removal of skewness by transformation", eq. 2.8).
    Student's alone covers 85 % for log-normal samples of n = 12, Hall's alone 93 % for t3.
    """

    n: int
    mean: float
    error: float  # standard error of the mean; 0 where all samples are the same
    skew: float  # skewness over sqrt(n)

    @property
    def known(self) -> bool:
        """Whether the samples say anything about how far their mean may be off."""
        return self.n >= LEAST and math.isfinite(self.error) and self.error > 0

    def tail(self, edge: float) -> float:
        """p of "the mean is at most `edge`": small where it is above for certain."""
        if not self.known:
            return 1.0
        t = (self.mean - edge) / self.error
        return float(_student()(self.n - 1, -min(t, _transformed(t, self.skew))))

    def flipped(self) -> Moments:
        """Those of the samples with the other sign."""
        return Moments(self.n, -self.mean, self.error, -self.skew)

    def bound(self, chance: float) -> float:
        """Upper bound that the true mean exceeds with this chance at most."""
        quantile = student_quantile(self.n - 1, 1 - chance)
        hall = -_untransformed(-quantile, self.skew)
        return self.mean + self.error * max(quantile, hall)


def moments(values: Sequence[float] | NDArray[np.float64]) -> Moments:
    """Of a sample; Moments.error is infinite where a value is not finite."""
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    n, mean = len(x), float(x.mean())
    centred = x - mean
    second = float(centred @ centred)
    if n < 2 or not math.isfinite(second):
        return Moments(n, mean, math.inf, 0.0)
    if second <= n * (1e-12 * float(np.abs(x).max())) ** 2:  # no more than rounding
        return Moments(n, mean, 0.0, 0.0)
    third = float((centred * centred) @ centred) / n
    skew = third / (second / n) ** 1.5
    return Moments(n, mean, math.sqrt(second / (n - 1) / n), skew / math.sqrt(n))


@functools.cache
def _student() -> Callable[[float, float], float]:
    """Student's distribution function, imported once: tables ask for it ten thousand times."""
    from scipy.special import stdtr

    found: Callable[[float, float], float] = stdtr
    return found


@functools.lru_cache(maxsize=1024)
def student_quantile(freedom: float, chance: float) -> float:
    """Of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, chance))


def _transformed(t: float, a: float) -> float:
    return t + a / 3 * t**2 + a**2 / 27 * t**3 + a / 6


def _untransformed(y: float, a: float) -> float:
    """The t of which `_transformed` makes y: the transformation is a cube plus a constant."""
    if abs(a) < 1e-8:
        return y
    inner = 1 + a * (y - a / 6)
    return 3 / a * (math.copysign(abs(inner) ** (1 / 3), inner) - 1)


def difference(a: Moments, b: Moments) -> Moments:
    """Of mean a less mean b, of samples that are not paired (Welch 1947).

    `n` is such that n - 1 are the degrees of freedom of Welch and Satterthwaite, rounded down. The
    skewness of a difference is small where sizes are alike, and is left out.
    """
    first, second = a.error**2, b.error**2
    error = math.sqrt(first + second)
    if not (a.known or b.known) or not math.isfinite(error) or error == 0:
        return Moments(min(a.n, b.n), a.mean - b.mean, math.inf, 0.0)
    parts = [(e, m.n) for e, m in ((first, a), (second, b)) if e > 0]
    freedom = error**4 / sum(e**2 / (n - 1) for e, n in parts)
    return Moments(int(freedom) + 1, a.mean - b.mean, error, 0.0)


def mean_interval(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """95 % interval of the mean; (None, None) for too few samples or samples all the same."""
    found = moments(values)
    if not found.known:
        return None, None
    half = (1 - CONFIDENCE) / 2
    return -found.flipped().bound(half), found.bound(half)


Interval = tuple[float | None, float | None]


# The median ---------------------------------------------------------------------------------------


def median_interval(values: NDArray[np.float64]) -> Interval:
    """95 % interval of the median, wider where neighbouring samples are alike.

    Bootstrapped, then stretched about the median by what autocorrelation takes from the samples
    (see `effective_n`) and from the degrees of freedom.
    """
    import numpy as np

    if len(values) < LEAST or not np.isfinite(values).all() or np.ptp(values) == 0:
        return None, None
    low, high = _quantiles(_medians(tuple(values.tolist()), 0))
    middle = float(np.median(values))
    stretch = _stretch(len(values), effective_n(values))
    return middle - (middle - low) * stretch, middle + (high - middle) * stretch


def median_limits(values: Sequence[float]) -> tuple[float, float]:
    """What no interval that `median_interval` gives these samples can reach beyond."""
    middle, stretch = median(values), _stretch(len(values), effective_n(values))
    return middle - (middle - min(values)) * stretch, middle + (max(values) - middle) * stretch


def effective_n(values: Sequence[float] | NDArray[np.float64]) -> float:
    """How many independent samples tell as much of the mean: n (1 - r) / (1 + r), of AR(1).

    r is the correlation of neighbours, corrected for its bias in short series (Kendall 1954), at
    least 0 and at most 0.9: of a few samples more cannot be told from a drift without end.
    """
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    centred = x - x.mean()
    spread = float(centred @ centred)
    if n < LEAST or spread == 0:
        return float(n)
    r = float(centred[1:] @ centred[:-1]) / spread
    r = min(max(r + (1 + 3 * r) / n, 0.0), 0.9)
    return n * (1 - r) / (1 + r)


def _stretch(n: int, effective: float) -> float:
    """By how much an interval of independent samples is widened."""
    quantile = student_quantile(_freedom(effective), (1 + CONFIDENCE) / 2)
    return math.sqrt(n / effective) * quantile / NORMAL


def _freedom(effective: float) -> float:
    return max(effective - 1, 2.0)


@functools.lru_cache(maxsize=4096)
def _medians(samples: tuple[float, ...], seed: int) -> NDArray[np.float64]:
    """Medians of resamples; kept, because every row of a table asks for the reference's."""
    import numpy as np

    values = np.asarray(samples, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    found: NDArray[np.float64] = np.median(values[picks], axis=1)
    return found


def _quantiles(found: NDArray[np.float64]) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


# Ratios of times ----------------------------------------------------------------------------------


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
        return math.inf if self.effective_n is None else _freedom(self.effective_n)

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
    import numpy as np

    ratios = _medians(tuple(reference), 0) / _medians(tuple(variant), 1)
    value = float(np.median(reference) / np.median(variant))
    fewest = min(effective_n(reference) / len(reference), effective_n(variant) / len(variant))
    n = min(len(reference), len(variant))
    return _ratio(value, *_quantiles(ratios), n, n * fewest, interleaved=False)


def paired_speed_up(reference: Sequence[float], variant: Sequence[float]) -> Ratio:
    """The median of reference / variant, turn by turn, bootstrapped over the pairs."""
    import numpy as np

    if len(reference) != len(variant) or not reference:
        raise ValueError(f"pairs need equal lengths, got {len(reference)} and {len(variant)}")
    ratios = np.asarray(reference, dtype=np.float64) / np.asarray(variant, dtype=np.float64)
    low, high = _quantiles(_medians(tuple(ratios.tolist()), 0))
    value = float(np.median(ratios))
    return _ratio(value, low, high, len(ratios), effective_n(ratios), interleaved=True)


def _ratio(
    value: float, low: float, high: float, n: int, effective: float, *, interleaved: bool
) -> Ratio:
    """With an interval stretched on a log scale for autocorrelation, and its p."""
    if n < LEAST:
        return Ratio(value=value, low=low, high=high, n=n, interleaved=interleaved, p=1.0)
    stretch = _stretch(n, effective)
    error = _log_error(value, low, high) * math.sqrt(n / effective)
    t = abs(math.log(value)) / error if error > 0 else 0.0  # no spread at all is too few
    return Ratio(
        value=value,
        low=value * (low / value) ** stretch,
        high=value * (high / value) ** stretch,
        n=n,
        effective_n=round(effective, 3),
        p=float(2 * _student()(_freedom(effective), -t)),
        interleaved=interleaved,
    )


def _log_error(value: float, low: float, high: float) -> float:
    """Standard error of log(value) by its interval: by half of it, or by the part towards 1.

    The wider of the two, so that nothing is faster or slower whose interval holds 1.
    """
    inner = math.log(value / low) if value > 1 else math.log(high / value)
    return max(math.log(high / low) / 2, inner) / NORMAL


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Summary:
    """Summary of a - b, pair by pair: the videos of equal prompts and noise."""
    if len(a) != len(b):
        raise ValueError(f"paired samples need equal lengths, got {len(a)} and {len(b)}")
    return summarise([x - y for x, y in zip(a, b, strict=True)])


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): each may be compared with one alpha."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted
