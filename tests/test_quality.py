"""Each metric against a closed form or an independent implementation on the same input."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from qbench import models, world
from qbench.quality import fidelity, fvd, measure, validity
from qbench.quality.clip_score import ClipScorer
from qbench.quality.probe import load_probe

BUNDLED = models.BUNDLED


def clips(count: int, seed: int = 0) -> tuple[torch.Tensor, list[world.Scene]]:
    every = world.scenes()
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:count]
    scenes = [every[i] for i in order]
    return world.render_scenes(scenes, seed), scenes


def test_psnr_of_a_known_error() -> None:
    video = torch.full((2, 3, 3, 16, 16), 0.5)
    assert fidelity.psnr(video + 0.1, video).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert fidelity.psnr(video, video).tolist() == [fidelity.PSNR_CAP] * 2


def test_ssim_against_a_direct_computation() -> None:
    """Wang et al. 2004 written out by hand over every pixel, borders reflected."""
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(1, 1, 3, 24, 24, generator=generator)
    b = (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    x = torch.arange(11) - 5.0
    g = torch.exp(-(x**2) / (2 * 1.5**2))
    window = torch.outer(g, g)
    window /= window.sum()
    wide = [torch.nn.functional.pad(v[0], (5, 5, 5, 5), mode="reflect")[0] for v in (a, b)]
    scores = []
    for c in range(3):
        for i in range(24):
            for j in range(24):
                p, q = (v[c, i : i + 11, j : j + 11] for v in wide)
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
                cov = (window * p * q).sum() - mp * mq
                up = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                scores.append(up / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    expected = torch.stack(scores).mean().item()
    assert fidelity.ssim(a, b).item() == pytest.approx(expected, abs=1e-4)


def test_latent_error_is_relative() -> None:
    latents = torch.randn(3, 5, 16, 8, 8)
    assert fidelity.latent_error(1.01 * latents, latents).tolist() == pytest.approx(
        [0.01] * 3, 1e-4
    )


def test_paired_metrics_refuse_unequal_shapes() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        fidelity.psnr(torch.zeros(2, 3, 3, 8, 8), torch.zeros(2, 4, 3, 8, 8))


def test_frechet_distance_of_gaussians_with_a_known_one() -> None:
    """Samples whitened to have exactly the moments wanted; diagonal covariances have a formula."""
    torch.manual_seed(0)

    def exactly(mean: list[float], sigma: list[float]) -> torch.Tensor:
        x = torch.randn(500, len(mean), dtype=torch.float64)
        x = x - x.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(x.T))
        white = x @ vectors / values.sqrt()
        return white * torch.tensor(sigma) + torch.tensor(mean)

    a = exactly([0.0, 1.0, 2.0], [1.0, 2.0, 0.5])
    b = exactly([0.5, 1.0, 0.0], [2.0, 2.0, 1.5])
    expected = (0.25 + 4.0) + (1.0 + 0.0 + 1.0)  # shifts, then differences of sigmas
    assert fvd.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert fvd.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_against_scipys_matrix_root() -> None:
    import numpy as np
    from scipy.linalg import sqrtm

    torch.manual_seed(1)
    a = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    b = torch.randn(300, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 1
    ca, cb = np.cov(a.T.numpy()), np.cov(b.T.numpy())
    shift = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    expected = shift + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
    assert fvd.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_with_fewer_videos_than_features_is_finite_and_ordered() -> None:
    torch.manual_seed(2)
    a = torch.randn(10, 64)
    near, far = a + 0.01 * torch.randn(10, 64), a + torch.randn(10, 64)
    assert 0 <= fvd.frechet_distance(a, near) < fvd.frechet_distance(a, far) < math.inf
    with pytest.raises(ValueError, match="at least two"):
        fvd.frechet_distance(a[:1], a)


def test_clip_score_against_the_models_own_logits() -> None:
    """transformers' forward scales cosines by exp(logit_scale); ours by 100."""
    from transformers import AutoTokenizer, CLIPModel

    videos, scenes = clips(4)
    prompts = [scene.caption() for scene in scenes]
    found = ClipScorer(str(BUNDLED / "tiny-clip"), "cpu").score(videos, prompts)
    model = CLIPModel.from_pretrained(BUNDLED / "tiny-clip", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "tiny-clip")
    import json

    settings = json.loads((BUNDLED / "tiny-clip" / "preprocessor_config.json").read_text())
    mean = torch.tensor(settings["image_mean"]).view(3, 1, 1)
    std = torch.tensor(settings["image_std"]).view(3, 1, 1)
    for video, prompt, score in zip(videos, prompts, found, strict=True):
        tokens = tokenizer([prompt], padding="max_length", max_length=24, return_tensors="pt")
        with torch.no_grad():
            out = model(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                pixel_values=(video - mean) / std,
            )
        cosines = out.logits_per_image[:, 0] / model.logit_scale.exp()
        assert score.item() == pytest.approx(100 * cosines.clamp(min=0).mean().item(), abs=1e-3)


def test_clip_score_prefers_the_right_prompt() -> None:
    videos, scenes = clips(24, seed=5)
    scorer = ClipScorer(str(BUNDLED / "tiny-clip"), "cpu")
    right = [scene.caption() for scene in scenes]
    wrong = right[1:] + right[:1]
    assert (scorer.score(videos, right) > scorer.score(videos, wrong)).float().mean() > 0.95
    assert scorer.cut(right) == 0
    assert scorer.cut(["word " * 40]) == 1


def test_probe_is_right_on_rendered_clips() -> None:
    videos, scenes = clips(200, seed=9)
    answers = load_probe(BUNDLED / "probe")(videos)
    truth = torch.tensor([scene.indices() for scene in scenes])
    for i, (name, logits) in enumerate(answers.items()):
        assert (logits.argmax(1) == truth[:, i]).float().mean() >= 0.99, name


def test_probe_refuses_clips_of_another_shape() -> None:
    with pytest.raises(ValueError, match="reads clips of"):
        load_probe(BUNDLED / "probe")(torch.zeros(1, 9, 3, 64, 64))


def test_measure_sees_a_wrong_colour_that_psnr_alone_does_not_name() -> None:
    videos, scenes = clips(8, seed=1)
    prompts = [scene.caption() for scene in scenes]
    latents = torch.randn(8, 5, 16, 8, 8)
    good = measure.Outputs(prompts, videos, latents)
    bad = measure.Outputs(prompts, videos.flip(2), latents)  # BGR for RGB
    model = models.find("tiny-cogvideox")
    names = ["following", "psnr", "fvd_reference"]
    found, notes = measure.measure(bad, good, model, names, model.clip, "cpu")
    assert found["following_colour"].value < 0.7
    assert found["following_shape"].value > 0.9
    assert found["psnr"].value < 30
    assert found["fvd_reference"].value > 1
    assert notes == []
    same, _ = measure.measure(good, good, model, names, model.clip, "cpu")
    assert same["following"].value == 1.0
    assert same["fvd_reference"].value == pytest.approx(0, abs=1e-6)


def test_outputs_survive_the_disk(tmp_path: Path) -> None:
    videos, scenes = clips(2)
    prompts = [scene.caption() for scene in scenes]
    measure.Outputs(prompts, videos, torch.randn(2, 5, 16, 8, 8)).save(tmp_path / "o.safetensors")
    back = measure.load_outputs(tmp_path / "o.safetensors", prompts)
    assert (fidelity.psnr(back.frames.float(), videos) > 70).all()


GOOD = (17, 3, 64, 64)


def _broken(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    videos, _ = clips(4)
    latents = torch.randn(4, 5, 16, 8, 8)
    if kind == "NaN":
        latents[1, 0, 0, 0, 0] = math.nan
    elif kind == "black":
        videos[2] = 0.0
    elif kind == "flat":
        videos[2] = 0.5
    elif kind == "frozen":
        videos[2] = videos[2, :1]
    elif kind == "wrong shape":
        videos = videos[:, :16]
    return videos, latents


@pytest.mark.parametrize("kind", ["NaN", "black", "flat", "frozen", "wrong shape"])
def test_validity_catches_planted_fault(kind: str) -> None:
    reference, _ = clips(4)
    faults = validity.faults(*_broken(kind), GOOD, reference)
    assert len(faults) == 1
    assert kind in faults[0]


def test_validity_lets_good_videos_pass_and_follows_the_reference() -> None:
    videos, latents = _broken("none")
    assert validity.faults(videos, latents, GOOD, videos) == []
    frozen, _ = _broken("frozen")
    # Where the reference stands still too, the prompt asked for it.
    assert validity.faults(frozen, latents, GOOD, frozen) == []


def test_real_clip_keeps_its_brightness_in_clip_preprocessing() -> None:
    """A real video through the resize and crop that a real CLIP would get."""
    path = ROOT.parent / "shared" / "clips" / "tav_car-turn.mp4"
    if not path.is_file():
        pytest.skip("the shared real clips are not here")
    import av

    from qbench.quality.clip_score import _resize_and_crop

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    picture = torch.from_numpy(frame).permute(2, 0, 1).float()[None] / 255
    small = _resize_and_crop(picture, 64)
    assert tuple(small.shape) == (1, 3, 64, 64)
    side = min(picture.shape[-2:])
    top, left = ((n - side) // 2 for n in picture.shape[-2:])
    centre = picture[..., top : top + side, left : left + side]
    assert small.mean((2, 3)).squeeze() == pytest.approx(centre.mean((2, 3)).squeeze(), abs=0.01)
