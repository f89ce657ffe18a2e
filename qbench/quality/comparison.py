"""A figure of a variant against the reference's, video by video, and the tests of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from qbench.quality.means import (
    CONFIDENCE,
    ManyMoments,
    difference,
    interval_of,
    many_moments,
    moments,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BROKEN = 5.0  # margins
TOGETHER = 2**17  # numbers that are compared at once
SEEN = 1e-5
FAINT = 1e-32  # chance of an outcome that is left out where it cannot be seen in the sum
STEP = 2.0**-29  # of a share, to which its interval is computed
Better = Literal["higher", "lower", "zero"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired tests of one figure. A loss is below 0; where 0 is best, either sign is one.

    Each p is of what its comment says; small means refuted.
    """

    metric: str
    better: Better
    n: int
    gain: float  # mean over the pairs; where 0 is best, the mean figure itself
    low: float | None  # bounds of a 95 % interval of it
    high: float | None
    margin: float
    worse_p: float  # no loss at all
    beyond_p: float  # a loss of the margin at most
    broken_p: float  # a loss of BROKEN margins at most
    no_loss_p: float  # a loss of the margin or more: refuted, the variant is as good
    better_p: float  # a gain of the margin at most


class Asked(NamedTuple):
    """Paired samples of one metric. margin: above 0, in the metric's unit.

    theirs: the reference's samples; None stands for zeros, where ours are differences already.
    """

    metric: str
    ours: Sequence[float]
    theirs: Sequence[float] | None
    better: Better
    margin: float


def compare(
    metric: str,
    ours: Sequence[float],
    theirs: Sequence[float] | None,
    better: Better,
    margin: float,
) -> Comparison:
    """Compare the samples of one metric: see `Asked`, and `compare_all`."""
    return compare_all([Asked(metric, ours, theirs, better, margin)])[0]


def compare_all(asked: Iterable[Asked]) -> list[Comparison]:
    """A comparison of each. Samples of yes and no (0 and 1 alone) get exact tests.

    What has as many samples is compared together: tables of many rows ask for a hundred thousand.
    Raises ValueError for unequal lengths.
    """
    import numpy as np

    found: dict[int, Comparison] = {}
    waiting: dict[int, list[tuple[int, Asked, NDArray[np.float64]]]] = {}
    for i, one in enumerate(asked):
        a = np.asarray(one.ours, dtype=np.float64)
        b = np.zeros_like(a) if one.theirs is None else np.asarray(one.theirs, dtype=np.float64)
        if a.shape != b.shape or not len(a):
            raise ValueError(f"paired samples need equal lengths, got {len(a)} and {len(b)}")
        if one.theirs is not None and _yes_or_no(a) and _yes_or_no(b):
            found[i] = _of_shares(one.metric, a, b, one.better, one.margin)
            continue
        alike = waiting.setdefault(len(a), [])
        alike.append((i, one, b - a if one.better == "lower" else a - b))
        if len(alike) * len(a) >= TOGETHER:
            found |= _compared(waiting.pop(len(a)))
    for alike in waiting.values():
        found |= _compared(alike)
    return [found[i] for i in range(len(found))]


def _compared(
    alike: Sequence[tuple[int, Asked, NDArray[np.float64]]],
) -> dict[int, Comparison]:
    """Of gaps of equal numbers, by the place of each."""
    import numpy as np

    gains = many_moments(np.stack([gaps for _, _, gaps in alike]))
    margins = np.array([one.margin for _, one, _ in alike])
    low, high = gains.intervals()
    two_sided = np.array([one.better == "zero" for _, one, _ in alike])
    tests = np.where(two_sided, _two_sided(gains, margins), _one_sided(gains, margins)).T.tolist()
    bounds = zip(gains.known.tolist(), low.tolist(), high.tolist(), strict=True)
    found = {}
    for (i, one, _), mean, (known, least, most), (worse, beyond, broken, no_loss, better) in zip(
        alike, gains.mean.tolist(), bounds, tests, strict=True
    ):
        found[i] = Comparison(
            metric=one.metric,
            better=one.better,
            n=gains.n,
            gain=mean,
            low=least if known else None,
            high=most if known else None,
            margin=one.margin,
            worse_p=worse,
            beyond_p=beyond,
            broken_p=broken,
            no_loss_p=no_loss,
            better_p=better,
        )
    return found


def compare_unpaired(
    metric: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    better: Literal["higher", "lower"],
    margin: float,
) -> Comparison:
    """As `compare`, of samples that do not belong together one by one: other prompts, other noise.

    By Welch's test; shares of yes and no too, for which that is an approximation.
    """
    a, b = moments(ours), moments(theirs)
    gain = difference(b, a) if better == "lower" else difference(a, b)
    low, high = interval_of(gain)
    loss, n = gain.flipped(), min(a.n, b.n)
    tests = (
        loss.tail(0.0),
        loss.tail(margin),
        loss.tail(BROKEN * margin),
        gain.tail(-margin),
        gain.tail(margin),
    )
    return Comparison(metric, better, n, gain.mean, low, high, margin, *tests)


# Five rows: worse, beyond, broken, no_loss, better.


def _one_sided(gains: ManyMoments, margins: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    losses = gains.flipped()
    return np.stack(
        [
            losses.tails(0 * margins),
            losses.tails(margins),
            losses.tails(BROKEN * margins),
            gains.tails(-margins),
            gains.tails(margins),
        ]
    )


def _two_sided(changes: ManyMoments, margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two one-sided tests either way (Schuirmann 1987): any change beyond the margin is a loss."""
    import numpy as np

    others = changes.flipped()

    def beyond(edges: NDArray[np.float64]) -> NDArray[np.float64]:
        either: NDArray[np.float64] = np.minimum(changes.tails(edges), others.tails(edges))
        return np.minimum(1.0, 2 * either)

    return np.stack(
        [
            beyond(0 * margins),
            beyond(margins),
            beyond(BROKEN * margins),
            np.maximum(changes.tails(-margins), others.tails(-margins)),
            np.ones_like(margins),
        ]
    )


# Shares of videos ---------------------------------------------------------------------------------


def _yes_or_no(values: NDArray[np.float64]) -> bool:
    return values[0] in (0.0, 1.0) and bool(((values == 0) | (values == 1)).all())


def _of_shares(
    metric: str, ours: NDArray[np.float64], theirs: NDArray[np.float64], better: Better,
    margin: float,
) -> Comparison:  # fmt: skip
    """McNemar's exact test of no loss; the others by `loss_tail`, on the videos that changed."""
    from scipy.special import bdtrc

    n = len(ours)
    won, lost = int((ours > theirs).sum()), int((ours < theirs).sum())
    if better == "lower":
        won, lost = lost, won
    low, high = _share_interval(n, lost, won)
    worse = float(bdtrc(lost - 1, lost + won, 0.5)) if lost else 1.0
    return Comparison(
        metric,
        better,
        n,
        (won - lost) / n,
        low,
        high,
        margin,
        worse,
        loss_tail(n, won, lost, -margin),
        loss_tail(n, won, lost, -BROKEN * margin),
        loss_tail(n, lost, won, margin),
        loss_tail(n, lost, won, -margin),
    )


@functools.lru_cache(maxsize=65536)
def loss_tail(n: int, lost: int, won: int, share: float) -> float:
    """p of "the share of videos lost less that won is `share` or more", -1 < share < 1.

    The chance of as small a difference where it is just that share, summed over all outcomes, at
    the likeliest number of changed videos given it (Tango 1998, eq. 9; Lloyd 2008 on tests of this
    kind). With nothing won it is the binomial test: none lost of 12 leaves p = 0.95^12 for 5 %.
    """
    import numpy as np
    from scipy.special import bdtr, gammaln

    if not -1 < share < 1:
        return 1.0 if share <= -1 else 0.0
    a = 2.0 * n
    b = -lost - won + (2 * n - lost + won) * share
    c = -won * share * (1 - share)
    p_won = max((math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a), 0.0, -share)
    p_lost = min(max(p_won + share, 0.0), 1.0)
    changed = min(p_won + p_lost, 1.0)
    if changed == 0:
        return 1.0  # nothing changes for certain, and nothing did
    m = np.arange(n + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = (
            gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)
            + np.where(m > 0, m * np.log(changed), 0.0)
            + np.where(m < n, (n - m) * np.log1p(-changed), 0.0)
        )  # fmt: skip
    most = np.floor((m + lost - won) / 2)  # lost of m changed, for a difference this small
    chances, tails = np.exp(logs), np.where(most >= m, 1.0, 0.0)
    open_ = (most >= 0) & (most < m)
    for faint in (FAINT, -1.0):  # most of the time goes into the tails of what hardly ever is
        some = open_ & (chances > faint)
        tails[some] = bdtr(most[some], m[some], p_lost / changed)
        p = float(min(chances @ tails, 1.0))
        if p > SEEN:
            break
    return p


@functools.lru_cache(maxsize=4096)
def _share_interval(n: int, lost: int, won: int) -> tuple[float | None, float | None]:
    """95 % interval of the share won less that lost: where `loss_tail` says 2.5 %."""
    if n < 2:
        return None, None
    half = (1 - CONFIDENCE) / 2

    def upper(lost: int, won: int) -> float:
        """Largest loss that is not refuted, rounded up to a multiple of STEP."""
        from scipy.optimize import brentq

        def refuted(step: int) -> bool:
            return loss_tail(n, lost, won, step * STEP - 1) <= half

        at = brentq(lambda share: loss_tail(n, lost, won, share) - half, -1, 1, xtol=STEP)
        step = math.ceil((at + 1) / STEP)
        while not refuted(step):
            step += 1
        while refuted(step - 1):
            step -= 1
        return step * STEP - 1

    return -upper(lost, won), upper(won, lost)


def unseen_share(n: int) -> float:
    """The share of videos in which a fault may be and be in none of n, with 5 % chance."""
    return float(1 - (1 - CONFIDENCE) ** (1 / n)) if n else 1.0


def pairs_needed(
    sigma: float, difference: float, alpha: float = 1 - CONFIDENCE, power: float = 0.8
) -> int:
    """Pairs that a two-sided paired t test needs to see `difference` with this power.

    sigma: of the paired differences, in the unit of `difference`. Exact, by the noncentral t
    distribution (Cohen 1988). At least 2.
    """
    if not (sigma >= 0 and difference > 0 and 0 < alpha < 1 and 0 < power < 1):
        raise ValueError("sigma must be 0 or more, difference above 0, alpha and power in (0, 1)")
    from scipy import stats

    ratio, tail = sigma / difference, alpha / 2

    def enough(n: int) -> bool:
        shift, edge = math.sqrt(n) / ratio, stats.t.ppf(1 - tail, n - 1)
        seen = stats.nct.sf(edge, n - 1, shift) + stats.nct.cdf(-edge, n - 1, shift)
        return bool(seen >= power)

    if ratio == 0:
        return 2
    normal = stats.norm.ppf([1 - tail, power]).sum()
    n = max(2, math.ceil((normal * ratio) ** 2))  # a little low, for t is wider
    while not enough(n):
        n += 1
    while n > 2 and enough(n - 1):
        n -= 1
    return n
