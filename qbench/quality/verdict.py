"""The verdict on a variant: the one place where figures become words.

| verdict | when |
| --- | --- |
| broken | the output is invalid; or some figure's loss is beyond BROKEN margins for certain |
| degraded | some figure is worse than the reference's for certain, and a loss beyond its margin
  cannot be ruled out; or the videos as a set are further from the reference's than SEED_FVD
  times what another seed's are |
| indistinguishable | no loss, no change beyond a margin, and the videos themselves are the
  reference's, within one level of a display (margin psnr_db) or within the measured noise floor,
  whichever is wider |
| drift | no loss, but other videos than the reference's |

For certain: after Holm's correction for all variants and figures of the ranking, at 5 %. A verdict
of no loss is `shown` where every figure passed its equivalence test against its margin; where too
few videos leave that open it carries a question mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qbench.quality.metrics.catalogue import METRICS
from qbench.quality.statistics import CONFIDENCE, Comparison, Metric, compare, holm
from qbench.recipe.schema import Verdict

COMPARED = ("clip_score", "clip_consistency", "adherence", "flicker")
BROKEN = 5.0  # margins
SEED_FVD = 1.5  # times the distance of another seed's videos, itself one draw of many
ALPHA = 1 - CONFIDENCE
Quality = dict[str, Metric]
Sizes = dict[str, float]  # metric -> margin, in the metric's unit


@dataclass(frozen=True)
class Candidate:
    """One variant's figures, as its record holds them."""

    name: str
    quality: Quality
    invalid: str = ""  # why, where it is


@dataclass(frozen=True)
class Floor:
    """The reference in other guises, by name: what no difference looks like."""

    same_noise: dict[str, Quality] = field(default_factory=dict)  # compiled, another kernel
    other_noise: dict[str, Quality] = field(default_factory=dict)  # another seed

    def without(self, name: str) -> Floor:
        """What this one itself is measured by."""
        same = {key: value for key, value in self.same_noise.items() if key != name}
        other = {key: value for key, value in self.other_noise.items() if key != name}
        return Floor(same, other)


@dataclass(frozen=True)
class Tested:
    """One comparison with its p values corrected for all comparisons of the ranking."""

    comparison: Comparison
    worse_p: float
    equivalent_p: float

    @property
    def equivalent(self) -> bool:
        return self.equivalent_p < ALPHA

    @property
    def settled(self) -> bool:
        """Whether a loss beyond the margin is ruled out: as good for certain, or better."""
        return self.equivalent or 1 - self.comparison.worse_p < ALPHA


@dataclass(frozen=True)
class Judged:
    """A verdict with its evidence. `alone`: what each figure by itself would have said."""

    name: str
    verdict: Verdict
    shown: bool
    because: str
    tests: tuple[Tested, ...]
    alone: dict[str, Verdict]

    @property
    def text(self) -> str:
        return self.verdict if self.shown else f"{self.verdict}?"


def judge(
    candidates: Sequence[Candidate], reference: Quality, floor: Floor, margins: Sizes
) -> list[Judged]:
    """The verdicts on all variants of one ranking, corrected for their number.

    margins: by metric, in its own unit (`catalogue.margins`).
    """
    found = [_comparisons(one.quality, reference, margins) for one in candidates]
    every = [comparison for comparisons in found for comparison in comparisons]
    worse = holm([comparison.worse_p for comparison in every])
    equal = holm([comparison.equivalent_p for comparison in every])
    tested = iter(Tested(*each) for each in zip(every, worse, equal, strict=True))
    return [
        _judged(one, tuple(next(tested) for _ in comparisons), floor.without(one.name), margins)
        for one, comparisons in zip(candidates, found, strict=True)
    ]


def _comparisons(ours: Quality, reference: Quality, margins: Sizes) -> tuple[Comparison, ...]:
    made = []
    for name in COMPARED:
        if name not in ours or name not in reference:
            continue
        a, b = ours[name].samples, reference[name].samples
        if not a or not b or len(a) != len(b):
            continue
        made.append(compare(name, a, b, METRICS[name].better, margins[name]))
    return tuple(made)


def _judged(one: Candidate, tests: tuple[Tested, ...], floor: Floor, margins: Sizes) -> Judged:
    alone: dict[str, tuple[Verdict, str]] = {
        "validity": ("broken", one.invalid) if one.invalid else ("indistinguishable", "")
    }
    alone |= {tested.comparison.metric: _change(tested) for tested in tests}
    alone |= _as_a_set(one.quality, floor) | _closeness(one.quality, floor, margins)
    order: list[Verdict] = ["broken", "degraded", "drift", "indistinguishable"]
    verdict = min((said for said, _ in alone.values()), key=order.index)
    if "psnr" not in alone and verdict == "indistinguishable":
        verdict = "drift"  # nothing has said that these are the same videos
    because = [why for said, why in alone.values() if said == verdict and why]
    certain = verdict in ("broken", "degraded")
    unsettled = [] if certain else [t.comparison.metric for t in tests if not t.settled]
    if unsettled:
        because.append(f"too few videos to rule out a loss: {', '.join(unsettled)}")
    return Judged(
        name=one.name,
        verdict=verdict,
        shown=certain or (bool(tests) and not unsettled),
        because="; ".join(because),
        tests=tests,
        alone={name: said for name, (said, _) in alone.items()},
    )


def _change(tested: Tested) -> tuple[Verdict, str]:
    """What one figure says by itself."""
    c = tested.comparison
    change = f"{c.metric} {c.gain:+.3g}"
    if c.low is not None and c.high is not None:
        change += f" [{c.low:+.3g}, {c.high:+.3g}]"
    change += f" (margin {c.margin:.3g})"
    if 1 - c.worse_p < ALPHA and c.low is not None and c.low > c.margin:
        return "drift", change
    if tested.worse_p >= ALPHA or tested.equivalent:
        return "indistinguishable", ""
    beyond = c.high is not None and c.high < -BROKEN * c.margin
    return ("broken" if beyond else "degraded"), change


def _as_a_set(quality: Quality, floor: Floor) -> dict[str, tuple[Verdict, str]]:
    """Distance to the reference's videos as a set, beside that of another seed's videos."""
    if "fvd_reference" not in quality:
        return {}
    value = quality["fvd_reference"].value
    seeds = [
        one["fvd_reference"].value for one in floor.other_noise.values() if "fvd_reference" in one
    ]
    null = quality.get("fvd_null")
    if seeds:
        limit, named = SEED_FVD * max(seeds), f"{SEED_FVD:g} times another seed's"
    elif null is not None:
        limit, named = null.value, "that of two halves of the reference"
    else:
        return {}
    if value <= limit:
        return {"fvd_reference": ("indistinguishable", "")}
    return {"fvd_reference": ("degraded", f"FVD {value:.3g}, {named} is {limit:.3g}")}


def _closeness(quality: Quality, floor: Floor, margins: Sizes) -> dict[str, tuple[Verdict, str]]:
    """Whether these are the reference's own videos, as far as a display or the floor can tell."""
    if "psnr" not in quality:
        return {}
    metric = quality["psnr"]
    low = metric.summary.low if metric.summary and metric.summary.low is not None else metric.value
    limit, named = margins["psnr"], "one level of a display"
    floors = [one["psnr"].value for one in floor.same_noise.values() if "psnr" in one]
    if floors and min(floors) < limit:
        limit, named = min(floors), "the noise floor"
    said = f"PSNR {metric.value:.1f} dB, at least {low:.1f}"
    if low >= limit:
        return {"psnr": ("indistinguishable", f"{said}, within {named} ({limit:.1f})")}
    others = [one["psnr"] for one in floor.other_noise.values() if "psnr" in one]
    if any(_unrelated(metric, other) for other in others):
        said += ", as far as another seed's videos: is the noise the reference's?"
        return {"psnr": ("drift", said)}
    return {"psnr": ("drift", f"{said}, beyond {named} ({limit:.1f})")}


def _unrelated(metric: Metric, other_seed: Metric) -> bool:
    """No closer to the reference than videos of other noise are, by the intervals of both."""
    a, b = metric.summary, other_seed.summary
    if a is None or b is None or a.low is None or b.high is None:
        return False
    return a.low <= b.high
