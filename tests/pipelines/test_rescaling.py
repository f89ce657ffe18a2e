"""Outlier channels: the denoiser computes the same, and what quantization sees is another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from qbench.errors import Unsupported
from qbench.optimizations import quantization
from qbench.pipelines import rescaling, specs
from qbench.pipelines.base import VideoPipeline
from qbench.recipe.schema import Generation, Outliers, Quantize, Recipe

HUNDRED = Outliers(factor=100.0)


def _predictions(video: VideoPipeline, calls: list[dict[str, object]]) -> torch.Tensor:
    with torch.no_grad():
        found = [video.denoiser(**call, return_dict=False)[0].float() for call in calls]
    return torch.stack(found)


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("family", ["cogvideox", "cogvideox-rotary", "cogvideox-1.5"])
def test_a_denoiser_with_outliers_computes_the_same(family: str, tmp_path: Path) -> None:
    video = tiny.build(family, tmp_path)
    run = tiny.settings(video)
    calls = [
        call
        for step in video.captured(run, *tiny.inputs(video, run, [0]), steps=3)
        for call in step
    ]
    before = _predictions(video, calls)
    rescaling.add_outliers(video, HUNDRED)
    assert 0 < _error(_predictions(video, calls), before) < 1e-5


def test_the_bundled_model_with_outliers_along_a_whole_trajectory() -> None:
    """As `outliers` in a recipe makes it: the same to 1e-5, and too hard for INT8 activations."""
    model = specs.find("tiny-cogvideox")
    plain = specs.load(model, "fp32", "cpu")
    run = plain.resolve(model, Generation())
    conditioning = plain.encode(run, ["a small red star moves left on a navy background"])
    steps = plain.captured(run, conditioning, plain.noise(run, 0), steps=run.steps)
    calls = [call for step in steps for call in step]
    expected = _predictions(plain, calls)
    hard = specs.load(model, "fp32", "cpu", outliers=HUNDRED)
    assert _error(_predictions(hard, calls), expected) < 1e-5
    some = calls[::6]
    expected, wanted = (
        expected[::6],
        Quantize(
            backend="torchao",
            scheme="int8_dynamic",
            exclude=["time_embedding", "norm", "patch_embed"],
        ),
    )
    errors = []
    for video in (plain, hard):
        quantization.apply(video.denoiser, wanted)
        errors.append(_error(_predictions(video, some), expected))
    assert errors[1] > 5 * errors[0]


@pytest.mark.parametrize(("factor", "share"), [(1.001, 0.5), (1e5, 0.01), (1e5, 0.5)])
def test_it_computes_the_same_at_the_ends_of_what_a_recipe_may_say(
    factor: float, share: float, tmp_path: Path
) -> None:
    video = tiny.build("cogvideox", tmp_path)
    run = tiny.settings(video)
    steps = video.captured(run, *tiny.inputs(video, run, [0]), steps=2)
    calls = [call for step in steps for call in step]
    before = _predictions(video, calls)
    rescaling.add_outliers(video, Outliers(factor=factor, share=share))
    assert _error(_predictions(video, calls), before) < 1e-5


def test_outliers_are_of_the_size_and_share_that_the_recipe_says() -> None:
    model = specs.find("tiny-cogvideox")
    ratios = []
    for outliers in (None, HUNDRED):
        video = specs.load(model, "fp32", "cpu", outliers=outliers)
        norm = video.denoiser.transformer_blocks[3].norm2.norm
        ratios.append(norm.weight.detach().clone())
    ratio = ratios[1] / ratios[0]
    changed = ratio[(ratio - 1).abs() > 1e-6]
    assert len(changed) == round(0.01 * len(ratio))
    assert changed.max().item() == pytest.approx(100, rel=1e-5)
    assert changed.min().item() > 100 / 3.01


def test_weights_in_bf16_are_rounded_once() -> None:
    """Loaded in FP32, changed, then rounded: rounding before it as well would lose more."""
    model = specs.find("tiny-cogvideox")
    wide = specs.load(model, "fp32", "cpu", outliers=HUNDRED).denoiser
    narrow = specs.load(model, "bf16", "cpu", outliers=HUNDRED).denoiser
    for (name, one), (_, other) in zip(
        wide.named_parameters(), narrow.named_parameters(), strict=True
    ):
        assert torch.equal(one.bfloat16(), other), name


@pytest.mark.parametrize("family", ["unet", "wan"])
def test_families_without_channels_to_rescale_say_so(family: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no channels of a"):
        rescaling.add_outliers(tiny.build(family, tmp_path), HUNDRED)


def test_recipes_without_outliers_keep_their_fingerprint() -> None:
    plain, hard = Recipe(name="a"), Recipe(name="a", outliers=HUNDRED)
    assert "outliers" not in plain.measured_settings()
    assert plain.settings_fingerprint() != hard.settings_fingerprint()
