"""What figures become: each row of the table in `qbench.quality.verdict`."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from qbench.quality.floor import Floor, Quality
from qbench.quality.statistics import Metric, summarise
from qbench.quality.verdict import SET_SHARE, Candidate, Judged, judge

N = 200
RNG = np.random.default_rng(0)
CLIP = RNG.normal(30, 3, N)
MARGINS = {"psnr": 48.13, "clip_score": 0.5, "flicker": 0.002}


def sampled(values: np.ndarray, better: Literal["higher", "lower"] = "higher") -> Metric:
    samples = [float(value) for value in values]
    found = summarise(samples)
    return Metric(value=found.mean, unit="", better=better, summary=found, samples=samples)


REFERENCE: Quality = {
    "clip_score": sampled(CLIP),
    "flicker": sampled(RNG.uniform(0.01, 0.03, N), "lower"),
}


def variant(
    loss: float = 0.0, psnr: float = 60.0, n: int = N, spread: float = 0.3, **more: Metric
) -> Quality:
    """A variant that loses `loss` of CLIP score and is `psnr` from the reference's videos."""
    noise = np.random.default_rng(1).normal(0, spread, n)
    return {
        "clip_score": sampled(CLIP[:n] - loss + noise),
        "psnr": sampled(np.random.default_rng(int(psnr)).normal(psnr, 2, n)),
        **more,
    }


def cut(quality: Quality, n: int) -> Quality:
    """The same of the first n videos alone."""
    return {
        name: sampled(
            np.array((metric.samples or [])[:n]), "lower" if name == "flicker" else "higher"
        )
        for name, metric in quality.items()
    }


def said(
    quality: Quality, floor: Floor | None = None, invalid: str = "", older: bool = True
) -> Judged:
    """The verdict; `older`, so that figures of picture and motion are not asked for."""
    one = Candidate("v", quality, invalid, older=older)
    return judge([one], REFERENCE, floor or Floor(), MARGINS)[0]


def test_the_same_videos_are_indistinguishable() -> None:
    found = said(variant())
    assert found.text == "indistinguishable"
    assert found.alone["clip_score"] == "indistinguishable"


def test_other_videos_as_good_are_drift() -> None:
    found = said(variant(psnr=40))
    assert found.verdict == "drift"
    assert "40" in found.because
    assert "48.1" in found.because


def test_what_nothing_has_looked_at_is_unverified_and_never_drift() -> None:
    """Without CLIP there is nothing that sees content; without the others, neither of the rest."""
    blind = said({"psnr": variant(psnr=40)["psnr"]}, older=False)
    assert blind.text == "unverified"
    assert not blind.shown
    assert [line.split(":")[0] for line in blind.missing[:3]] == ["content", "picture", "motion"]
    assert "--set" in blind.missing[0]
    content_alone = said(variant(psnr=40), older=False)
    assert content_alone.text == "unverified"
    assert content_alone.rests_on["content"] == ("clip_score",)
    assert not any(line.startswith("content") for line in content_alone.missing)
    # Videos that are the reference's own need no other figure, and a loss that was seen is one.
    assert said({"psnr": variant()["psnr"]}, older=False).verdict == "indistinguishable"
    assert said(variant(4.0, psnr=40), older=False).text == "broken"


def test_records_of_versions_without_these_figures_carry_a_question_mark() -> None:
    found = said(variant(psnr=40))
    assert found.text == "drift?"
    assert "picture and motion" in found.because
    assert said({"psnr": variant(psnr=40)["psnr"]}).text == "unverified"  # nothing saw content


def test_a_measured_floor_wider_than_a_display_counts_instead() -> None:
    """A BF16 reference compiled is not itself to the level, so no variant can be asked to be."""
    floor = Floor(same_noise={"compiled": variant(psnr=38)})
    assert said(variant(psnr=40), floor).text == "indistinguishable"
    assert said(variant(psnr=35), floor).verdict == "drift"
    # The floor itself is not judged by itself.
    itself = judge([Candidate("compiled", variant(psnr=38), older=True)], REFERENCE, floor, MARGINS)
    assert itself[0].verdict == "drift"


def test_a_floor_does_not_reject_its_own_kind() -> None:
    """Variants of the floor's own distribution, of 12 videos: it once rejected three of four."""
    rng = np.random.default_rng(3)
    floor = Floor(same_noise={"compiled": cut(variant(psnr=42), 12)})
    reference = cut(REFERENCE, 12)
    rejected = 0
    for _ in range(200):
        own = {**cut(variant(), 12), "psnr": sampled(rng.normal(42, 2, 12))}
        found = judge([Candidate("v", own, older=True)], reference, floor, MARGINS)[0]
        rejected += found.verdict != "indistinguishable"
    assert rejected <= 10


def test_a_floor_that_is_itself_broken_widens_nothing() -> None:
    broken = variant(4.0, psnr=20)
    far = Floor(same_noise={"compiled": broken})
    both = [Candidate("compiled", broken, older=True), Candidate("v", variant(psnr=36), older=True)]
    floor, other = judge(both, REFERENCE, far, MARGINS)
    assert floor.text == "broken"
    assert other.verdict == "drift"
    assert any("compiled is far from the reference itself" in line for line in other.missing)
    # One that lies where another seed's videos do is none either, whatever its figures.
    seed = Floor(same_noise={"kernel": variant(psnr=20)}, other_noise={"seed": variant(psnr=20)})
    assert said(variant(psnr=30), seed).verdict == "drift"


@pytest.mark.parametrize(("loss", "verdict"), [(0.2, "drift"), (1.0, "degraded"), (4.0, "broken")])
def test_a_loss_counts_in_margins(loss: float, verdict: str) -> None:
    found = said(variant(loss, psnr=40))
    assert found.verdict == verdict
    assert found.shown == (verdict != "drift")  # the records are of a version that saw no motion
    assert ("clip_score" in found.because) == (verdict != "drift")


def test_a_loss_around_the_margin_is_degraded_with_a_question_mark() -> None:
    """A loss for certain, and whether it is beyond the margin is open."""
    assert said(variant(0.5, psnr=40)).text == "degraded?"


def test_half_a_margin_is_not_called_degraded_for_certain() -> None:
    rng = np.random.default_rng(9)
    sure = 0
    for n in (12, 40, 128):
        for _ in range(100):
            lost = {
                **variant(psnr=40, n=n),
                "clip_score": sampled(CLIP[:n] - 0.25 + rng.normal(0, 0.6, n)),
            }
            found = judge([Candidate("v", lost, older=True)], cut(REFERENCE, n), Floor(), MARGINS)[
                0
            ]
            sure += found.text == "degraded"
    assert sure <= 15  # 5 % of 300


def test_an_invalid_output_is_broken_whatever_its_figures() -> None:
    found = said(variant(), invalid="black in 3 of 3 videos")
    assert found.text == "broken"
    assert found.because == "black in 3 of 3 videos"
    assert said({}, invalid="NaN").text == "broken"


def test_a_figure_that_is_best_at_zero_loses_either_way() -> None:
    rng = np.random.default_rng(4)

    def sharper(by: float) -> Judged:
        figure = sampled(rng.normal(by, 0.1, N)).model_copy(update={"better": "zero"})
        margins = {**MARGINS, "clip_consistency": 0.2}
        quality = variant(psnr=40, clip_consistency=figure)
        return judge([Candidate("v", quality, older=True)], REFERENCE, Floor(), margins)[0]

    assert sharper(0.5).text == sharper(-0.5).text == "degraded"
    assert sharper(2.0).text == "broken"
    assert sharper(0.02).verdict == "drift"
    assert sharper(0.02).tests[-1].settled


def test_the_set_is_held_against_its_own_spread() -> None:
    rng = np.random.default_rng(5)

    def away(share: float) -> Judged:
        figure = sampled(rng.normal(share * 1000, 5, N), "lower")
        return said(variant(psnr=40, kvd_reference=figure.model_copy(update={"scale": 1000.0})))

    assert away(0.0).alone["kvd_reference"] == "indistinguishable"
    assert away(3 * SET_SHARE).text == "degraded"
    assert "kvd_reference" in away(3 * SET_SHARE).because


def test_a_set_distance_without_an_interval_never_speaks_for_certain() -> None:
    def distance(value: float) -> Metric:
        return Metric(value=value, unit="distance", better="lower")

    seed = {"psnr": variant(psnr=20)["psnr"], "fvd_reference": distance(2.0)}
    floor = Floor(other_noise={"seed": seed})
    assert said(variant(psnr=30, fvd_reference=distance(2.9)), floor).verdict == "drift"
    found = said(variant(psnr=30, fvd_reference=distance(3.1)), floor)
    assert found.text == "degraded?"
    assert "FVD 3.1" in found.because
    # Without another seed's there is nothing to hold it against.
    assert said(variant(psnr=30, fvd_reference=distance(3.1))).verdict == "drift"


@pytest.mark.parametrize("figure", ["psnr", "latent_error"])
def test_as_far_as_another_seed_is_said_beside_the_word(figure: str) -> None:
    error = sampled(np.random.default_rng(6).normal(0.12, 0.01, N), "lower")
    near = error.model_copy(update={"value": 0.02})
    seed = {"psnr": variant(psnr=20)["psnr"], "latent_error": error}
    floor = Floor(other_noise={"seed": seed})
    close = said(variant(psnr=30, latent_error=near), floor)
    assert close.distance == "close"
    strayed = variant(psnr=20, latent_error=near)
    if figure == "latent_error":
        strayed = variant(psnr=30, latent_error=error)
    far = said(strayed, floor)
    assert far.distance == "as far as another seed"
    assert figure in far.because
    assert said(strayed).distance == ""  # no seed floor to tell by
    assert any("floor/seed" in line for line in said(strayed).missing)
    own = judge([Candidate("v", strayed, other_noise=True)], REFERENCE, floor, MARGINS)[0]
    assert own.distance == "other noise"


def test_no_figure_is_so_skewed_that_nothing_is_closer_than_another_seed() -> None:
    """LPIPS and latent error of other noise have standard deviations as large as their means."""
    skewed = np.random.default_rng(7).exponential(0.08, N)
    floor = Floor(other_noise={"seed": {"lpips": sampled(skewed, "lower")}})
    found = {}
    for error in (0.0001, 0.01, 0.02, 0.08):
        one = variant(psnr=40) | {"lpips": sampled(np.full(N, error), "lower")}
        found[error] = said(one, floor).distance
    # A sixth of an exponential distribution lies below 0.18 of its mean.
    far = "as far as another seed"
    assert found == {0.0001: "close", 0.01: "close", 0.02: far, 0.08: far}


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_videos_are_never_settled(n: int) -> None:
    """One video that lost everything was once *drift* without a question mark."""
    lost = {"clip_score": sampled(CLIP[:n] - 22), "psnr": sampled(np.full(n, 18.0))}
    reference = cut(REFERENCE, n)
    found = judge([Candidate("v", lost)], reference, Floor(), MARGINS)[0]
    assert not found.shown
    assert found.text == "unverified"
    assert "too few" in found.missing[0]
    same = {"clip_score": sampled(CLIP[:n]), "psnr": sampled(np.full(n, 100.0))}
    assert (
        judge([Candidate("v", same)], reference, Floor(), MARGINS)[0].text == "indistinguishable?"
    )


def test_few_videos_leave_a_question_mark() -> None:
    few = variant(psnr=50.5, n=12)
    margins = {**MARGINS, "clip_score": 0.05}
    found = judge([Candidate("v", few)], cut(REFERENCE, 12), Floor(), margins)[0]
    assert found.text == "indistinguishable?"
    assert "too few videos" in found.because
    assert not said({"psnr": variant()["psnr"]}).shown  # nothing was compared at all


def test_videos_equal_to_the_bit_leave_nothing_open() -> None:
    same = {**cut(REFERENCE, 12), "psnr": sampled(np.full(12, 100.0))}
    assert judge([Candidate("v", same)], cut(REFERENCE, 12), Floor(), MARGINS)[0].text == (
        "indistinguishable"
    )


def test_an_interval_below_every_video_does_not_make_other_videos_of_them() -> None:
    """Tokens split over two processes: six of eight videos equal to the bit, none below 62 dB."""
    most = [100.0, 62.0, 100.0, 67.8, 100.0, 100.0, 100.0, 100.0]
    same = {**cut(REFERENCE, 8), "psnr": sampled(np.array(most))}
    assert (same["psnr"].summary or summarise(most)).low < MARGINS["psnr"] < min(most)
    found = judge([Candidate("v", same)], cut(REFERENCE, 8), Floor(), MARGINS)[0]
    assert found.text == "indistinguishable"
    assert "at least 62.0" in found.because
    one = Candidate("v", {**same, "psnr": sampled(np.array([100.0, 45.0, *most[2:]]))}, older=True)
    assert judge([one], cut(REFERENCE, 8), Floor(), MARGINS)[0].verdict == "drift"


def test_a_gain_beyond_the_margin_is_a_change() -> None:
    found = said(variant(loss=-2.0))
    assert found.verdict == "drift"
    assert "clip_score +1.98" in found.because
    assert said(variant(loss=-0.55)).verdict == "indistinguishable"  # beyond it, by chance maybe


def test_many_variants_do_not_make_chance_a_loss() -> None:
    """Forty equal variants with a small margin: uncorrected, some would be called worse."""
    rng = np.random.default_rng(7)

    def equal() -> Quality:
        return {"clip_score": sampled(CLIP + rng.normal(0, 1, N))}

    tight = {"psnr": 48.13, "clip_score": 0.01}
    every = [Candidate(str(i), equal(), older=True) for i in range(40)]
    together = judge(every, REFERENCE, Floor(), tight)
    alone = [judge([one], REFERENCE, Floor(), tight)[0] for one in every]
    assert all(j.verdict == "drift" for j in together)
    assert any(j.verdict == "degraded" for j in alone)
