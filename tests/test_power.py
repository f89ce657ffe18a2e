"""How many prompts a table of verdicts needs: against the verdicts themselves, simulated."""

from __future__ import annotations

import math

import numpy as np

from qbench.power import Spread, Table
from qbench.quality.floor import Floor
from qbench.quality.statistics import Metric, summarise
from qbench.quality.verdict import Candidate, judge


def _metric(values: np.ndarray) -> Metric:
    samples = [float(value) for value in values]
    found = summarise(samples)
    return Metric(value=found.mean, unit="", better="higher", summary=found, samples=samples)


def test_tables_of_so_many_prompts_settle_as_often_as_was_asked() -> None:
    """Ten equal variants: n by the plan from 64 videos, then whole tables judged at that n."""
    rng = np.random.default_rng(0)
    gaps = rng.normal(0, 1.5, (10, 64))
    gaps = (gaps - gaps.mean(1, keepdims=True)) * 1.5 / gaps.std(1, ddof=1, keepdims=True)
    table = Table([[Spread("clip_score", 0.5, False, row)] for row in gaps], 0)
    n = table.smallest(0.8)
    margins = {"psnr": 48.13, "clip_score": 0.5}
    settled = 0
    for _ in range(60):
        theirs = rng.normal(30, 3, n)
        reference = {"clip_score": _metric(theirs)}
        near = _metric(rng.normal(60, 2, n))
        every = [
            Candidate(str(i), {"clip_score": _metric(theirs + rng.normal(0, 1.5, n)), "psnr": near})
            for i in range(10)
        ]
        found = judge(every, reference, Floor(), {**margins, "psnr": 57.0})
        settled += all(one.shown for one in found)
    assert 0.6 <= settled / 60 <= 0.97
    # Without correction for ten, or for the test of no loss at all, far fewer were said to do.
    assert n > 2 * table.variants[0][0].gaps.var() * (1.645 / 0.5) ** 2


def test_a_share_of_videos_needs_as_many_as_the_binomial_says() -> None:
    """Nothing lost so far: the n at which none of n rules out 5 %."""
    same = Spread("adherence", 0.05, False, np.zeros(12), changed=0.0)
    exact = math.ceil(math.log(0.05) / math.log(0.95))
    assert abs(Table([[same]], 0).smallest(0.8) - exact) <= 1
    # Nine more variants that are never settled, as broken ones: each at a tenth of the 5 %.
    corrected = math.ceil(math.log(0.005) / math.log(0.95))
    assert abs(Table([[same]], 9).smallest(0.8) - corrected) <= 2


def test_an_unreachable_margin_is_said_to_be_so() -> None:
    wide = Spread("clip_score", 1e-6, False, np.random.default_rng(1).normal(0, 1, 40))
    assert Table([[wide]], 0).smallest(0.8) == 0
