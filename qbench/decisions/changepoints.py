"""Where a series changes: E-divisive with a permutation test.

Matteson and James 2014, "A nonparametric approach for multiple change point analysis of
multivariate data" (JASA 109), with exponent 1, by binary segmentation: the split with the largest
divergence of energy distance is kept where fewer than `ALPHA` of the series' permutations have one
as large. It is what MongoDB (Daly et al. 2020, "The use of change point detection to identify
software performance regressions in a continuous integration system", ICPE) and Hunter (Fleming et
al. 2023, ICPE) look for regressions with. Values are taken to be exchangeable where nothing
changes: a machine that drifts steadily has change points too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.quality.means import ALPHA

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SMALLEST = 3  # values on either side of a change point
PERMUTATIONS = 999
MOST = 2000  # values; of a longer series the last


@dataclass(frozen=True)
class ChangePoint:
    """`at`: the place of the first value after the change. p: of no change in its segment."""

    at: int
    p: float


def change_points(values: Sequence[float]) -> list[ChangePoint]:
    """In order. Fewer than six values have none: five cannot be told from chance at 5 %."""
    import numpy as np

    x = np.asarray(values, dtype=np.float64)
    found: list[ChangePoint] = []
    waiting = [(0, len(x))]
    while waiting:
        start, stop = waiting.pop()
        if stop - start < 2 * SMALLEST:
            continue
        at, p = _tested(x[start:stop], seed=start * 100_003 + stop)
        if p < ALPHA:
            found.append(ChangePoint(start + at, p))
            waiting += [(start, start + at), (start + at, stop)]
    return sorted(found, key=lambda point: point.at)


def _tested(x: NDArray[np.float64], seed: int) -> tuple[int, float]:
    """The best split and its p among permutations of the segment, counted with itself."""
    import numpy as np

    if np.ptp(x) == 0:
        return SMALLEST, 1.0
    to_all = np.abs(np.subtract.outer(x, x)).sum(0)
    at, largest = _best(x, to_all)
    rng = np.random.default_rng(seed)
    as_large = 1
    for done in range(1, PERMUTATIONS + 1):
        order = rng.permutation(len(x))
        as_large += _best(x[order], to_all[order])[1] >= largest * (1 - 1e-12)
        if as_large > ALPHA * (PERMUTATIONS + 1) * 2 and as_large > 0.2 * done:
            return at, (as_large + 0.0) / (done + 1)  # plainly none: no need for the rest
    return at, as_large / (PERMUTATIONS + 1)


def _best(x: NDArray[np.float64], to_all: NDArray[np.float64]) -> tuple[int, float]:
    """The split with the largest scaled energy distance between the sides, and that distance.

    to_all: of each value, the sum of its distances to all others.

    Q(n, m) = nm / (n + m) * (2 E|X - Y| - E|X - X'| - E|Y - Y'|), means over pairs of different
    values (Matteson and James 2014, eq. 5 and 7), for all splits at once from cumulative sums.
    """
    import numpy as np

    count = len(x)
    splits = np.arange(SMALLEST, count - SMALLEST + 1)
    first_to_all = to_all.cumsum()[splits - 1]
    within_first = 2 * _to_earlier(x).cumsum()[splits - 1]
    between = first_to_all - within_first
    within_second = to_all.sum() - 2 * first_to_all + within_first
    n, m = splits.astype(np.float64), (count - splits).astype(np.float64)
    energy = 2 * between / (n * m) - within_first / (n * (n - 1)) - within_second / (m * (m - 1))
    scaled = n * m / count * energy
    best = int(np.argmax(scaled))
    return int(splits[best]), float(scaled[best])


def _to_earlier(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each value, the sum of its distances to those before it.

    Pair by pair within blocks of twice the square root of their number; of the blocks before, from
    how many values are no larger and what these add up to: n^1.5 steps in place of n^2.
    """
    import numpy as np

    count = len(x)
    size = round(2 * count**0.5)
    blocks = -(-count // size)
    rows = np.resize(x, blocks * size).reshape(blocks, size)  # the last block's end is of no use
    pairs = np.abs(rows[:, :, None] - rows[:, None, :])
    found = np.einsum("bij,ij->bi", pairs, np.tri(size, k=-1)).ravel()[:count]
    order = np.argsort(x, kind="stable")
    ranks = np.empty(count, dtype=np.intp)
    ranks[order] = np.arange(count)
    block = np.arange(count) // size
    # (block, rank): how many values of the blocks so far have at most this rank, and their sum.
    known = np.zeros((2, blocks, count))
    known[:, order // size, np.arange(count)] = np.ones(count), x[order]
    known = known.cumsum(axis=1).cumsum(axis=2)
    later = block > 0
    smaller, below = known[:, block[later] - 1, ranks[later]]
    everything = known[1, block[later] - 1, -1]
    before = block[later] * size
    found[later] += x[later] * (2 * smaller - before) + everything - 2 * below
    return found
