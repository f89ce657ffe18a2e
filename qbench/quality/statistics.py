"""Summaries of samples: what a table may say of them, and how sure it is.

How often these intervals cover and these tests err was simulated: docs/quality.md has the figures
and `scripts/calibrate_verdicts.py` repeats them. The mean's are in `means`, tests of paired figures
in `comparison`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, field_serializer

from qbench.quality.means import (
    CONFIDENCE,
    LEAST,
    Interval,
    mean_interval,
    student_quantile,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Value = TypeVar("Value", float, NDArray[np.float64])

RESAMPLES = 2000
NORMAL = 1.959964  # standard deviations to either side that hold 95 %
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
