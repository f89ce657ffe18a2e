from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from qbench.quality.means import mean_interval, moments
from qbench.quality.ratios import Ratio, paired_speed_up, speed_up, speed_words
from qbench.quality.statistics import (
    RESAMPLES,
    effective_n,
    holm,
    median_interval,
    paired_difference,
    resampled_medians,
    summarise,
)


def test_summary_against_closed_forms() -> None:
    found = summarise([1.0, 2.0, 3.0, 4.0])
    assert (found.n, found.mean, found.median) == (4, 2.5, 2.5)
    assert found.sigma == pytest.approx(math.sqrt(5 / 3))  # of the sample, n - 1
    assert found.p90 == pytest.approx(3.7)


@pytest.mark.parametrize(
    ("draw", "mean", "least"),
    [
        (lambda rng, n: rng.normal(5.0, 2.0, n), 5.0, 0.93),
        (lambda rng, n: rng.lognormal(0.0, 0.5, n), math.exp(0.125), 0.92),
        (lambda rng, n: rng.lognormal(0.0, 1.0, n), math.exp(0.5), 0.87),
        (lambda rng, n: rng.standard_t(3, n), 0.0, 0.93),
    ],
)
def test_interval_covers_the_true_mean_as_often_as_it_says(
    draw: Callable[[np.random.Generator, int], np.ndarray], mean: float, least: float
) -> None:
    """At n = 12. BCa, which stood here before, covered 90 % of the first and 84 % of the third."""
    rng = np.random.default_rng(1)
    found = [mean_interval(draw(rng, 12)) for _ in range(800)]
    assert np.mean([low <= mean <= high for low, high in found if low is not None]) >= least


def test_interval_of_a_symmetric_sample_is_students() -> None:
    from scipy import stats

    x = [1.0, 2.0, 3.0, 4.0, 5.0]
    low, high = mean_interval(x)
    expected = stats.t.interval(0.95, 4, loc=3.0, scale=stats.sem(x))
    assert (low, high) == pytest.approx(expected)
    found = moments(x)
    assert found.tail(2.0) == pytest.approx(stats.ttest_1samp(x, 2.0, alternative="greater").pvalue)


def test_bounds_and_tests_of_a_mean_agree() -> None:
    """The mean is above its own lower bound with p of just one in forty, skewed or not."""
    x = np.random.default_rng(2).lognormal(0, 1, 20)
    low, high = mean_interval(x)
    assert low is not None
    assert high is not None
    assert moments(x).tail(low) == pytest.approx(0.025, rel=1e-6)
    assert moments(x).flipped().tail(-high) == pytest.approx(0.025, rel=1e-6)
    assert high - x.mean() > x.mean() - low  # the long side of the sample


@pytest.mark.parametrize("n", [1, 2, 3, 12, 13, 256, 300])
def test_medians_of_resamples_are_those_of_the_drawn_samples(n: int) -> None:
    rng = np.random.default_rng(n)
    values = np.round(rng.lognormal(size=n), 1)  # some of them alike
    picks = np.random.default_rng(7).integers(n, size=(RESAMPLES, n))
    expected = np.median(values[picks], axis=1)
    assert np.array_equal(resampled_medians(tuple(values.tolist()), 7), expected)


def test_no_time_is_below_zero_however_few_there_are() -> None:
    low, high = median_interval(np.array([0.01, 0.1, 0.2]))
    assert low == 0
    assert high is not None
    assert high > 0.2
    shifted, _ = median_interval(np.array([0.01, 0.1, 0.2]) - 0.1)
    assert shifted is not None
    assert shifted < -0.09  # what has negative values may have a negative median


def test_interval_of_the_median_ignores_an_outlier_that_moves_the_mean() -> None:
    samples = [1.0 + i / 1000 for i in range(30)] + [50.0]
    median, mean = summarise(samples, of="median"), summarise(samples)
    assert median.high is not None
    assert mean.high is not None
    assert median.high < 1.1 < mean.high


def test_too_few_or_unequal_samples() -> None:
    assert summarise([1.0]).low is None
    assert summarise([1.0]).sigma is None
    assert summarise([2.0, 2.0, 2.0]).low is None  # no spread seen, so none can be given
    assert moments([2.0] * 12).tail(1.0) == 1.0
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


def _correlated(rng: np.random.Generator, n: int, r: float) -> np.ndarray:
    """AR(1) of unit variance."""
    x = np.empty(n)
    x[0] = rng.normal()
    for i in range(1, n):
        x[i] = r * x[i - 1] + math.sqrt(1 - r * r) * rng.normal()
    return x


def test_effective_n_of_independent_and_of_correlated_samples() -> None:
    rng = np.random.default_rng(3)
    assert effective_n(rng.normal(size=2000)) > 1800
    # AR(1) of 0.5: a third of the samples.
    assert effective_n(_correlated(rng, 2000, 0.5)) == pytest.approx(2000 / 3, rel=0.15)
    assert effective_n([1.0, 1.0, 1.0]) == 3.0


@pytest.mark.parametrize(("r", "least"), [(0.0, 0.93), (0.5, 0.9), (0.9, 0.82)])
def test_interval_of_a_speed_up_allows_for_correlated_turns(r: float, least: float) -> None:
    """40 turns that drift by 3 %. Without the allowance 0.9 is covered in 42 %."""
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        ours = np.exp(0.03 * _correlated(rng, 40, r))
        found = paired_speed_up([1.0] * 40, list(ours))
        covered += found.low <= 1 <= found.high
    assert covered / 200 >= least


def test_runs_one_after_the_other_carry_no_faster() -> None:
    apart = speed_up([2.0, 2.1, 1.9, 2.05], [1.0, 1.1, 1.0, 1.05])
    turns = paired_speed_up([2.0, 2.1, 1.9, 2.05], [1.0, 1.1, 1.0, 1.05])
    assert speed_words([apart, turns, None]) == ["not interleaved", "faster", ""]
    # Drift that looks like one steady rise leaves too few independent turns for a claim.
    rising = paired_speed_up([1.0] * 12, list(np.linspace(0.8, 0.95, 12)))
    assert speed_words([rising]) == ["too few"]
    assert speed_words([paired_speed_up([2.0, 2.1], [1.0, 1.0])]) == ["too few"]
    # Records of earlier versions hold the interval alone.
    old = Ratio(value=0.8, low=0.75, high=0.85)
    assert speed_words([old]) == ["SLOWER"]


def test_tables_of_equal_variants_seldom_call_one_faster() -> None:
    """Twenty equals; by their intervals alone three of four tables would."""
    rng = np.random.default_rng(5)
    alarms = alone = 0
    for _ in range(100):
        table = [
            paired_speed_up([1.0] * 12, list(np.exp(rng.normal(0, 0.03, 12)))) for _ in range(20)
        ]
        words = speed_words(table)
        alarms += "faster" in words or "SLOWER" in words
        alone += any(ratio.clear for ratio in table)
    assert alarms <= 12
    assert alone > 25


def test_nothing_whose_interval_holds_1_is_called_faster() -> None:
    """A bootstrapped interval is lopsided where the samples are few: the side towards 1 counts."""
    lopsided = paired_speed_up([0.906, 0.754, 0.715], [0.779, 0.567, 0.539])
    assert lopsided.low < 1 < lopsided.value
    assert speed_words([lopsided]) == ["no difference"]
    rng = np.random.default_rng(6)
    for n in (3, 4, 6, 12):
        for _ in range(100):
            found = paired_speed_up([1.0] * n, list(np.exp(rng.exponential(0.2, n) - 0.3)))
            if speed_words([found])[0] in ("faster", "SLOWER"):
                assert found.clear, found


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
