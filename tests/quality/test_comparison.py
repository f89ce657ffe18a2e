"""Paired tests of a figure, against independent implementations and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qbench.quality.comparison import (
    Asked,
    Better,
    compare,
    compare_all,
    loss_tail,
    pairs_needed,
    unseen_share,
)
from qbench.quality.means import interval_of, moments


def test_comparison_against_scipys_paired_tests() -> None:
    from scipy import stats

    theirs = np.linspace(20, 40, 41)
    gaps = np.random.default_rng(3).normal(-0.1, 0.5, 20)
    gaps = np.concatenate([gaps, [-0.1], -0.2 - gaps])  # symmetric, so that Student's test is it
    ours = theirs + gaps
    found = compare("clip_score", list(ours), list(theirs), "higher", 0.5)
    worse = stats.ttest_rel(ours, theirs, alternative="less").pvalue
    no_loss = stats.ttest_1samp(gaps, -0.5, alternative="greater").pvalue
    assert found.worse_p == pytest.approx(worse)
    assert found.no_loss_p == pytest.approx(no_loss)
    assert found.beyond_p == pytest.approx(1 - no_loss)
    assert found.gain == pytest.approx(-0.1)
    # Where lower is better, the same samples are a gain.
    turned = compare("flicker", list(ours), list(theirs), "lower", 0.5)
    assert turned.gain == pytest.approx(-found.gain)
    assert turned.worse_p == pytest.approx(1 - worse)
    # Where zero is best, both directions are tested (Schuirmann 1987).
    both = compare("sharpness", list(gaps), None, "zero", 0.5)
    above = stats.ttest_1samp(gaps, 0.5, alternative="less").pvalue
    assert both.no_loss_p == pytest.approx(max(no_loss, above))
    assert both.worse_p == pytest.approx(stats.ttest_1samp(gaps, 0.0).pvalue)
    assert both.better_p == 1.0


@pytest.mark.parametrize("skew", [False, True])
def test_no_loss_is_claimed_no_more_often_than_it_may(skew: bool) -> None:
    """At a true loss of just the margin in one of twenty trials; at none, mostly.

    Skewed: a few videos lose much, as a lognormal does. Student's test alone would claim too often.
    """
    rng = np.random.default_rng(4)

    def claims(true: float) -> float:
        hit = 0
        for _ in range(300):
            loss = (rng.lognormal(0, 1, 60) - np.exp(0.5)) / 2 if skew else rng.normal(0, 1, 60)
            gaps = list(-true - loss)
            hit += compare("clip_score", gaps, [0.0] * 60, "higher", 0.5).no_loss_p < 0.05
        return hit / 300

    assert claims(0.5) < 0.09
    assert claims(0.0) > 0.7


def test_samples_all_the_same_are_too_few_to_say() -> None:
    """Twelve equal differences say nothing of the spread; nor does one video of anything."""
    same = compare("clip_score", [1.0] * 12, [1.5] * 12, "higher", 0.1)
    assert (same.low, same.high) == (None, None)
    for n in (1, 2, 12):
        found = compare("clip_score", [1.0] * n, [22.0] * n, "higher", 0.1)
        assert found.worse_p == found.no_loss_p == found.broken_p == 1.0
    with pytest.raises(ValueError, match="equal lengths"):
        compare("clip_score", [1.0], [1.0, 2.0], "higher", 0.1)


def test_shares_of_videos_have_exact_tests() -> None:
    """12 of 12 against 12 of 12 was an interval of [0, 0] and an equivalence for certain."""
    from scipy import stats

    ones = [1.0] * 12
    found = compare("adherence", ones, ones, "higher", 0.05)
    assert found.no_loss_p == pytest.approx(0.95**12)  # none of 12 lost, where 5 % would
    assert found.low is not None
    assert found.high is not None
    # Both ends by the binomial: a share of which none in 12 is seen in 2.5 %.
    assert found.low == pytest.approx(-(1 - 0.025 ** (1 / 12)), abs=1e-6)
    assert found.high == pytest.approx(1 - 0.025 ** (1 / 12), abs=1e-6)
    assert unseen_share(12) == pytest.approx(1 - 0.05 ** (1 / 12))
    # McNemar's exact test of no loss.
    lost = [0.0] * 7 + [1.0] * 5
    theirs = [1.0] * 11 + [0.0]
    worse = stats.binomtest(7, 8, alternative="greater").pvalue
    assert compare("adherence", lost, theirs, "higher", 0.05).worse_p == pytest.approx(worse)


def test_test_of_shares_against_all_outcomes_written_out() -> None:
    """Every outcome of five videos with its chance, at the likeliest number of changes."""
    from itertools import product
    from math import prod

    n, lost, won, share = 5, 1, 1, 0.3
    grid = np.linspace(1e-6, (1 - share) / 2 - 1e-6, 200_001)
    fits = lost * np.log(grid + share) + won * np.log(grid)
    fits += (n - lost - won) * np.log(1 - 2 * grid - share)
    p_won = grid[fits.argmax()]
    chances = {1: p_won + share, -1: p_won, 0: 1 - 2 * p_won - share}
    expected = sum(
        prod(chances[one] for one in outcome)
        for outcome in product(chances, repeat=n)
        if sum(outcome) <= lost - won
    )
    assert loss_tail(n, lost, won, share) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n", [12, 60])
def test_loss_of_shares_is_not_ruled_out_too_often(n: int) -> None:
    """A true loss of the margin, and of twice it: that one was settled in 24 % at n = 12."""
    rng = np.random.default_rng(5)
    for loss, won in ((0.05, 0.0), (0.05, 0.1), (0.1, 0.0)):
        drawn = rng.multinomial(n, [loss + won, won, 1 - loss - 2 * won], size=1000)
        hit = [loss_tail(n, int(a), int(b), 0.05) < 0.05 for a, b, _ in drawn]
        assert np.mean(hit) <= 0.06


def test_pairs_needed_against_simulation_and_a_table() -> None:
    # Cohen's d of 0.5 (Cohen 1988, paired, two-sided 5 %, power 80 %): 34 pairs.
    assert pairs_needed(1.0, 0.5) == 34
    assert pairs_needed(3.0, 0.5) > pairs_needed(3.0, 1.0)
    assert pairs_needed(0.0, 0.5) == 2
    from scipy import stats

    n = pairs_needed(2.0, 1.0, power=0.9)
    rng = np.random.default_rng(6)
    gaps = rng.normal(1.0, 2.0, (2000, n))
    seen = (stats.ttest_1samp(gaps, 0.0, axis=1).pvalue < 0.05).mean()
    assert 0.87 < seen < 0.93
    with pytest.raises(ValueError, match="difference above 0"):
        pairs_needed(1.0, 0.0)


def test_many_samples_at_once_are_each_as_by_itself() -> None:
    """Of several lengths, some all the same, some not finite, and some of yes and no."""
    rng = np.random.default_rng(4)
    asked = []
    for i in range(120):
        n = int(rng.choice([1, 2, 3, 12, 64]))
        ours, theirs = rng.lognormal(size=n), rng.lognormal(size=n)
        if i % 5 == 1:
            ours, theirs = np.full(n, 2.5), np.full(n, 2.0)
        if i % 5 == 2:
            ours[0] = math.inf
        if i % 5 == 3:
            ours, theirs = (1.0 * (rng.random(n) < 0.8) for _ in range(2))
        better: Better = ("higher", "lower", "zero")[i % 3] if i % 5 != 3 else "higher"
        asked.append(Asked(f"m{i}", ours.tolist(), theirs.tolist(), better, 0.3))
    together = compare_all(asked)
    assert [repr(one) for one in together] == [repr(compare(*one)) for one in asked]
    for one, found in zip(asked, together, strict=True):
        gaps = np.subtract(*((one.theirs, one.ours) if one.better == "lower" else one[1:3]))
        if not np.isfinite(gaps).all() or set(one.ours) | set(one.theirs or ()) <= {0.0, 1.0}:
            continue
        known = moments(gaps)
        low, high = interval_of(known)
        assert (found.low, found.high) == pytest.approx((low, high))
        if one.better != "zero":
            assert found.no_loss_p == pytest.approx(known.tail(-0.3))
            assert found.broken_p == pytest.approx(known.flipped().tail(5 * 0.3))
