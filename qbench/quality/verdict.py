"""The verdict on a variant: the one place where figures become words.

| verdict | when |
| --- | --- |
| broken | the output is invalid; or some figure's loss is beyond BROKEN margins |
| degraded | some figure is worse than the reference's, and a loss of its margin is not ruled out |
| unverified | no loss was found, but no figure that can see one of content, of picture or of
  motion was computed on enough videos |
| indistinguishable | no loss, no gain beyond a margin, and the videos themselves are the
  reference's: within one level of a display (margin psnr), or the spread of the noise floor |
| drift | no loss, but other videos than the reference's |

A word without a question mark holds at 5 %, after Holm's correction for all variants of the
ranking: *broken* and *degraded* where the loss is beyond its five margins or its margin for
certain, *drift* and *indistinguishable* where a loss of a margin is ruled out in every figure.
Beside the word stands the distance: *close*, or *as far as another seed*.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from qbench.quality.comparison import Asked, Comparison, compare_all
from qbench.quality.floor import FEW, NEAR, Distance, Floor, Quality, Word, closeness, distance_of
from qbench.quality.means import ALPHA, LEAST
from qbench.quality.metrics.catalogue import METRICS
from qbench.quality.statistics import holm
from qbench.recipe.schema import Verdict

# Of the spread of the reference's own features. On the bundled model a skipped block is 2 % away,
# red and blue swapped 0.4 %, another seed's 48 videos less than 0.1 %, BF16 0.0002 %.
SET_SHARE = 0.002
SEED_FVD = 1.5  # times another seed's, in records whose set distance has no interval
SAME = 99.9  # dB: float16 frames that are equal to the bit read 100
Aspect = Literal["content", "picture", "motion"]
ASPECTS: tuple[Aspect, ...] = ("content", "picture", "motion")
# The command that has each aspect looked at.
BRINGS: dict[Aspect, str] = {
    "content": "--set quality.clip=FOLDER_OR_HUB_ID, or qbench weights fetch i3d",
    "picture": "--set quality.metrics=null",
    "motion": "--set quality.metrics=null, with three frames or more",
}
OPEN = ("unverified", "drift")  # verdicts that rest on what was looked at
ORDER: tuple[Verdict, ...] = ("broken", "degraded", "unverified", "drift", "indistinguishable")


@dataclass(frozen=True)
class Candidate:
    """One variant's figures, as its record holds them."""

    name: str
    quality: Quality
    invalid: str = ""  # why, where it is
    other_noise: bool = False  # made from other noise than the reference, on purpose
    older: bool = False  # of a version that had no figures of picture and motion


@dataclass(frozen=True, slots=True)
class Tested:
    """One comparison with its p values corrected for the comparisons of the ranking.

    Losses and gains are corrected for all variants and figures. `no_loss_p` is corrected for
    variants alone: a verdict of no loss needs every figure's, so that more figures make it no
    likelier by chance (an intersection-union test, Berger 1982).
    """

    comparison: Comparison
    worse_p: float
    beyond_p: float
    broken_p: float
    better_p: float
    no_loss_p: float

    @property
    def settled(self) -> bool:
        """Whether a loss of the margin is ruled out."""
        return self.no_loss_p < ALPHA


@dataclass(frozen=True)
class Judged:
    """A verdict with its evidence.

    shown: without a question mark. alone: what each figure by itself would have said. rests_on:
    the figures that saw each aspect. missing: what was not looked at or measured, and the command
    that brings it. distance: empty where it was not measured, or no seed floor was.
    """

    name: str
    verdict: Verdict
    shown: bool
    because: str
    tests: tuple[Tested, ...]
    alone: dict[str, Verdict]
    distance: Distance = ""
    rests_on: dict[Aspect, tuple[str, ...]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        sure = self.shown or self.verdict == "unverified"
        return self.verdict if sure else f"{self.verdict}?"


def judge(
    candidates: Sequence[Candidate],
    reference: Quality,
    floor: Floor,
    margins: Mapping[str, float],
) -> list[Judged]:
    """The verdicts on all variants of one ranking, corrected for their number.

    margins: by metric, in the metric's own unit.
    """
    asked = [_asked(one, reference, floor.without([one.name]), margins) for one in candidates]
    made = iter(compare_all(item for items in asked for item in items))
    tested = _corrected([tuple(itertools.islice(made, len(items))) for items in asked])
    words = [
        {t.comparison.metric: _word(t) for t in tests} | _as_a_set(one.quality, floor)
        for one, tests in zip(candidates, tested, strict=True)
    ]
    unfit = _unfit_floors(candidates, words, floor)
    sound = floor.without(unfit)
    lacking = _lacking(sound, unfit)
    return [
        _judged(one, tests, said, sound.without([one.name]), margins, lacking)
        for one, tests, said in zip(candidates, tested, words, strict=True)
    ]


def _asked(
    one: Candidate, reference: Quality, floor: Floor, margins: Mapping[str, float]
) -> list[Asked]:
    """Every figure with a margin that both sides have, or that is a difference already."""
    asked = []
    for name, margin in margins.items():
        if name == "psnr" or name not in one.quality:  # how close videos are is no loss by itself
            continue
        metric = one.quality[name]
        samples, theirs = metric.samples, reference[name].samples if name in reference else None
        if metric.better == "zero" and samples:
            asked += _from_zero(name, one, floor, margin)
        elif samples and theirs and len(samples) == len(theirs):
            asked.append(Asked(name, samples, theirs, metric.better, margin))
    for name, metric in one.quality.items():
        if metric.scale and metric.samples:
            share = SET_SHARE * metric.scale
            asked.append(Asked(name, metric.samples, None, "lower", share))
    return asked


def _from_zero(name: str, one: Candidate, floor: Floor, margin: float) -> list[Asked]:
    """A figure that is 0 as the reference, of any videos or of the reference's own alone.

    Other videos as good are away from 0 in the latter (`MetricSpec.away`), so those that are as far
    as another seed's are held against how far that seed's are away.
    """
    samples = one.quality[name].samples or []
    if not METRICS[name].away or distance_of(one.quality, floor, one.other_noise)[0] in NEAR:
        return [Asked(name, samples, None, "zero", margin)]
    for seed in floor.other_noise.values():
        theirs = seed[name].samples if name in seed else None
        if theirs and len(theirs) == len(samples):
            away = [abs(value) for value in samples]
            return [Asked(name, away, [abs(value) for value in theirs], "lower", margin)]
    return []


def _corrected(found: Sequence[tuple[Comparison, ...]]) -> list[tuple[Tested, ...]]:
    every = [comparison for comparisons in found for comparison in comparisons]
    worse = iter(holm([c.worse_p for c in every]))
    beyond = iter(holm([c.beyond_p for c in every]))
    broken = iter(holm([c.broken_p for c in every]))
    better = iter(holm([c.better_p for c in every]))
    # Over variants, each by the figure that is hardest to settle.
    hardest = [max((c.no_loss_p for c in comparisons), default=1.0) for comparisons in found]
    corrected = holm(hardest)
    order = sorted(range(len(found)), key=lambda i: hardest[i])
    factors = {i: len(found) - rank for rank, i in enumerate(order)}

    def no_loss(i: int, p: float) -> float:
        return corrected[i] if p == hardest[i] else min(corrected[i], p * factors[i])

    return [
        tuple(
            Tested(
                c, next(worse), next(beyond), next(broken), next(better), no_loss(i, c.no_loss_p)
            )
            for c in comparisons
        )
        for i, comparisons in enumerate(found)
    ]


def _word(tested: Tested) -> Word:
    """What one figure says by itself."""
    c = tested.comparison
    if tested.broken_p < ALPHA:
        return Word("broken", True, _change(c))
    if tested.beyond_p < ALPHA:
        return Word("degraded", True, _change(c))
    if tested.better_p < ALPHA:
        return Word("drift", True, _change(c))
    within = c.low is not None and c.low > -c.margin and (c.better != "zero" or _below(c))
    if tested.worse_p < ALPHA and not tested.settled and not within:
        return Word("degraded", False, f"{_change(c)}: a loss, of the margin or not")
    return Word("indistinguishable", tested.settled)


def _change(c: Comparison) -> str:
    change = f"{c.metric} {c.gain:+.3g}"
    if c.low is not None and c.high is not None:
        change += f" [{c.low:+.3g}, {c.high:+.3g}]"
    return f"{change} (margin {c.margin:.3g})"


def _below(c: Comparison) -> bool:
    return c.high is not None and c.high < c.margin


def _as_a_set(quality: Quality, floor: Floor) -> dict[str, Word]:
    """FVD against another seed's, in records whose set distance has no interval of its own.

    Both are biased by the number of videos, and how far by chance is not known: so it never
    speaks without a question mark.
    """
    if any(metric.scale for metric in quality.values()) or "fvd_reference" not in quality:
        return {}
    seeds = [
        one["fvd_reference"].value for one in floor.other_noise.values() if "fvd_reference" in one
    ]
    if not seeds:
        return {}
    value, limit = quality["fvd_reference"].value, SEED_FVD * max(seeds)
    if value <= limit:
        return {"fvd_reference": Word("indistinguishable", False)}
    why = f"FVD {value:.3g}, {SEED_FVD:g} times another seed's is {limit:.3g}"
    return {"fvd_reference": Word("degraded", False, why)}


def _unfit_floors(
    candidates: Sequence[Candidate], words: Sequence[dict[str, Word]], floor: Floor
) -> list[str]:
    """Floors that are none: worse than the reference, or of its noise and yet far from it."""
    unfit = [
        one.name
        for one, said in zip(candidates, words, strict=True)
        if (one.name in floor.same_noise or one.name in floor.other_noise)
        and (one.invalid or any(word.verdict in ("broken", "degraded") for word in said.values()))
    ]
    seeds = floor.without(unfit)
    far = [
        name
        for name, quality in seeds.same_noise.items()
        if distance_of(quality, seeds, False)[0] == "as far as another seed"
    ]
    return unfit + far


def _judged(
    one: Candidate,
    tests: tuple[Tested, ...],
    words: dict[str, Word],
    floor: Floor,
    margins: Mapping[str, float],
    lacking: Sequence[str],
) -> Judged:
    distance, further = distance_of(one.quality, floor, one.other_noise)
    said = {"validity": Word("broken", True, one.invalid) if one.invalid else Word(ORDER[-1])}
    said |= words | closeness(one.quality, floor, margins, further)
    verdict = min((word.verdict for word in said.values()), key=ORDER.index)
    if "psnr" not in said and verdict == "indistinguishable":
        verdict = "drift"  # nothing has said that these are the same videos
    rests_on = _rests_on(tests)
    unseen = [aspect for aspect in ASPECTS if aspect not in rests_on]
    if verdict == "drift" and ("content" in unseen or (unseen and not one.older)):
        verdict = "unverified"
    because = [w.because for w in said.values() if w.verdict == verdict and w.because]
    shown = any(w.sure for w in said.values() if w.verdict == verdict)
    if verdict == "unverified":
        because = [f"nothing that sees a loss of {' or of '.join(unseen)} was measured"]
    elif verdict in ("drift", "indistinguishable"):
        unsettled = _unsettled(one.quality, tests, margins.get("psnr", SAME))
        if unsettled:
            because.append(f"too few videos to rule out a loss: {', '.join(unsettled)}")
        if unseen and verdict == "drift":
            because.append(f"no figure of this version sees {' and '.join(unseen)}")
        told = "psnr" in said and said["psnr"].sure and not (unseen and verdict == "drift")
        shown = bool(tests) and not unsettled and told
    return Judged(
        name=one.name,
        verdict=verdict,
        shown=shown,
        because="; ".join(because),
        tests=tests,
        alone={name: word.verdict for name, word in said.items()},
        distance=distance,
        rests_on=rests_on,
        missing=(*_unlooked(unseen, tests), *lacking) if verdict in OPEN else tuple(lacking),
    )


def _unsettled(quality: Quality, tests: Sequence[Tested], level: float) -> list[str]:
    """The figures in which a loss of the margin is not ruled out."""
    samples = quality["psnr"].samples if "psnr" in quality else None
    if samples and len(samples) >= FEW and min(samples) >= level:
        return []  # every video is the reference's to a display's level, and so is every figure
    return [t.comparison.metric for t in tests if not t.settled or t.comparison.n < FEW]


# What was looked at -------------------------------------------------------------------------------


def _rests_on(tests: Sequence[Tested]) -> dict[Aspect, tuple[str, ...]]:
    """Aspect -> the figures that would have seen a loss of it, on enough videos to tell."""
    able = [t.comparison.metric for t in tests if t.comparison.n >= LEAST]
    found = {aspect: tuple(n for n in able if aspect in METRICS[n].sees) for aspect in ASPECTS}
    return {aspect: names for aspect, names in found.items() if names}


def _unlooked(unseen: Sequence[Aspect], tests: Sequence[Tested]) -> list[str]:
    """What to run for each aspect that nothing has seen."""
    if any(t.comparison.n < LEAST for t in tests):
        return [f"{tests[0].comparison.n} videos are too few: --set prompts.count=12"]
    return [f"{aspect}: {BRINGS[aspect]}" for aspect in unseen]


def _lacking(floor: Floor, unfit: Sequence[str]) -> list[str]:
    """Floors that were not measured, or are none.

    By themselves the shipped recipes named here are of the bundled model.
    """
    alike = "with this model and these settings"
    said = [f"{name} is far from the reference itself, so it is no floor" for name in unfit]
    if not floor.same_noise:
        said.append(f"the noise floor: qbench run floor/compiled floor/kernel {alike}")
    if not floor.other_noise:
        said.append(f"another seed's distance: qbench run floor/seed {alike}")
    return said
