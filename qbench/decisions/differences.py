"""How two records differ in time and quality, and what may be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qbench.decisions import figures, limits
from qbench.decisions.changes import REFUSED
from qbench.decisions.compared import How, MetricWord, Pair, Quality, Time, TimeWord
from qbench.quality.comparison import Comparison
from qbench.quality.means import ALPHA, LEAST
from qbench.quality.metrics import catalogue
from qbench.quality.metrics.catalogue import METRICS
from qbench.quality.ratios import Ratio, SpeedWord, speed_up, speed_words
from qbench.quality.statistics import holm
from qbench.quality.verdict import SET_SHARE
from qbench.results.record import Record
from qbench.results.speed import unpaired

WORDS: dict[SpeedWord, TimeWord] = {
    "faster": "faster",
    "SLOWER": "slower",
    "no difference": "not distinguishable",
    "too few": "too few",
}
UNSURE: dict[TimeWord, TimeWord] = {
    "faster": "faster?",
    "slower": "slower?",
    "not distinguishable": "not distinguishable?",
}


def times(pairs: Sequence[Pair]) -> list[Time | None]:
    """Words are corrected for the number of rows (Holm)."""
    found = [_speed(pair) if pair.alive else None for pair in pairs]
    ratios = [speed[0] if speed else None for speed in found]
    beside = [over_reference(pair) if pair.alive else None for pair in pairs]
    words = zip(_said(ratios), _said(beside), strict=True)
    made: list[Time | None] = []
    for pair, speed, over, (word, second) in zip(pairs, found, beside, words, strict=True):
        if speed is None:
            made.append(None)
            continue
        ratio, how, figure = speed
        sure = how != "one after the other" or (over is not None and second == word)
        before, after = (figures.OWN[figure].value(record) for record in (pair.a, pair.b))
        if how != "one after the other" and before is not None:
            after = before / ratio.value
        made.append(
            Time(
                figure=figure,
                before_s=before or 0.0,
                after_s=after or 0.0,
                speed=ratio,
                how=how,
                word=word if sure else UNSURE.get(word, word),
                over_reference=over,
            )
        )
    return made


def _said(ratios: Sequence[Ratio | None]) -> list[TimeWord]:
    """The words of tables; whether turns were taken is said apart."""
    plain = [r.model_copy(update={"interleaved": None}) if r else None for r in ratios]
    return [WORDS.get(word, "too few") for word in speed_words(plain)]


def _speed(pair: Pair) -> tuple[Ratio, How, Literal["latency", "step"]] | None:
    """Before over after by the strongest comparison that there is; None where none is."""
    a, b = pair.a, pair.b
    if not (a.recipe.measure.timing and b.recipe.measure.timing):
        return None
    figure: Literal["latency", "step"] = "latency" if a.latency_s and b.latency_s else "step"
    software = a.fingerprints.software == b.fingerprints.software
    same = software and not pair.changed_in(*REFUSED)
    if same and b.reference and b.reference.run == a.run and b.paired_speed_up:
        return b.paired_speed_up, "turns", figure
    if same and a.reference and a.reference.run == b.run and a.paired_speed_up:
        return a.paired_speed_up.inverse(), "turns", figure
    over = over_reference(pair)
    if same and over is not None:
        return over, "by way of the reference", figure
    ratio = unpaired(b, a)
    return (ratio, "one after the other", figure) if ratio is not None else None


def over_reference(pair: Pair) -> Ratio | None:
    """Before over after, each in units of the reference's turn beside it."""
    ours, theirs = _turns(pair.a), _turns(pair.b)
    if not ours or not theirs or pair.a.recipe.reference != pair.b.recipe.reference:
        return None
    return speed_up(ours, theirs)


def _turns(record: Record) -> list[float]:
    """Each timed unit over the reference's turn beside it."""
    if not record.recipe.measure.timing or record.paired_speed_up is None:
        return []
    own = record.step_host_s if record.recipe.measure.unit == "step" else record.latency_s
    return [x / y for x, y in zip(own, record.paired_reference_s, strict=True)]


# Quality ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Both:
    """The comparison of after with before, and the other way round."""

    loss: Comparison
    gain: Comparison

    @property
    def equal_p(self) -> float:
        """Of a difference of the margin or more, either way (two one-sided tests)."""
        return max(self.loss.no_loss_p, self.gain.no_loss_p)


@dataclass(frozen=True)
class _Tested:
    """A metric of both, and its tests where there are samples enough."""

    name: str
    before: float
    after: float
    paired: bool
    few: int  # samples of the one that has fewer
    margin: float | None
    tests: _Both | None
    same: bool  # video by video to the last digit


def qualities(pairs: Sequence[Pair], given: dict[str, float]) -> list[tuple[Quality, ...]]:
    """Words are corrected for all rows and metrics (Holm), differences and equivalences apart."""
    found = [_tests(pair, given) if pair.alive else [] for pair in pairs]
    every = [(t.tests, t.margin) for row in found for t in row if t.tests]
    differs = iter(holm([p for both, _ in every for p in (both.loss.worse_p, both.gain.worse_p)]))
    equal = iter(holm([both.equal_p for both, margin in every if margin]))
    rows = []
    for tests in found:
        row = []
        for t in tests:
            word: MetricWord = "too few" if t.few else "no interval"
            if t.tests:
                lost, won = next(differs), next(differs)
                word = _word(lost, won, next(equal) if t.margin else 1.0)
                if t.same:
                    word = "same"
            row.append(_quality(t, word))
        rows.append(tuple(row))
    return rows


def _word(lost: float, won: float, equal: float) -> MetricWord:
    if equal < ALPHA:
        return "equivalent"
    if lost < ALPHA:
        return "worse"
    return "better" if won < ALPHA else "not distinguishable"


def _quality(t: _Tested, word: MetricWord) -> Quality:
    metric, loss = METRICS[t.name], t.tests.loss if t.tests else None
    change = t.after - t.before
    return Quality(
        metric=t.name,
        unit=metric.unit,
        before=t.before,
        after=t.after,
        n=loss.n if loss else t.few,
        paired=t.paired,
        gain=loss.gain if loss else -change if metric.better == "lower" else change,
        low=loss.low if loss else None,
        high=loss.high if loss else None,
        margin=t.margin,
        word=word,
    )


def _tests(pair: Pair, given: dict[str, float]) -> list[_Tested]:
    a, b = pair.a.quality, pair.b.quality
    known = catalogue.margins(pair.a.recipe.quality, a)
    known.pop("psnr", None)  # how close videos are to be, and no difference that does not matter
    found = []
    for name in a:
        if name not in b or name not in METRICS:
            continue
        ours, theirs = b[name].samples or [], a[name].samples or []
        margin = given.get(name, known.get(name))
        if margin is None and a[name].scale:
            margin = SET_SHARE * (a[name].scale or 0.0)
        paired = samples_pair(pair.a, pair.b, name)
        tests, few = None, min(len(ours), len(theirs))
        if few >= LEAST:
            size = margin or 1.0  # where there is none only the tests without one are read
            tests = _Both(
                limits.tested(name, ours, theirs, size, paired),
                limits.tested(name, theirs, ours, size, paired),
            )
        same = paired and few > 0 and list(ours) == list(theirs)
        values = a[name].value, b[name].value
        found.append(_Tested(name, *values, paired, few, margin, tests, same))
    return found


def samples_pair(a: Record, b: Record, name: str) -> bool:
    """Whether their videos belong together one by one: the same prompts from the same noise."""
    ours, theirs = a.quality[name].samples or [], b.quality[name].samples or []
    seeds = a.recipe.generation.seed == b.recipe.generation.seed
    return seeds and a.fingerprints.prompts == b.fingerprints.prompts and len(ours) == len(theirs)
