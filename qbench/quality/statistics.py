"""Summaries of samples: what a table may say, and how sure it is."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

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
    better: Literal["higher", "lower"]
    summary: Summary | None = None
    samples: list[float] | None = None
    note: str = ""


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
