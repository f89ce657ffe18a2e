"""What a record says about its own samples, derived from the samples.

A stored median, mean or speed-up is shown only where it is that of the samples stored beside it;
otherwise it is computed anew, and a note says so. Figures that are no numbers (the PSNR of a video
of NaN) are left out, with a note too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median

from qbench.quality.means import LEAST, mean_interval
from qbench.quality.metrics.trajectory import ErrorGrowth
from qbench.quality.ratios import Ratio, paired_speed_up
from qbench.quality.statistics import Metric, Summary, median_limits, summarise
from qbench.results.record import Record

LARGEST = 1e30  # as `fields.Finite`
WIDEST = 15  # standard errors that an interval of a mean may reach: t of two samples has 12.7
ANEW = "derived anew, for the"
CLOSE = 1e-6  # metrics are stored with seven digits
ROUNDED = 1e-3  # of an interval, what those digits may make of it


def derived(record: Record) -> Record:
    """The record with its summaries agreeing with its samples. Returns the same object if so."""
    changes: dict[str, object] = {}
    notes: list[str] = []
    for name, samples, of in (
        ("latency", record.latency_s, "median"),
        ("step", step_samples(record), "mean" if _cached_steps(record) else "median"),
    ):
        old = getattr(record, name)
        new = _summary(old, samples, of)
        if new is not old:
            changes[name] = new
            if old is not None:
                notes.append(f"{name}: {ANEW} summary on file is not of its samples")
    ratio = _paired(record)
    if ratio != record.paired_speed_up:
        changes["paired_speed_up"] = ratio
    quality, lost = _quality(record.quality, notes)
    if lost or any(quality[name] is not record.quality[name] for name in quality):
        changes["quality"] = quality
    facts = {name: value for name, value in record.facts.items() if abs(value) <= LARGEST}
    if len(facts) < len(record.facts):
        lost += record.facts.keys() - facts.keys()
        changes["facts"] = facts
    if record.error_growth and not _curves(record.error_growth):
        lost.append("error by step")
        changes["error_growth"] = None
    if lost:
        notes.append(f"left out, for they are no finite numbers: {', '.join(sorted(lost))}")
    # A note of this kind that an earlier reading left says nothing about this one.
    said = [note for note in record.notes if ANEW not in note]
    if notes or len(said) < len(record.notes):
        changes["notes"] = [*said, *notes]
    return record.model_copy(update=changes) if changes else record


def step_samples(record: Record) -> list[float]:
    """What `Record.step` summarises: steps where these are the unit, else each video's typical."""
    if record.recipe.measure.unit == "step":
        return [step for video in record.step_s for step in video]
    # Where caching makes steps of two kinds a median would be of one of them.
    typical = fmean if record.recipe.variant.cache else median
    return [typical(video) for video in record.step_s]


def _cached_steps(record: Record) -> bool:
    return record.recipe.measure.unit == "step" and record.recipe.variant.cache is not None


def _summary(old: Summary | None, samples: Sequence[float], of: str) -> Summary | None:
    if not samples:
        return None
    if old is not None and old.n == len(samples):
        ordered, mean = sorted(samples), fmean(samples)
        if (
            _near(old.mean, mean)
            and _near(old.median, median(ordered))
            and _near(old.p90, _quantile(ordered, 0.9))
            and _spread(old.sigma, samples, mean)
            and _bounds(old, of, samples)
        ):
            return old
    return summarise(samples, of=of)


def _spread(sigma: float | None, samples: Sequence[float], mean: float) -> bool:
    if len(samples) < 2:
        return sigma is None
    variance = sum([(value - mean) ** 2 for value in samples]) / (len(samples) - 1)
    return sigma is not None and _near(sigma, math.sqrt(variance))


def _bounds(summary: Summary, of: str, samples: Sequence[float]) -> bool:
    """Whether the interval can be one of the median or the mean of these samples."""
    low, high = summary.low, summary.high
    if low is None or high is None:
        return low is high
    value = {"median": summary.median, "mean": summary.mean}[of]
    edge = CLOSE * max(abs(low), abs(high), abs(value))
    if of == "median":
        least, most = min(samples), max(samples)
        if len(samples) >= LEAST and (low < least or high > most):  # seldom: it takes a while
            least, most = median_limits(samples)
    else:
        reach = WIDEST * (summary.sigma or 0.0) / math.sqrt(len(samples))
        least, most = value - reach, value + reach
        if len(samples) >= LEAST and (low < least or high > most):  # Hall's of three skewed samples
            own_low, own_high = mean_interval(samples)
            if own_low is not None and own_high is not None:
                edge += ROUNDED * (own_high - own_low)
                least, most = min(least, own_low), max(most, own_high)
    return least - edge <= low <= value + edge and value - edge <= high <= most + edge


def _paired(record: Record) -> Ratio | None:
    """The speed-up of the interleaved pairs: as it is on file, where it can be theirs."""
    theirs = record.paired_reference_s
    own = record.step_host_s if record.recipe.measure.unit == "step" else record.latency_s
    if not theirs or len(theirs) != len(own) or record.recipe.mixes_steps:
        return None
    old = record.paired_speed_up
    # Without p it is from before intervals knew of samples that are not independent.
    if old is not None and old.p is not None and old.n == len(own) and old.low > 0:
        value = median(a / b for a, b in zip(theirs, own, strict=True))
        if _near(old.value, value) and old.low <= old.value <= old.high and old.interleaved:
            return old
    return paired_speed_up(theirs, own)


def _quality(quality: dict[str, Metric], notes: list[str]) -> tuple[dict[str, Metric], list[str]]:
    kept, lost = {}, []
    for name, metric in quality.items():
        samples = metric.samples or []
        if not abs(metric.value) <= LARGEST or not _finite(samples):
            lost.append(name)
            continue
        new = metric
        if samples:
            average = sum(samples) / len(samples)
            summary = metric.summary
            if (
                summary is None
                or summary.n != len(samples)
                or not _near(summary.mean, average)
                or not _near(metric.value, average)
                or not _bounds(summary, "mean", samples)
            ):
                summary = summarise(samples)
                new = metric.model_copy(update={"value": summary.mean, "summary": summary})
                notes.append(f"{name}: {ANEW} figure on file is not of its samples")
        elif metric.summary is not None:
            new = metric.model_copy(update={"summary": None})
        if not _finite(new.by_frame or []):
            new = new.model_copy(update={"by_frame": None})
        kept[name] = new
    return kept, lost


def _curves(growth: ErrorGrowth) -> bool:
    return bool(growth.free) and bool(growth.forced) and _finite([*growth.free, *growth.forced])


def _finite(values: Sequence[float]) -> bool:
    return not values or (min(values) >= -LARGEST and max(values) <= LARGEST and _number(values))


def _number(values: Sequence[float]) -> bool:
    """Whether none is NaN, which `min` and `max` may pass over."""
    return math.isfinite(sum(values))


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=1e-9)


def _quantile(ordered: Sequence[float], share: float) -> float:
    """By linear interpolation, as numpy's default (Hyndman and Fan 1996, type 7)."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
