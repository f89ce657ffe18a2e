"""Each metric against a closed form or an independent implementation on the same input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from qbench import world
from qbench.errors import InputError
from qbench.pipelines import known, specs
from qbench.pipelines.base import frames_of
from qbench.quality import evaluate
from qbench.quality.metrics import (
    clip_score,
    distances,
    features,
    fidelity,
    fvd,
    needs,
    temporal,
    trajectory,
    validity,
)
from qbench.quality.metrics.clip_score import ClipScorer
from qbench.quality.metrics.probe import load_probe
from qbench.quality.outputs import LEVELS, Outputs, decoded, encoded
from qbench.recipe.schema import Quality

BUNDLED = known.BUNDLED


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


def test_ssim_against_torchmetrics() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    generator = torch.Generator().manual_seed(0)
    videos = torch.rand(2, 3, 3, 24, 40, generator=generator)
    for spread in (0.3, 0.01, 0.0):
        noise = spread * torch.randn(videos.shape, generator=generator)
        others = (videos + noise).clamp(0, 1)
        theirs = structural_similarity_index_measure(
            others.flatten(0, 1), videos.flatten(0, 1), data_range=1.0, reduction="none"
        )
        found = fidelity.ssim(others, videos)
        assert torch.allclose(found, theirs.view(2, 3).mean(1), atol=1e-6, rtol=0)


def test_latent_error_is_relative() -> None:
    latents = torch.randn(3, 5, 16, 8, 8)
    assert fidelity.latent_error(1.01 * latents, latents).tolist() == pytest.approx(
        [0.01] * 3, 1e-4
    )


def test_paired_metrics_refuse_unequal_shapes() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        fidelity.psnr(torch.zeros(2, 3, 3, 8, 8), torch.zeros(2, 4, 3, 8, 8))


def exactly(mean: list[float], sigma: list[float], count: int = 500) -> torch.Tensor:
    """Samples whitened to have exactly these moments."""
    x = torch.randn(count, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    white = x @ vectors / values.sqrt()
    return white * torch.tensor(sigma) + torch.tensor(mean)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return fvd.frechet_distance(fvd.moments(a), fvd.moments(b))


def test_frechet_distance_of_gaussians_with_a_known_one() -> None:
    """Diagonal covariances have a formula."""
    torch.manual_seed(0)
    a = exactly([0.0, 1.0, 2.0], [1.0, 2.0, 0.5])
    b = exactly([0.5, 1.0, 0.0], [2.0, 2.0, 1.5])
    expected = (0.25 + 4.0) + (1.0 + 0.0 + 1.0)  # shifts, then differences of sigmas
    assert distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_frechet_distance_against_scipys_matrix_root() -> None:
    import numpy as np
    from scipy.linalg import sqrtm

    torch.manual_seed(1)
    a = torch.randn(200, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    b = torch.randn(300, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 1
    ca, cb = np.cov(a.T.numpy()), np.cov(b.T.numpy())
    shift = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    expected = shift + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
    assert distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_with_fewer_videos_than_features_is_finite_and_ordered() -> None:
    torch.manual_seed(2)
    a = torch.randn(10, 64)
    near, far = a + 0.01 * torch.randn(10, 64), a + torch.randn(10, 64)
    assert 0 <= distance(a, near) < distance(a, far) < math.inf
    with pytest.raises(ValueError, match="at least two"):
        distance(a[:1], a)


def test_moments_that_come_in_parts_are_those_of_the_whole() -> None:
    """Far from zero, where a sum of squares in float32 would have lost the covariance."""
    torch.manual_seed(3)
    x = 1e4 + torch.randn(301, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
    found = fvd.Moments(5)
    for part in x.split(7):
        found.update(part)
    assert found.count == 301
    assert torch.allclose(found.mean, x.mean(0), rtol=1e-12)
    assert torch.allclose(found.covariance(), torch.cov(x.T), rtol=1e-9)
    with pytest.raises(ValueError, match=r"\(n, 5\)"):
        found.update(x[:, :4])


def test_kernel_distance_against_its_definition_and_without_bias() -> None:
    torch.manual_seed(4)
    a, b = torch.randn(6, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64) + 1

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return ((x @ y).item() / 3 + 1) ** 3

    within = sum(k(a[i], a[j]) for i in range(6) for j in range(6) if i != j) / 30
    within += sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(k(x, y) for x in a for y in b) / 30
    assert fvd.kernel_distance(a, b) == pytest.approx(within - 2 * across)
    # Of equal distributions its mean is 0 at any n, which no Fréchet distance achieves.
    null = torch.tensor(
        [fvd.kernel_distance(torch.randn(8, 3), torch.randn(8, 3)) for _ in range(400)]
    )
    assert abs(null.mean()) < 3 * null.std() / 400**0.5
    biased = [distance(torch.randn(8, 3), torch.randn(8, 3)) for _ in range(50)]
    assert min(biased) > 0


def test_kernel_distance_of_pairs_that_are_nearly_equal_is_nearly_zero() -> None:
    torch.manual_seed(5)
    a = 10 * torch.randn(40, 3)
    assert abs(fvd.kernel_distance(a, a + 1e-4)) < 1e-2 * abs(fvd.kernel_distance(a, a + 1))


def test_the_interval_of_a_frechet_distance_covers_what_so_many_videos_give() -> None:
    """Against the mean over many draws, which percentiles cover in a third of cases or none."""
    torch.manual_seed(6)

    def draw() -> tuple[torch.Tensor, torch.Tensor]:
        a = torch.randn(12, 16, dtype=torch.float64)
        return a, 0.8 * a + 0.6 * torch.randn(12, 16, dtype=torch.float64) + 0.2

    truth = sum(distance(*draw()) for _ in range(300)) / 300
    found = [fvd.frechet_interval(*draw()) for _ in range(30)]
    assert sum(i is not None and i[0] <= truth <= i[1] for i in found) >= 26
    a, b = draw()
    assert fvd.frechet_interval(a, b) == fvd.frechet_interval(a, b)
    assert fvd.frechet_interval(a, a) == pytest.approx((0, 0), abs=1e-9)
    assert fvd.frechet_interval(a[:2], b[:2]) is None
    for x, y in ((a, b), (a[:, :5], b[:, :5])):  # fewer and more videos than features
        assert fvd._frechet(x, y) == pytest.approx(distance(x, y), rel=1e-9)


def test_tensorflows_first_resize_reads_at_corners() -> None:
    """Four pixels of two: at 0, 0.5, 1 and 1.5, the last beyond the edge."""
    picture = torch.tensor([[1.0, 3.0], [5.0, 9.0]]).view(1, 1, 2, 2)
    found = features._at_corners(picture, 4)[0, 0]
    assert found[0].tolist() == [1, 2, 3, 3]
    assert found[:, 0].tolist() == [1, 3, 5, 5]
    assert found[1, 1].item() == 4.5


def test_flicker_of_known_changes() -> None:
    steady = torch.linspace(0, 0.8, 9).view(1, 9, 1, 1, 1).expand(1, 9, 3, 4, 4)
    assert temporal.flicker(steady).item() == pytest.approx(0, abs=1e-6)
    blinking = steady.clone()
    blinking[:, 1::2] += 0.1
    assert temporal.flicker(blinking).item() == pytest.approx(0.2, abs=1e-6)
    assert temporal.flicker(steady[:, :2]).item() == 0
    assert temporal.motion(steady)[0].tolist() == pytest.approx([0.1] * 8, abs=1e-6)


def test_clip_score_against_torchmetrics_on_the_same_weights() -> None:
    from torchmetrics.functional.multimodal import clip_score as theirs
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder = BUNDLED / "tiny-clip"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = CLIPImageProcessorPil.from_pretrained(folder)

    class Model(CLIPModel):  # torchmetrics expects what transformers 4 returned
        def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return super().get_image_features(pixel_values=pixel_values).pooler_output

        def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return super().get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    def processor(**words: Any) -> Any:
        if "text" in words:
            return tokenizer(words["text"], return_tensors="pt", padding=True)
        return images(images=words["images"], return_tensors="pt")

    model = Model.from_pretrained(folder, dtype=torch.float32).eval()
    scorer = ClipScorer(str(folder), "cpu")
    videos, scenes = clips(3)
    videos = (videos * 255).round() / 255  # what torchmetrics reads are whole levels
    wide = torch.nn.functional.interpolate(videos.flatten(0, 1), (90, 150), mode="bilinear")
    wide = (wide * 255).round().view(3, 17, 3, 90, 150) / 255
    for batch, close in ((videos, 1e-3), (wide, 0.5)):  # PIL rounds to levels as it resizes
        ours = clip_score.clip_score(
            scorer.frames(batch), scorer.texts([scene.caption() for scene in scenes])
        ).mean(1)
        for video, scene, score in zip(batch, scenes, ours, strict=True):
            pixels = [(frame * 255).round().byte() for frame in video]
            with torch.no_grad():
                expected = theirs(
                    pixels, [scene.caption()] * len(pixels), lambda: (model, processor)
                )
            assert score.item() == pytest.approx(expected.item(), abs=close)


def test_siglip_is_read_as_its_own_forward_does(tmp_path: Path) -> None:
    """Another family: no projection, no mask, frames stretched to the square."""
    import json
    import shutil

    from transformers import AutoTokenizer, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text = {"vocab_size": 2000, "max_position_embeddings": 16, **tower}
    vision = {"image_size": 32, "patch_size": 8, **tower}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / "tiny-clip" / name, tmp_path)
    settings = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "resample": 3}))
    scorer = ClipScorer(str(tmp_path), "cpu")
    video = torch.rand(1, 2, 3, 32, 32)
    prompts = ["a small red star moves left on a navy background"]
    found = scorer.frames(video)[0] @ scorer.texts(prompts)[0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = tokenizer(
        prompts, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = model(
            **{k: v for k, v in tokens.items() if k in ("input_ids", "attention_mask")},
            pixel_values=video[0] * 2 - 1,
        )
    cosines = (out.logits_per_image[:, 0] - model.logit_bias) / model.logit_scale.exp()
    assert torch.allclose(found, cosines, atol=1e-5)
    wide = clip_score.preprocess(torch.rand(1, 3, 48, 90), settings)
    assert tuple(wide.shape) == (1, 3, 32, 32)
    with pytest.raises(InputError, match=r"Pillow's filter 1; qbench has 2 \(bilinear\), 3"):
        clip_score.preprocess(torch.rand(1, 3, 48, 90), {**settings, "resample": 1})


def test_clip_score_prefers_the_right_prompt() -> None:
    videos, scenes = clips(24, seed=5)
    scorer = ClipScorer(str(BUNDLED / "tiny-clip"), "cpu")
    frames = scorer.frames(videos)
    right = scorer.texts([scene.caption() for scene in scenes])
    score = clip_score.clip_score
    better = score(frames, right).mean(1) > score(frames, right.roll(1, 0)).mean(1)
    assert better.float().mean() > 0.95
    assert scorer.cut([scene.caption() for scene in scenes]) == 0
    assert scorer.cut(["word " * 40]) == 1


def test_clip_consistency_falls_where_frames_do_not_belong_together() -> None:
    videos, _ = clips(4)
    scorer = ClipScorer(str(BUNDLED / "tiny-clip"), "cpu")
    still = videos[:, :1].expand_as(videos)
    mixed = torch.stack([videos[i % 4, i] for i in range(17)])[None]
    own, frozen, jumping = (
        clip_score.clip_consistency(scorer.frames(v)) for v in (videos, still, mixed)
    )
    assert torch.allclose(frozen, torch.tensor(100.0), atol=1e-3)
    assert jumping.item() < own.min().item() <= 100


def test_probe_is_right_on_rendered_clips() -> None:
    videos, scenes = clips(200, seed=9)
    answers = load_probe(BUNDLED / "probe")(videos)
    truth = torch.tensor([scene.indices() for scene in scenes])
    for i, (name, logits) in enumerate(answers.items()):
        assert (logits.argmax(1) == truth[:, i]).float().mean() >= 0.99, name


def test_probe_is_right_on_larger_clips_that_are_shrunk_for_it() -> None:
    scenes = world.scenes()[7::1153]
    truth = torch.tensor([scene.indices() for scene in scenes])
    for frames, side in [*world.LENGTHS[1:3], (25, 96)]:
        clips = world.render_scenes(scenes, 9, frames, side)
        answers = load_probe(BUNDLED / "probe")(world.shrunk(clips))
        found = torch.stack([logits.argmax(1) for logits in answers.values()], 1)
        assert torch.equal(found, truth), (frames, side)


def test_what_the_probe_is_shown_is_as_large_as_it_can_read_and_square() -> None:
    tiny = known.KNOWN["tiny-cogvideox"]
    for frames, height, width in ((49, 256, 256), (17, 64, 64)):
        assert not needs.probe(Quality(), tiny, (frames, 3, height, width))
    for frames, height, width in ((16, 64, 64), (17, 64, 128), (17, 48, 48)):
        said = needs.probe(Quality(), tiny, (frames, 3, height, width))
        assert "or more of a larger square" in said


def test_probe_refuses_clips_of_another_shape() -> None:
    with pytest.raises(ValueError, match="reads clips of"):
        load_probe(BUNDLED / "probe")(torch.zeros(1, 9, 3, 64, 64))


MODEL = specs.find("tiny-cogvideox")


def stored(folder: Path, frames: torch.Tensor, latents: torch.Tensor) -> Outputs:
    """Videos on disk as runs leave them: some alone, the rest in batches."""
    made = Outputs(folder)
    for start, stop in ((0, 1), (1, 2), (2, 5), (5, len(frames))):
        made.add(start, frames[start:stop], latents[start:stop])
    return made


def measured(ours: Outputs, theirs: Outputs | None, prompts: list[str], **more: Any) -> Any:
    return evaluate.measure(ours, theirs, prompts, (17, 3, 64, 64), MODEL, Quality(**more), "cpu")


def test_measure_sees_a_wrong_colour_that_psnr_alone_does_not_name(tmp_path: Path) -> None:
    videos, scenes = clips(8, seed=1)
    prompts = [scene.caption() for scene in scenes]
    latents = torch.randn(8, 5, 16, 8, 8)
    good = stored(tmp_path / "good", videos, latents)
    bad = stored(tmp_path / "bad", videos.flip(2), latents)  # BGR for RGB
    wanted = {"metrics": ["adherence", "psnr", "fvd_reference", "kvd_reference"]}
    found = measured(bad, good, prompts, **wanted)
    assert found.metrics["adherence_colour"].value < 0.7
    assert found.metrics["adherence_shape"].value > 0.9
    assert found.metrics["psnr"].value < 30
    assert found.metrics["fvd_reference"].value > 1
    assert found.notes == found.faults == []
    fit = measured(good, good, prompts, metrics=["clip_score"]).metrics["clip_score"]
    assert fit.by_frame is not None
    assert len(fit.by_frame) == 17
    assert sum(fit.by_frame) / 17 == pytest.approx(fit.value, rel=1e-5)
    same = measured(good, good, prompts, **wanted).metrics
    assert same["adherence"].value == 1.0
    assert same["fvd_reference"].value == pytest.approx(0, abs=1e-6)
    assert same["kvd_reference"].value == pytest.approx(0, abs=1e-6)


def test_figures_do_not_depend_on_how_videos_were_batched(tmp_path: Path) -> None:
    videos, scenes = clips(7, seed=2)
    prompts = [scene.caption() for scene in scenes]
    latents = torch.randn(7, 5, 16, 8, 8)
    theirs = stored(tmp_path / "theirs", videos, latents)
    ours = Outputs(tmp_path / "ours")
    noisy = (videos + 0.01 * torch.randn(videos.shape)).clamp(0, 1)
    ours.add(0, noisy, 1.01 * latents)
    metrics = ["psnr", "ssim", "latent_error", "clip_score", "flicker", "fvd_reference"]
    one = measured(ours, theirs, prompts, metrics=metrics, batch=1).metrics
    all_ = measured(ours, theirs, prompts, metrics=metrics, batch=64).metrics
    assert set(metrics) == set(one)
    for name, metric in one.items():
        assert metric.value == pytest.approx(all_[name].value, rel=1e-4), name


def test_a_psnr_of_eighty_decibels_is_still_that_after_the_disk(tmp_path: Path) -> None:
    """Kept as float16, 80 dB read 75.6 and 100 dB 86."""
    generator = torch.Generator().manual_seed(0)
    video = 0.1 + 0.8 * torch.rand((1, 4, 3, 64, 64), generator=generator, dtype=torch.float64)
    noise = torch.randn(video.shape, generator=generator, dtype=torch.float64)
    noise /= noise.square().mean().sqrt()
    kept = Outputs(tmp_path / "reference")
    kept.add(0, video, torch.zeros(1, 1))
    for decibels, close in ((60, 0.01), (80, 0.05), (90, 0.3)):
        ours = Outputs(tmp_path / str(decibels))
        ours.add(0, video + noise * 10 ** (-decibels / 20), torch.zeros(1, 1))
        found = fidelity.psnr(ours.read(0, 1)[0], kept.read(0, 1)[0]).item()
        assert found == pytest.approx(decibels, abs=close)
    levels = torch.arange(256).view(1, 1, 1, 16, 16).expand(1, 1, 3, 16, 16) / 255
    assert torch.equal(decoded(encoded(levels)), levels)  # those of a display are kept exactly


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_keeps_the_frames_that_a_cpu_would_to_the_bit() -> None:
    frames = torch.rand(2, 9, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    frames.flatten()[:4] = torch.tensor([math.nan, math.inf, 0.5 / LEVELS, 1.5 / LEVELS])
    assert torch.equal(encoded(frames.cuda()).cpu(), encoded(frames))


def test_what_a_decoder_makes_of_infinity_is_no_video(tmp_path: Path) -> None:
    """Clamped to [0, 1] it would be white, and valid."""
    raw = torch.zeros(2, 3, 17, 64, 64)  # as a VAE gives it: channels before frames, in [-1, 1]
    raw[0, 1, 3, 5, 7], raw[1, 2, 0, 0, 0] = math.inf, math.nan
    outputs = Outputs(tmp_path)
    outputs.add(0, frames_of(raw), torch.zeros(2, 1))
    checker = validity.Checker((17, 3, 64, 64))
    checker.update(*outputs.read(0, 2))
    assert checker.faults() == ["NaN or infinity in 2 of 2 videos"]


def test_the_references_videos_are_held_against_their_digest(tmp_path: Path) -> None:
    videos, _ = clips(9)
    kept = stored(tmp_path, videos, torch.zeros(9, 1))
    digest = kept.digest()
    assert Outputs(tmp_path).digest() == digest
    assert Outputs(tmp_path).verify(digest, 9)
    stored(tmp_path, videos.flip(2), torch.zeros(9, 1))
    with pytest.raises(InputError, match="not the videos that its record was made with"):
        Outputs(tmp_path).verify(digest, 9)
    next(tmp_path.glob("*.safetensors")).unlink()
    assert not Outputs(tmp_path).verify(digest, 9)  # gone is made anew


@pytest.mark.parametrize("linked", [True, False])
def test_videos_that_others_made_are_taken_and_outlast_their_folder(
    linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands are gigabytes: they lie on the disk once where its file system has links."""
    if not linked:

        def refuse(*_: object) -> None:
            raise OSError("Operation not permitted")

        monkeypatch.setattr("os.link", refuse)
    frames, latents = torch.rand(2, 3, 3, 8, 8), torch.randn(2, 4)
    Outputs(tmp_path / "part").add(0, frames, latents)
    (file,) = (tmp_path / "part").iterdir()
    ours = Outputs(tmp_path / "ours")
    assert not ours.take(tmp_path / "part", 0, 1)
    assert not ours.take(None, 0, 2)
    for _ in range(2):  # once more, as of a run that has them already
        assert ours.take(tmp_path / "part", 0, 2)
    assert (tmp_path / "ours" / file.name).samefile(file) is linked
    file.unlink()
    assert torch.equal(ours.stored(0, 2)[0], encoded(frames))
    assert torch.equal(Outputs(tmp_path / "ours").stored(0, 2)[1], latents)


def test_metric_networks_are_computed_without_tf32() -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with evaluate.exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_outputs_survive_the_disk_and_are_read_across_files(tmp_path: Path) -> None:
    videos, _ = clips(9)
    latents = torch.randn(9, 5, 16, 8, 8)
    stored(tmp_path / "o", videos, latents)
    back = Outputs(tmp_path / "o")
    assert len(back) == 9
    frames, kept = back.read(1, 8)
    assert (fidelity.psnr(frames, videos[1:8]) == fidelity.PSNR_CAP).all()
    assert torch.equal(kept, latents[1:8])
    with pytest.raises(ValueError, match="9 are here"):
        back.read(5, 10)
    back.clear()
    assert len(Outputs(tmp_path / "o")) == 0


def test_what_a_network_cannot_read_is_a_note_and_not_a_crash(tmp_path: Path) -> None:
    short = torch.rand(2, 9, 3, 16, 16)
    outputs = Outputs(tmp_path)
    outputs.add(0, short, torch.randn(2, 3, 16, 2, 2))
    found = evaluate.measure(outputs, outputs, ["a", "b"], (9, 3, 16, 16), MODEL, Quality(), "cpu")
    assert found.metrics["psnr"].value == fidelity.PSNR_CAP
    assert {"adherence", "fvd_reference"}.isdisjoint(found.metrics)
    assert any("the probe reads 17 frames" in note for note in found.notes)


def test_larger_videos_are_held_against_clips_rendered_as_large(tmp_path: Path) -> None:
    """Those very clips are at no distance, and show what their prompts say."""
    scenes = world.scenes()[5::577]
    indices = torch.tensor([scene.indices() for scene in scenes])
    jitters = world.jitter(len(scenes), distances.RENDER_SEED)
    videos = world.render(indices, jitters, 25, 80)
    outputs = Outputs(tmp_path)
    outputs.add(0, videos, torch.zeros(len(videos), 7, 16, 10, 10))
    texts = [scene.caption() for scene in scenes]
    wanted = Quality(metrics=["adherence", "fvd_rendered"])
    found = evaluate.measure(outputs, None, texts, (25, 3, 80, 80), MODEL, wanted, "cpu").metrics
    assert found["adherence"].value == 1
    assert found["fvd_rendered"].value < 0.01
    assert "8 videos of 25x80x80" in found["fvd_rendered"].note


def test_error_by_step_of_known_trajectories() -> None:
    reference = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    growing = torch.stack([(1 + 0.01 * i) * step for i, step in enumerate(reference)])
    assert trajectory.error_by_step(growing, reference) == pytest.approx(
        [0, 0.01, 0.02, 0.03], abs=1e-6
    )
    with pytest.raises(ValueError, match="equal shapes"):
        trajectory.error_by_step(growing[:3], reference)


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
    elif kind == "standing still":
        videos[2, 13:] = videos[2, 12]
    elif kind == "saturated":
        videos[2] = (videos[2] > videos[2].mean()).float()
    elif kind == "flickering":
        videos[2, ::2] *= 0.7
    elif kind == "wrong shape":
        videos = videos[:, :16]
    return videos, latents


def faults(
    videos: torch.Tensor, latents: torch.Tensor, reference: torch.Tensor | None = None
) -> list[str]:
    checker = validity.Checker(GOOD)
    for i in range(len(videos)):  # as they come, one by one
        beside = None if reference is None else reference[i : i + 1]
        checker.update(videos[i : i + 1], latents[i : i + 1], beside)
    return checker.faults()


KINDS = ("NaN", "black", "flat", "frozen", "standing still", "saturated", "flickering")


@pytest.mark.parametrize("kind", [*KINDS, "wrong shape"])
def test_validity_catches_planted_fault(kind: str) -> None:
    reference, _ = clips(4)
    found = faults(*_broken(kind), reference)
    assert len(found) == 1
    assert kind in found[0]
    assert "1 of 4" in found[0] or kind == "wrong shape"


def test_validity_lets_good_videos_pass_and_follows_the_reference() -> None:
    videos, latents = _broken("none")
    assert faults(videos, latents, videos) == []
    assert faults(videos, latents) == []
    for kind in ("frozen", "standing still", "saturated", "flickering"):
        # Where the reference's video is so too, the prompt asked for it.
        odd, _ = _broken(kind)
        assert faults(odd, latents, odd) == [], kind
    noisy = (videos + 0.02 * torch.randn(videos.shape)).clamp(0, 1)  # 34 dB, still a video
    assert faults(noisy, latents, videos) == []


def test_real_clip_keeps_its_brightness_in_clip_preprocessing() -> None:
    """A real video through the resize and crop that a real CLIP would get."""
    path = ROOT.parent / "shared" / "clips" / "tav_car-turn.mp4"
    if not path.is_file():
        pytest.skip("the shared real clips are not here")
    import av

    from qbench.quality.metrics.clip_score import preprocess

    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    picture = torch.from_numpy(frame).permute(2, 0, 1).float()[None] / 255
    small = preprocess(picture, {"size": {"shortest_edge": 64}})
    assert tuple(small.shape) == (1, 3, 64, 64)
    side = min(picture.shape[-2:])
    top, left = ((n - side) // 2 for n in picture.shape[-2:])
    centre = picture[..., top : top + side, left : left + side]
    assert small.mean((2, 3)).squeeze() == pytest.approx(centre.mean((2, 3)).squeeze(), abs=0.01)


def test_features_of_the_reference_are_computed_once_and_change_no_figure(tmp_path: Path) -> None:
    """Kept beside its videos by network, protocol and prompts, and gone with the videos."""
    prompts = ["a red star moves left on a navy background"] * 4
    model, wanted = specs.find("tiny-cogvideox"), Quality(batch=2, metrics=["fvd_reference"])
    generator = torch.Generator().manual_seed(3)
    folders = {name: tmp_path / name for name in ("reference", "variant")}
    for folder in folders.values():
        shape = (4, *GOOD)
        Outputs(folder).add(0, torch.rand(shape, generator=generator), torch.zeros(4, 1))

    def found(reference: str | None, name: str = "variant") -> dict[str, float]:
        against = Outputs(folders[reference]) if reference else None
        ours = Outputs(folders[name])
        made = evaluate.measure(ours, against, prompts, GOOD, model, wanted, "cpu")
        return {name: metric.value for name, metric in made.metrics.items()}

    fresh = found("reference")
    found(None, "reference")
    assert len(list(folders["reference"].rglob("features/*"))) == 1
    assert found("reference") == pytest.approx(fresh, rel=1e-9)
    # They are read, not computed: features planted there are what is compared with.
    [kept] = folders["reference"].rglob("features/*")
    own = Outputs(folders["variant"]).features(kept.stem)["own"]
    Outputs(folders["reference"]).keep_features(kept.stem, {"own": own})
    assert found("reference")["fvd_reference"] == pytest.approx(0, abs=1e-6)
    prompts[0] = "another prompt, another key"
    assert found("reference") == pytest.approx(fresh, rel=1e-9)
    Outputs(folders["reference"]).clear()
    assert not list(folders["reference"].rglob("*.safetensors"))
