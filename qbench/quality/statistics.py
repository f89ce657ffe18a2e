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
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, field_serializer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Value = TypeVar("Value", float, NDArray[np.float64])

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
RESAMPLES = 2000
NORMAL = 1.959964  # standard deviations to either side that hold 95 %
SYMMETRIC = 1e-8  # skewness that is none
LEAST = 3  # samples below which there is no interval
MANY = 255  # samples up to which what resamples consist of is kept, in a byte each


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
        return float(student()(self.n - 1, -min(t, _transformed(t, self.skew))))

    def flipped(self) -> Moments:
        """Those of the samples with the other sign."""
        return Moments(self.n, -self.mean, self.error, -self.skew)

    def bound(self, chance: float) -> float:
        """Upper bound that the true mean exceeds with this chance at most."""
        quantile = student_quantile(self.n - 1, 1 - chance)
        hall = -_untransformed(-quantile, self.skew)
        return self.mean + self.error * max(quantile, hall)


@dataclass(frozen=True)
class ManyMoments:
    """As `Moments`, of many samples of one size: an array each."""

    n: int
    mean: NDArray[np.float64]
    error: NDArray[np.float64]
    skew: NDArray[np.float64]

    @property
    def known(self) -> NDArray[np.bool_]:
        import numpy as np

        return np.isfinite(self.error) & (self.error > 0) & (self.n >= LEAST)

    def statistics(self, edges: NDArray[np.float64]) -> NDArray[np.float64]:
        """What `tails` takes Student's distribution of; the least where nothing is known."""
        import numpy as np

        known = self.known
        t = (np.where(known, self.mean, 0.0) - edges) / np.where(known, self.error, 1.0)
        found: NDArray[np.float64] = np.minimum(t, _transformed(t, self.skew))
        return np.where(known, found, -np.inf)

    def tails(self, edges: NDArray[np.float64]) -> NDArray[np.float64]:
        """`Moments.tail` of each, at an edge of its own."""
        import numpy as np

        # Of a single sample there is no distribution.
        return np.where(self.known, student()(self.n - 1, -self.statistics(edges)), 1.0)

    def flipped(self) -> ManyMoments:
        return ManyMoments(self.n, -self.mean, self.error, -self.skew)

    def intervals(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Low and high of 95 %, which mean nothing where the moments are not known."""
        return -self.flipped()._upper(), self._upper()

    def _upper(self) -> NDArray[np.float64]:
        import numpy as np

        if self.n < LEAST:
            return self.mean
        quantile = student_quantile(self.n - 1, 1 - (1 - CONFIDENCE) / 2)
        a = np.where(np.abs(self.skew) < SYMMETRIC, 1.0, self.skew)
        inner = 1 + a * (-quantile - a / 6)
        hall = 3 / a * (np.copysign(np.abs(inner) ** (1 / 3), inner) - 1)
        hall = np.where(np.abs(self.skew) < SYMMETRIC, -quantile, hall)
        error = np.where(self.known, self.error, 0.0)
        found: NDArray[np.float64] = self.mean + error * np.maximum(quantile, -hall)
        return found


def many_moments(values: NDArray[np.float64]) -> ManyMoments:
    """Of samples of one size, a row each: as `moments` of each row."""
    import numpy as np

    n = values.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):  # where a value is not finite
        mean = np.add.reduce(values, axis=1) / n
        centred = values - mean[:, None]
        squares = centred * centred
        second = (centred[:, None] @ centred[:, :, None])[:, 0, 0]
        rounding = n * (1e-12 * np.maximum.reduce(np.abs(values), axis=1)) ** 2
        spread = second > rounding
        third = (squares[:, None] @ centred[:, :, None])[:, 0, 0] / n
        some = np.where(spread & np.isfinite(second), second, 1.0)
        error = np.where(spread, np.sqrt(second / max(n - 1, 1) / n), 0.0)
        skew = np.where(spread, third / (some / n) ** 1.5 / math.sqrt(n), 0.0)
    unknown = ~np.isfinite(second) | (n < 2)
    return ManyMoments(n, mean, np.where(unknown, math.inf, error), np.where(unknown, 0.0, skew))


def moments(values: Sequence[float] | NDArray[np.float64]) -> Moments:
    """Of a sample; Moments.error is infinite where a value is not finite."""
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    mean = float(np.add.reduce(x)) / n  # as `x.mean()`, which looks at the shape first
    centred = x - mean
    second = float(centred @ centred)
    if n < 2 or not math.isfinite(second):
        return Moments(n, mean, math.inf, 0.0)
    if second <= n * (1e-12 * float(np.maximum.reduce(np.abs(x)))) ** 2:  # no more than rounding
        return Moments(n, mean, 0.0, 0.0)
    third = float((centred * centred) @ centred) / n
    skew = third / (second / n) ** 1.5
    return Moments(n, mean, math.sqrt(second / (n - 1) / n), skew / math.sqrt(n))


@functools.cache
def student() -> Callable[[float, Value], Value]:
    """Student's distribution function, imported once: tables ask for it ten thousand times."""
    from scipy.special import stdtr

    found: Callable[[float, Value], Value] = stdtr
    return found


@functools.lru_cache(maxsize=1024)
def student_quantile(freedom: float, chance: float) -> float:
    """Of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, chance))


def _transformed(t: Value, a: Value) -> Value:
    return t + a / 3 * t**2 + a**2 / 27 * t**3 + a / 6


def _untransformed(y: float, a: float) -> float:
    """The t of which `_transformed` makes y: the transformation is a cube plus a constant."""
    if abs(a) < SYMMETRIC:
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
    return interval_of(moments(values))


def interval_of(found: Moments) -> Interval:
    """As `mean_interval`, of samples whose moments are known."""
    if not found.known:
        return None, None
    half = (1 - CONFIDENCE) / 2
    return -found.flipped().bound(half), found.bound(half)


Interval = tuple[float | None, float | None]


# The median ---------------------------------------------------------------------------------------


def median_interval(values: NDArray[np.float64]) -> Interval:
    """95 % interval of the median, wider where neighbouring samples are alike.

    Bootstrapped, then stretched about the median by what autocorrelation takes from the samples
    (see `effective_n`) and from the degrees of freedom. What is never negative, such as a time, has
    no median below 0, however far that reaches.
    """
    import numpy as np

    if len(values) < LEAST or not np.isfinite(values).all() or np.ptp(values) == 0:
        return None, None
    low, high = central(resampled_medians(tuple(values.tolist()), 0))
    middle = float(np.median(values))
    stretch = stretch_of(len(values), effective_n(values))
    least = middle - (middle - low) * stretch
    if values.min() >= 0:
        least = max(least, 0.0)
    return least, middle + (high - middle) * stretch


def median_limits(values: Sequence[float]) -> tuple[float, float]:
    """What no interval that `median_interval` gives these samples can reach beyond."""
    middle, stretch = median(values), stretch_of(len(values), effective_n(values))
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


def stretch_of(n: int, effective: float) -> float:
    """By how much an interval of independent samples is widened."""
    quantile = student_quantile(freedom(effective), (1 + CONFIDENCE) / 2)
    return math.sqrt(n / effective) * quantile / NORMAL


def freedom(effective: float) -> float:
    return max(effective - 1, 2.0)


@functools.lru_cache(maxsize=256)
def resampled_medians(samples: tuple[float, ...], seed: int) -> NDArray[np.float64]:
    """Medians of resamples; kept, because every row of a table asks for the reference's.

    A resample's median is the first of the ordered samples by which half of its draws are counted.
    """
    import numpy as np

    n = len(samples)
    values = np.asarray(samples, dtype=np.float64)
    order = np.argsort(values)
    draws = (_draws if n <= MANY else _draws.__wrapped__)(n, seed)
    counted = np.zeros(RESAMPLES, draws.dtype)
    upper, lower = np.zeros_like(counted), np.zeros_like(counted)
    for i in order:
        counted += draws[i]
        upper += counted <= n // 2
        if n % 2 == 0:
            lower += counted < n // 2
    ordered = values[order]
    if n % 2:
        return ordered[upper]
    found: NDArray[np.float64] = (ordered[lower] + ordered[upper]) / 2
    return found


@functools.lru_cache(maxsize=64)
def _draws(n: int, seed: int) -> NDArray[np.uint32]:
    """(n, RESAMPLES): how often each of n samples is in a resample, the same for all of a length"""
    import numpy as np

    picks = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    picks += n * np.arange(RESAMPLES)[:, None]
    counts = np.bincount(picks.ravel(), minlength=n * RESAMPLES).reshape(RESAMPLES, n)
    return np.ascontiguousarray(counts.T, dtype=np.uint8 if n <= MANY else np.uint32)


def central(found: NDArray[np.float64]) -> tuple[float, float]:
    import numpy as np

    ordered = np.sort(found)
    low, high = (_quantile(ordered, (1 + side * CONFIDENCE) / 2) for side in (-1, 1))
    return low, high


def _quantile(ordered: NDArray[np.float64], share: float) -> float:
    """As `numpy.quantile`, to the bit, at a twentieth of its cost for a few thousand values."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    a, b = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    t = place - below
    return b - (b - a) * (1 - t) if t >= 0.5 else a + (b - a) * t


# Pairs, and many tests at once ------------------------------------------------------------------


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
