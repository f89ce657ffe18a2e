from __future__ import annotations

import math

import numpy as np
import pytest

from qbench.quality.statistics import paired_difference, speed_up, summarise


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
