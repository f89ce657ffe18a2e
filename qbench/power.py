"""How many prompts a verdict or a claim needs, from the spread between videos that records show."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from qbench.errors import InputError, nearest
from qbench.quality.comparison import loss_tail, pairs_needed
from qbench.quality.floor import FEW
from qbench.quality.means import ALPHA, LEAST, ManyMoments, student
from qbench.quality.metrics.catalogue import METRICS
from qbench.quality.verdict import Judged
from qbench.results.ranking import Ranking, label, rankings
from qbench.results.record import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Item = TypeVar("Item")
TRIALS = 300  # simulated tables; 80 % is known to 2.3 points
VARIANTS = 100  # simulated at most; a larger table is stood for by so many of it, seeded
PAIRS = 500  # of runs looked at for --resolve, at most; seeded
MOST = 100_000  # prompts; what needs more is said to need more


def said(
    found: list[tuple[Path, Record]], resolve: list[str], alpha: float, chance: float
) -> list[str]:
    """Lines for people: for each ranking the prompts that its verdicts need, and each difference.

    A difference of a figure that the reference has too (CLIP score) is one to the reference; of one
    that is a distance to it (PSNR), between variants. Raises InputError where nothing fits.
    """
    wanted = [_parsed(text) for text in resolve]
    for name, value in (("--alpha", alpha), ("--power", chance)):
        if not 0 < value < 1:
            raise InputError(f"{name}: {value} is not between 0 and 1")
    lines = []
    for ranking in rankings(found):
        rows = _verdicts(ranking, alpha, chance)
        for metric, difference in wanted:
            rows += _resolved(ranking, metric, difference, alpha, chance)
        if rows:
            lines += [ranking.title(), *rows]
    if not lines:
        names = ", ".join(metric for metric, _ in wanted) or "a figure with a margin"
        raise InputError(
            f"no two runs here share a ranking and hold {FEW} or more paired samples of {names}"
        )
    return lines


def _parsed(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in METRICS:
        raise InputError(f"--resolve {text}: no metric {name!r}{nearest(name, METRICS)}")
    try:
        difference = float(value)
    except ValueError:
        difference = 0.0
    if not 0 < difference < math.inf:
        raise InputError(f"--resolve {text}: give a difference above 0, as in {name}=0.5")
    return name, difference


# A verdict without a question mark ----------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """One figure of one variant: its gains over the reference, video by video, about their mean.

    changed: of a figure of yes and no, the share of videos that changed; None for others.
    """

    metric: str
    margin: float
    both: bool
    gaps: NDArray[np.float64]
    changed: float | None = None


def _verdicts(ranking: Ranking, alpha: float, chance: float) -> list[str]:
    """The prompts at which every variant that is as good as the reference is shown to be."""
    judged = [(r, ranking.judged[r.run]) for r in ranking.records if r.run in ranking.judged]
    open_ = [(r, j) for r, j in judged if j.verdict not in ("broken", "degraded")]
    named = [(label(r, ranking), spreads) for r, j in open_ if (spreads := _spreads(r, j, ranking))]
    if not named:
        return []
    here = max(len(spread.gaps) for _, spreads in named for spread in spreads)
    chosen = _some(named, VARIANTS)
    scale = len(named) / len(chosen)
    others = (len(judged) - len(named)) / scale
    table = Table([spreads for _, spreads in chosen], round(others), alpha / scale)
    needed = table.smallest(chance)
    count = f"{needed} prompts" if needed else f"more than {MOST} prompts"
    now = table.settled(here).mean()
    words = f"all {len(named)} variants" if len(named) > 1 else named[0][0]
    lines = [
        f"  a verdict without a question mark on {words}, where as good: {count} "
        f"({chance:.0%} of simulated tables; at the {here} here {now:.0%})"
    ]
    alone = [(Table([spreads], 0, alpha / len(judged)), name) for name, spreads in chosen]
    counts = sorted(((t.guess(chance), t, name) for t, name in alone), key=lambda item: item[0])
    for guess, one, name in counts[::-1][:3]:
        hardest = max(one.variants[0], key=lambda s: _guess(s, one.alpha, chance))
        lines.append(
            f"    {name}: about {guess}, for {hardest.metric} (margin {hardest.margin:.3g})"
        )
    return lines


def _some(items: list[Item], most: int) -> list[Item]:
    """All, or so many of them, the same at every call."""
    import numpy as np

    if len(items) <= most:
        return items
    picks = np.random.default_rng(0).choice(len(items), most, replace=False)
    return [items[i] for i in sorted(picks)]


def _spreads(record: Record, judged: Judged, ranking: Ranking) -> list[Spread]:
    """Figures of a variant whose spread is known; those without any need no more videos."""
    import numpy as np

    found = []
    for tested in judged.tests:
        c = tested.comparison
        ours = np.asarray(record.quality[c.metric].samples or [], dtype=np.float64)
        reference = ranking.reference.quality.get(c.metric) if ranking.reference else None
        theirs = np.zeros_like(ours)
        if c.better != "zero" and not record.quality[c.metric].scale and reference is not None:
            theirs = np.asarray(reference.samples or [], dtype=np.float64)
        if len(ours) < FEW or len(ours) != len(theirs):
            continue
        gaps = theirs - ours if c.better == "lower" else ours - theirs
        binary = reference is not None and set(np.unique([ours, theirs])) <= {0.0, 1.0}
        if binary:
            found.append(Spread(c.metric, c.margin, False, gaps, float((gaps != 0).mean())))
        elif np.ptp(gaps) > 0:
            found.append(Spread(c.metric, c.margin, c.better == "zero", gaps - gaps.mean()))
    return found


@dataclass(frozen=True)
class Table:
    """Variants that are to be settled together; `others` are corrected for and never settled."""

    variants: list[list[Spread]]
    others: int
    alpha: float = ALPHA

    def guess(self, chance: float) -> int:
        """About the prompts at which the hardest figure is settled, by closed form."""
        alpha = self.alpha / (len(self.variants) + self.others)
        return max(_guess(s, alpha, chance) for spreads in self.variants for s in spreads)

    def smallest(self, chance: float) -> int:
        """Fewest prompts at which so many simulated tables settle; 0 where MOST are too few."""
        high = min(max(self.guess(chance), FEW), MOST)
        low = FEW - 1
        while self.settled(high).mean() < chance:
            low, high = high, math.ceil(high * 1.4)
            if low >= MOST:
                return 0
        while high - low > max(1, high // 50):
            middle = (low + high) // 2
            low, high = (low, middle) if self.settled(middle).mean() >= chance else (middle, high)
        return high

    def settled(self, n: int) -> NDArray[np.bool_]:
        """(TRIALS,): whether every variant is settled, in tables of n videos each.

        Videos are drawn from those of the records, all figures and variants of a video together.
        """
        import numpy as np

        rng = np.random.default_rng(n)
        hardest = np.zeros((TRIALS, len(self.variants)))
        # Of means the least statistic has the largest p: one p a variant, and not one a figure.
        least = np.full((TRIALS, len(self.variants)), np.inf)
        weights: dict[int, NDArray[np.float64]] = {}
        means: dict[int, list[tuple[int, Spread]]] = {}
        for i, spreads in enumerate(self.variants):
            for spread in spreads:
                have = len(spread.gaps)
                if spread.changed is not None:
                    hardest[:, i] = np.maximum(hardest[:, i], _shares_p(rng, n, spread))
                    continue
                if have not in weights:
                    drawn = rng.multinomial(n, np.full(have, 1 / have), size=TRIALS)
                    weights[have] = drawn.astype(np.float64)
                means.setdefault(have, []).append((i, spread))
        for have, members in means.items():
            found = _means(weights[have], n, [spread for _, spread in members])
            for (i, _), column in zip(members, found.T, strict=True):
                least[:, i] = np.minimum(least[:, i], column)
        hardest = np.maximum(hardest, student()(n - 1, -least))
        ordered = np.sort(hardest, axis=1)
        factors = np.arange(ordered.shape[1], 0, -1) + self.others
        return np.asarray((ordered * factors < self.alpha).all(axis=1))


def _guess(spread: Spread, alpha: float, chance: float) -> int:
    """Normal approximation of the prompts at which one figure is settled."""
    from scipy.special import ndtri

    if spread.changed is not None:
        variance, least = spread.changed, math.log(alpha) / math.log1p(-min(spread.margin, 0.99))
    else:
        variance, least = float(spread.gaps.var(ddof=1)), LEAST
    wanted = (1 + chance) / 2 if spread.both else chance
    normal = variance * ((ndtri(1 - alpha) + ndtri(wanted)) / spread.margin) ** 2
    return min(math.ceil(max(normal, least, FEW)), MOST)


def _means(weights: NDArray[np.float64], n: int, spreads: list[Spread]) -> NDArray[np.float64]:
    """How far each resample (row) of each figure (column) is from a loss of its margin.

    What `Moments.tail` takes Student's distribution of.
    """
    import numpy as np

    x = np.stack([spread.gaps for spread in spreads], axis=1)
    margins = np.array([spread.margin for spread in spreads])
    both = np.array([spread.both for spread in spreads])
    mean, square = weights @ x / n, weights @ x**2 / n
    second = np.maximum(square - mean**2, 0)
    third = weights @ x**3 / n - 3 * mean * square + 2 * mean**3
    spread = second > 1e-12 * (x**2).mean(axis=0)
    some = np.where(spread, second, 1.0)
    error = np.where(spread, np.sqrt(some / (n - 1)), 0.0)
    found = ManyMoments(n, mean, error, third / some**1.5 / math.sqrt(n))
    least = found.statistics(-margins)
    return np.where(both, np.minimum(least, found.flipped().statistics(-margins)), least)


def _shares_p(rng: np.random.Generator, n: int, spread: Spread) -> NDArray[np.float64]:
    """p of a loss of the margin where as many videos are won as lost."""
    import numpy as np

    half = (spread.changed or 0.0) / 2
    drawn = rng.multinomial(n, [half, half, 1 - 2 * half], size=TRIALS)
    return np.array([loss_tail(n, int(lost), int(won), spread.margin) for lost, won, _ in drawn])


# A difference -------------------------------------------------------------------------------------


def _resolved(
    ranking: Ranking, metric: str, difference: float, alpha: float, chance: float
) -> list[str]:
    """One metric of one ranking: prompts for the median pair and for the widest."""
    import numpy as np

    pairs = _pairs(ranking, metric)
    spreads = []
    for a, b in pairs:
        x, y = (np.asarray(one.quality[metric].samples, dtype=np.float64) for one in (a, b))
        spreads.append((float((x - y).std(ddof=1)), len(x), a, b))
    if not spreads:
        return []
    spreads.sort(key=lambda item: item[0])
    parts = []
    for word, (sigma, n, a, b) in (
        ("median", spreads[len(spreads) // 2]),
        ("widest", spreads[-1]),
    ):
        count = pairs_needed(sigma, difference, alpha, chance)
        enough = "enough" if n >= count else f"{count - n} more"
        names = f"{label(a, ranking)} and {label(b, ranking)}"
        parts.append(f"{word}: {count} prompts (sigma {sigma:.3g}, {names}; {n} here, {enough})")
    number = f"{len(spreads)} pair{'s' if len(spreads) > 1 else ''}"
    return [f"  {metric} {difference:g} {METRICS[metric].unit}, {number}; " + "; ".join(parts)]


def _pairs(ranking: Ranking, metric: str) -> list[tuple[Record, Record]]:
    """Runs whose samples of this metric belong together, video by video; none that is broken.

    Of many runs not all pairs are looked at but some of them, drawn by a fixed seed.
    """
    broken = {run for run, judged in ranking.judged.items() if judged.verdict == "broken"}
    having = [
        r
        for r in ranking.records
        if r.status == "ok"
        and r.run not in broken
        and metric in r.quality
        and len(r.quality[metric].samples or []) >= FEW
    ]
    reference = ranking.reference
    if not METRICS[metric].paired and reference in having:
        pairs = _some([(r, reference) for r in having if r is not reference], PAIRS)
    elif len(having) * (len(having) - 1) // 2 <= PAIRS:
        pairs = list(itertools.combinations(having, 2))
    else:
        pairs = _drawn(having)
    return [
        (a, b)
        for a, b in pairs
        if b and len(a.quality[metric].samples or []) == len(b.quality[metric].samples or [])
    ]


def _drawn(having: list[Record]) -> list[tuple[Record, Record]]:
    import numpy as np

    rng = np.random.default_rng(0)
    first = rng.integers(len(having), size=PAIRS)
    second = (first + rng.integers(1, len(having), size=PAIRS)) % len(having)
    return [(having[i], having[j]) for i, j in zip(first, second, strict=True)]
