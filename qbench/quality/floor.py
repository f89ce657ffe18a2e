"""How far a variant's videos are from the reference's, beside the noise floor and another seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from qbench.quality.means import ALPHA, moments
from qbench.quality.statistics import Metric
from qbench.recipe.schema import Verdict

FEW = 8  # videos below which no verdict of no loss goes without a question mark
NEAREST = 1 / 6  # of a seed's videos: what lies a standard deviation from a normal mean, about
Quality = Mapping[str, Metric]
Distance = Literal["close", "as far as another seed", "other noise", ""]
NEAR: tuple[Distance, ...] = ("close", "")  # where it was not measured, close is asked for
# What the distance is read from, and which way is further.
DISTANCES = {"psnr": "higher", "lpips": "lower", "latent_error": "lower"}


@dataclass(frozen=True)
class Floor:
    """The reference in other guises, by name: what no difference looks like."""

    same_noise: dict[str, Quality] = field(default_factory=dict)  # compiled, another kernel
    other_noise: dict[str, Quality] = field(default_factory=dict)  # another seed

    def without(self, names: Iterable[str]) -> Floor:
        """Less these: what a floor is itself measured by, and floors that are no floor."""
        left = set(names)
        same = {key: value for key, value in self.same_noise.items() if key not in left}
        other = {key: value for key, value in self.other_noise.items() if key not in left}
        return Floor(same, other)


@dataclass(frozen=True)
class Word:
    """What one figure says by itself; `sure` where chance is ruled out."""

    verdict: Verdict
    sure: bool = True
    because: str = ""


def closeness(
    quality: Quality, floor: Floor, margins: Mapping[str, float], further: str
) -> dict[str, Word]:
    """Whether these are the reference's own videos, as far as a display or the floor can tell.

    The floor's own spread over its videos is allowed for, or a floor would reject its own kind.
    """
    if not _has(quality) or "psnr" not in margins:
        return {}
    metric, limit, named = quality["psnr"], margins["psnr"], "one level of a display"
    low = metric.summary.low if metric.summary else None
    enough = len(metric.samples or ()) >= FEW
    said = f"PSNR {metric.value:.1f} dB"
    if low is not None:
        said += f", at least {low:.1f}"
    if (metric.value if low is None else low) >= limit:
        return {"psnr": Word("indistinguishable", enough, f"{said}, within {named} ({limit:.1f})")}
    # Of few videos, most of them equal to the bit, the mean's interval reaches below all of them.
    if enough and metric.samples and min(metric.samples) >= limit:
        every = f"PSNR {metric.value:.1f} dB, of every video at least {min(metric.samples):.1f}"
        return {"psnr": Word("indistinguishable", True, f"{every}, within {named} ({limit:.1f})")}
    floors = [(one["psnr"], _reach(one["psnr"])) for one in floor.same_noise.values() if _has(one)]
    widest, reach = min(floors, key=lambda item: item[1], default=(metric, limit))
    if reach < limit:
        limit, named = reach, f"the noise floor ({widest.value:.1f} dB) less its own spread"
        if metric.value >= limit:
            sure = enough and _above(metric, widest, limit)
            return {"psnr": Word("indistinguishable", sure, f"{said}, within {named}")}
    if further:
        return {"psnr": Word("drift", True, f"{said}, {further}")}
    return {"psnr": Word("drift", True, f"{said}, beyond {named} ({limit:.1f})")}


def _has(quality: Quality) -> bool:
    return "psnr" in quality


def _spread(metric: Metric) -> float:
    """Standard deviation over the videos, 0 where it is not known."""
    return (metric.summary.sigma if metric.summary else None) or 0.0


def _reach(floor: Metric) -> float:
    return floor.value - _spread(floor)


def _above(metric: Metric, floor: Metric, limit: float) -> bool:
    """Whether the mean is at least `limit` for certain, video by video where both have the same."""
    ours, theirs = metric.samples or [], floor.samples or []
    if len(ours) == len(theirs):
        gaps = moments([a - b for a, b in zip(ours, theirs, strict=True)])
        return gaps.tail(limit - floor.value) < ALPHA
    return moments(ours).tail(limit) < ALPHA


def distance_of(quality: Quality, floor: Floor, other_noise: bool) -> tuple[Distance, str]:
    """Close, or as far as another seed's videos; and which figure says so.

    As far: on average no closer than the closest sixth of another seed's videos, in any figure of
    the distance. A share, for LPIPS is as wide over videos as its mean: less one standard deviation
    nothing is closer.
    """
    if other_noise:
        return "other noise", "made from other noise than the reference's"
    known = False
    for name, better in DISTANCES.items():
        for seed in floor.other_noise.values():
            if name not in quality or name not in seed:
                continue
            known = True
            sign = 1.0 if better == "higher" else -1.0
            mean = sign * quality[name].value
            closer = [sign * x >= mean for x in seed[name].samples or [seed[name].value]]
            if sum(closer) >= NEAREST * len(closer):
                figures = f"{name} {quality[name].value:.3g}, theirs {seed[name].value:.3g}"
                why = f"as far as another seed's videos ({figures}): is the noise the reference's?"
                return "as far as another seed", why
    return ("close", "") if known else ("", "")
