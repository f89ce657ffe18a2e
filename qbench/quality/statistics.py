"""Summaries of samples: what a table may say, and how sure it is."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_serializer

CONFIDENCE = 0.95
RESAMPLES = 2000


class Summary(BaseModel):
    """n samples in figures; `low` and `high` bound a 95 % interval of the mean or the median."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    n: int
    mean: float
    median: float
    p90: float
    sigma: float | None  # of the sample (n - 1); null for one sample
    low: float | None
    high: float | None


class Metric(BaseModel):
    """One quality figure. `samples` is one value a video, where the metric has such."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: float
    unit: str
    better: Literal["higher", "lower", "zero"]  # zero: signed, and 0 is as the reference
    summary: Summary | None = None
    low: float | None = None  # bounds of a 95 % interval of a figure that a whole set has
    high: float | None = None
    samples: list[float] | None = None
    by_frame: list[float] | None = None  # mean over videos of each frame's figure
    note: str = ""

    @field_serializer("samples", "by_frame")
    def _digits(self, values: list[float] | None) -> list[float] | None:
        """Seven significant digits, as many as the float32 that they came from has."""
        return values and [float(f"{value:.7g}") for value in values]


def summarise(samples: Sequence[float], of: str = "mean") -> Summary:
    """Summary with a bootstrap interval (BCa, Efron 1987) of the mean or the median ('of')."""
    import numpy as np

    if not samples:
        raise ValueError("no samples to summarise")
    values = np.asarray(samples, dtype=np.float64)
    low, high = _interval(values, of)
    return Summary(
        n=len(values),
        mean=float(values.mean()),
        median=float(np.median(values)),
        p90=float(np.quantile(values, 0.9)),
        sigma=float(values.std(ddof=1)) if len(values) > 1 else None,
        low=low,
        high=high,
    )


def _interval(values: Any, of: str) -> tuple[float | None, float | None]:
    import warnings

    import numpy as np
    from scipy import stats

    if len(values) < 3 or not np.isfinite(values).all():
        return None, None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    statistic: Any = {"mean": np.mean, "median": np.median}[of]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # BCa needs a spread of jackknife values; where a median has none, the plain percentiles.
        for method in ("BCa", "percentile"):
            found: Any = stats.bootstrap(
                (values,),
                statistic,
                n_resamples=RESAMPLES,
                confidence_level=CONFIDENCE,
                method=method,
                rng=np.random.default_rng(0),
            )
            low, high = (float(bound) for bound in found.confidence_interval)
            if math.isfinite(low) and math.isfinite(high):
                return low, high
    return None, None


class Ratio(BaseModel):
    """A ratio of medians with its interval, e.g. a speed-up: above 1 is faster."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 1, so that the difference is not noise."""
        return self.low > 1 or self.high < 1


@functools.lru_cache(maxsize=4096)
def _medians(samples: tuple[float, ...], seed: int) -> Any:
    """Medians of resamples; kept, because every row of a table asks for the reference's."""
    import numpy as np

    values = np.asarray(samples, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    return np.median(values[picks], axis=1)


def speed_up(reference: Sequence[float], variant: Sequence[float]) -> Ratio:
    """median(reference) / median(variant), bootstrapped over both (they are not paired)."""
    import numpy as np

    ratios = _medians(tuple(reference), 0) / _medians(tuple(variant), 1)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = float(np.median(reference) / np.median(variant))
    return Ratio(value=value, low=float(low), high=float(high))


def paired_speed_up(reference: Sequence[float], variant: Sequence[float]) -> Ratio:
    """The median of reference / variant, turn by turn, bootstrapped over the pairs."""
    import numpy as np

    if len(reference) != len(variant) or not reference:
        raise ValueError(f"pairs need equal lengths, got {len(reference)} and {len(variant)}")
    ratios = np.asarray(reference, dtype=np.float64) / np.asarray(variant, dtype=np.float64)
    found = _medians(tuple(ratios.tolist()), 0)
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Ratio(value=float(np.median(ratios)), low=float(low), high=float(high))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> Summary:
    """Summary of a - b, pair by pair: the videos of equal prompts and noise."""
    if len(a) != len(b):
        raise ValueError(f"paired samples need equal lengths, got {len(a)} and {len(b)}")
    return summarise([x - y for x, y in zip(a, b, strict=True)])


class Comparison(BaseModel):
    """A metric of a variant against the reference, video by video; a loss is below 0.

    `worse_p`: of no loss at all (one-sided paired t). `equivalent_p`: of a difference of the margin
    or more, to either side (two one-sided tests, Schuirmann 1987). Small means refuted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    metric: str
    n: int
    gain: float  # mean over the pairs
    low: float | None  # bounds of a 95 % interval of it
    high: float | None
    margin: float
    worse_p: float
    equivalent_p: float


def compare(
    metric: str, ours: Sequence[float], theirs: Sequence[float], better: str, margin: float
) -> Comparison:
    """Compare paired samples of one metric; `better` is 'higher' or 'lower', margin above 0."""
    import numpy as np
    from scipy import stats

    gap = paired_difference(ours, theirs) if better == "higher" else paired_difference(theirs, ours)
    found: dict[str, Any] = {
        "metric": metric, "n": gap.n, "gain": gap.mean, "low": gap.low, "high": gap.high,
        "margin": margin,
    }  # fmt: skip
    error = (gap.sigma or 0.0) / math.sqrt(gap.n)
    if gap.n < 2 or not math.isfinite(error):
        return Comparison(**found, worse_p=1.0, equivalent_p=1.0)
    if error == 0:
        worse, equal = float(gap.mean >= 0), float(abs(gap.mean) >= margin)
        return Comparison(**found, worse_p=worse, equivalent_p=equal)
    freedom = gap.n - 1
    worse = stats.t.cdf(gap.mean / error, freedom)
    edges = np.array([(gap.mean + margin) / error, (margin - gap.mean) / error])
    return Comparison(
        **found, worse_p=float(worse), equivalent_p=float(stats.t.sf(edges, freedom).max())
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): each may be compared with one alpha."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted


def pairs_needed(
    sigma: float, difference: float, alpha: float = 1 - CONFIDENCE, power: float = 0.8
) -> int:
    """Pairs that a two-sided paired t test needs to see `difference` with this power.

    sigma: of the paired differences, in the unit of `difference`. Exact, by the noncentral t
    distribution (Cohen 1988). At least 2.
    """
    from scipy import stats

    if not (sigma >= 0 and difference > 0 and 0 < alpha < 1 and 0 < power < 1):
        raise ValueError("sigma must be 0 or more, difference above 0, alpha and power in (0, 1)")

    def enough(n: int) -> bool:
        shift = difference / sigma * math.sqrt(n)
        edge = stats.t.ppf(1 - alpha / 2, n - 1)
        seen = stats.nct.sf(edge, n - 1, shift) + stats.nct.cdf(-edge, n - 1, shift)
        return bool(seen >= power)

    if sigma == 0:
        return 2
    normal = stats.norm.ppf([1 - alpha / 2, power]).sum()
    n = max(2, math.ceil((normal * sigma / difference) ** 2))  # a little low, for t is wider
    while not enough(n):
        n += 1
    while n > 2 and enough(n - 1):
        n -= 1
    return n
