"""What figures become: each row of the table in `qbench.quality.verdict`."""

from __future__ import annotations

import numpy as np
import pytest

from qbench.quality.metrics.catalogue import METRICS, margins
from qbench.quality.statistics import Metric
from qbench.quality.verdict import Candidate, Floor, Judged, Quality, judge
from qbench.recipe import schema

N = 200
RNG = np.random.default_rng(0)
CLIP = RNG.normal(30, 3, N)


def sampled(name: str, values: list[float]) -> Metric:
    return METRICS[name].sampled(values)


def margins_of(**sizes: float) -> dict[str, float]:
    """What a verdict is given: the recipe's margins in each metric's unit."""
    return margins(schema.Quality.model_validate({"margins": sizes}), REFERENCE)


REFERENCE: Quality = {
    "clip_score": sampled("clip_score", list(CLIP)),
    "flicker": sampled("flicker", list(RNG.uniform(0.01, 0.03, N))),
}


def variant(loss: float = 0.0, psnr: float = 60.0, fvd: float = 0.1, n: int = N) -> Quality:
    """A variant that loses `loss` of CLIP score and is `psnr` from the reference's videos."""
    noise = np.random.default_rng(1).normal(0, 0.3, n)
    return {
        "clip_score": sampled("clip_score", list(CLIP[:n] - loss + noise)),
        "psnr": sampled("psnr", list(np.random.default_rng(2).normal(psnr, 2, n))),
        "fvd_reference": Metric(value=fvd, unit="distance", better="lower"),
    }


def said(quality: Quality, floor: Floor | None = None, invalid: str = "") -> Judged:
    return judge([Candidate("v", quality, invalid)], REFERENCE, floor or Floor(), margins_of())[0]


def test_the_same_videos_are_indistinguishable() -> None:
    found = said(variant())
    assert found.text == "indistinguishable"
    assert found.alone["clip_score"] == "indistinguishable"


def test_other_videos_as_good_are_drift() -> None:
    found = said(variant(psnr=40))
    assert found.text == "drift"
    assert "40" in found.because
    assert "48.1" in found.because


def test_a_measured_floor_wider_than_a_display_counts_instead() -> None:
    """A BF16 reference compiled is not itself to the level, so no variant can be asked to be."""
    floor = Floor(same_noise={"compiled": variant(psnr=38)})
    assert said(variant(psnr=40), floor).text == "indistinguishable"
    assert said(variant(psnr=36), floor).text == "drift"
    # The floor itself is not judged by itself.
    itself = judge([Candidate("compiled", variant(psnr=38))], REFERENCE, floor, margins_of())[0]
    assert itself.text == "drift"


@pytest.mark.parametrize(("loss", "verdict"), [(0.2, "drift"), (1.0, "degraded"), (4.0, "broken")])
def test_a_loss_counts_in_margins(loss: float, verdict: str) -> None:
    found = said(variant(loss, psnr=40))
    assert found.text == verdict
    assert ("clip_score" in found.because) == (verdict != "drift")


def test_an_invalid_output_is_broken_whatever_its_figures() -> None:
    found = said(variant(), invalid="black in 3 of 3 videos")
    assert found.text == "broken"
    assert found.because == "black in 3 of 3 videos"
    assert said({}, invalid="NaN").text == "broken"


def test_further_as_a_set_than_another_seed_is_degraded() -> None:
    floor = Floor(other_noise={"seed": variant(psnr=20, fvd=2.0)})
    assert said(variant(psnr=30, fvd=2.9), floor).text == "drift"
    found = said(variant(psnr=30, fvd=3.1), floor)
    assert found.text == "degraded"
    assert "FVD 3.1" in found.because


def test_videos_of_other_noise_are_named_as_such() -> None:
    floor = Floor(other_noise={"seed": variant(psnr=20, fvd=2.0)})
    found = said(variant(psnr=20, fvd=2.0), floor)
    assert found.text == "drift"
    assert "noise" in found.because


def test_too_few_videos_leave_a_question_mark() -> None:
    few = variant(psnr=60, n=4)
    reference = {"clip_score": sampled("clip_score", list(CLIP[:4]))}
    wide = margins_of(clip_score=0.05)
    found = judge([Candidate("v", few)], reference, Floor(), wide)[0]
    assert found.text == "indistinguishable?"
    assert "too few videos" in found.because
    assert not said({"psnr": variant()["psnr"]}).shown  # nothing was compared at all


def test_a_gain_beyond_the_margin_is_a_change() -> None:
    assert said(variant(loss=-2.0)).text == "drift"


def test_many_variants_do_not_make_chance_a_loss() -> None:
    """Twenty equal variants with a small margin: uncorrected, some would be called worse."""
    rng = np.random.default_rng(7)

    def equal() -> Quality:
        return {"clip_score": sampled("clip_score", list(CLIP + rng.normal(0, 1, N)))}

    tight = margins_of(clip_score=0.01)
    every = [Candidate(str(i), equal()) for i in range(40)]
    together = judge(every, REFERENCE, Floor(), tight)
    alone = [judge([one], REFERENCE, Floor(), tight)[0] for one in every]
    assert all(j.verdict == "drift" for j in together)
    assert any(j.verdict == "degraded" for j in alone)
