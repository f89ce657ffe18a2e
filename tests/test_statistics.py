from __future__ import annotations

import math

import numpy as np
import pytest

from qbench.quality.statistics import (
    compare,
    holm,
    paired_difference,
    pairs_needed,
    speed_up,
    summarise,
)


def test_summary_against_closed_forms() -> None:
    found = summarise([1.0, 2.0, 3.0, 4.0])
    assert (found.n, found.mean, found.median) == (4, 2.5, 2.5)
    assert found.sigma == pytest.approx(math.sqrt(5 / 3))  # of the sample, n - 1
    assert found.p90 == pytest.approx(3.7)


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        found = summarise(list(rng.normal(5.0, 2.0, 40)))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 5.0 <= found.high
    assert 88 <= covered <= 99


def test_interval_of_the_median_ignores_an_outlier_that_moves_the_mean() -> None:
    samples = [1.0 + i / 1000 for i in range(30)] + [50.0]
    median, mean = summarise(samples, of="median"), summarise(samples)
    assert median.high is not None
    assert mean.high is not None
    assert median.high < 1.1 < mean.high


def test_too_few_or_unequal_samples() -> None:
    assert summarise([1.0]).low is None
    assert summarise([1.0]).sigma is None
    assert summarise([2.0, 2.0, 2.0]).low == 2.0
    with pytest.raises(ValueError, match="no samples"):
        summarise([])
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1.0], [1.0, 2.0])


def test_speed_up_is_clear_only_beyond_noise() -> None:
    rng = np.random.default_rng(0)
    slow, fast = rng.normal(2.0, 0.05, 20), rng.normal(1.0, 0.05, 20)
    ratio = speed_up(list(slow), list(fast))
    assert ratio.low < 2.0 < ratio.high
    assert ratio.clear
    assert not speed_up(list(slow), list(rng.normal(2.0, 0.05, 20))).clear


def test_pairing_resolves_what_the_spread_between_videos_hides() -> None:
    rng = np.random.default_rng(2)
    video = rng.normal(40, 5, 16)  # videos differ by 5 dB, the variants by 0.5
    a, b = video + 0.5 + rng.normal(0, 0.2, 16), video
    gap = paired_difference(list(a), list(b))
    assert gap.low is not None
    assert gap.low > 0
    separate = summarise(list(a))
    assert separate.low is not None
    assert separate.low < np.mean(b)


def test_comparison_against_scipys_paired_tests() -> None:
    from scipy import stats

    rng = np.random.default_rng(3)
    theirs = rng.normal(30, 3, 50)
    ours = theirs - 0.1 + rng.normal(0, 0.5, 50)
    found = compare("clip_score", list(ours), list(theirs), "higher", 0.5)
    worse = stats.ttest_rel(ours, theirs, alternative="less").pvalue
    above = stats.ttest_1samp(ours - theirs, -0.5, alternative="greater").pvalue
    below = stats.ttest_1samp(ours - theirs, 0.5, alternative="less").pvalue
    assert found.worse_p == pytest.approx(worse)
    assert found.equivalent_p == pytest.approx(max(above, below))
    # Where lower is better, the same samples are a gain.
    turned = compare("flicker", list(ours), list(theirs), "lower", 0.5)
    assert turned.gain == pytest.approx(-found.gain)
    assert turned.worse_p == pytest.approx(1 - worse)


def test_equivalence_is_claimed_no_more_often_than_it_may() -> None:
    """At a true difference of just the margin, in one of twenty trials; at none, nearly always."""
    rng = np.random.default_rng(4)

    def claims(true: float) -> float:
        trials = [
            compare("clip_score", list(rng.normal(true, 1, 60)), [0.0] * 60, "higher", 0.5)
            for _ in range(150)
        ]
        return sum(t.equivalent_p < 0.05 for t in trials) / len(trials)

    assert claims(-0.5) < 0.12
    assert claims(0.0) > 0.9


def test_identical_samples_are_equivalent_and_few_say_nothing() -> None:
    same = compare("clip_score", [1.0, 2.0], [1.0, 2.0], "higher", 0.1)
    assert same.equivalent_p == 0.0
    assert same.worse_p == 1.0
    lost = compare("clip_score", [1.0, 2.0], [2.0, 3.0], "higher", 0.1)
    assert lost.equivalent_p == 1.0
    assert lost.worse_p == 0.0
    one = compare("clip_score", [1.0], [5.0], "higher", 0.1)
    assert one.equivalent_p == 1.0
    assert one.worse_p == 1.0


def test_holm_against_its_steps_written_out() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_error_of_many_variants_at_one_in_twenty() -> None:
    from scipy import stats

    rng = np.random.default_rng(5)
    p = stats.norm.sf(rng.normal(size=(400, 20)))
    alarms = sum(min(holm(list(row))) < 0.05 for row in p) / 400
    alone = sum(min(row) < 0.05 for row in p) / 400
    assert alarms < 0.09
    assert alone > 0.5  # what uncorrected tests would have claimed


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
