"""Paired figures that need no network: closed forms, and what each must and must not see."""

from __future__ import annotations

import math

import pytest
import torch

from qbench import world
from qbench.quality.metrics import catalogue
from qbench.quality.metrics.appearance import colour, contrast, sharpness
from qbench.quality.metrics.base import Batch
from qbench.quality.metrics.motion import motion_amount, motion_direction, motion_rhythm
from qbench.recipe.schema import Quality

NAMES = (
    *("sharpness", "contrast", "colour"),
    *("motion_amount", "motion_direction", "motion_rhythm"),
)


def waves(period: float, amplitude: float = 0.4, frames: int = 3, side: int = 64) -> torch.Tensor:
    """A grey sinusoid along x: (1, frames, 3, side, side)."""
    x = torch.arange(side) * (2 * math.pi / period)
    return (0.5 + amplitude * torch.sin(x)).expand(1, frames, 3, side, side).clone()


def scenes(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Rendered clips that move sideways, grow, shrink or swing."""
    every = [s for s in world.scenes() if s.motion in ("left", "right", "grow", "shrink", "swing")]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:count]
    return world.render_scenes([every[i] for i in order], seed)


def test_sharpness_of_waves_is_the_log_of_their_frequencies() -> None:
    """Differences of a sampled sinusoid have energy 4 sin^2(w / 2) times its variance."""
    found = sharpness(waves(32), waves(16)).item()
    expected = math.log(math.sin(math.pi / 32) / math.sin(math.pi / 16))
    assert found == pytest.approx(expected, abs=2e-3)
    assert sharpness(waves(16, 0.2), waves(16, 0.4)).item() == pytest.approx(0, abs=2e-3)


def test_contrast_is_the_log_of_amplitudes() -> None:
    found = contrast(waves(16, 0.36), waves(16, 0.4)).item()
    assert found == pytest.approx(math.log(0.9), abs=1e-4)
    assert contrast(waves(16) + 0.05, waves(16)).item() == pytest.approx(0, abs=1e-6)


def test_colour_of_a_shift_is_the_shift_and_of_swapped_channels_is_their_distance() -> None:
    torch.manual_seed(0)
    video = 0.2 + 0.2 * torch.rand(2, 3, 3, 32, 32)
    shifted = video.clone()
    shifted[:, :, 0] += 0.3
    assert colour(shifted, video).tolist() == pytest.approx([0.3, 0.3], abs=1e-5)
    # Red 0.3 above the others, then blue: two channels move by 0.3 each.
    assert colour(shifted.flip(2), shifted).tolist() == pytest.approx([0.3 * 2**0.5] * 2, abs=0.01)
    assert colour(video.flip(3), video).tolist() == pytest.approx([0, 0], abs=1e-5)


def test_colour_of_a_scale_is_the_difference_of_the_spreads() -> None:
    """About its mean, by a: the distance is (1 - a) times the root of the covariance's trace."""
    torch.manual_seed(1)
    video = torch.rand(1, 2, 3, 64, 64) * torch.tensor([0.9, 0.5, 0.2]).view(3, 1, 1)
    mean = video.mean((1, 3, 4), keepdim=True)
    spread = (video - mean).square().mean((0, 1, 3, 4)).sum().sqrt()
    found = colour(mean + 0.8 * (video - mean), video).item()
    assert found == pytest.approx(0.2 * spread.item(), rel=1e-4)


def ramp(speeds: list[float]) -> torch.Tensor:
    """A picture without edges that brightens by these steps: (1, steps + 1, 3, 8, 8)."""
    levels = torch.tensor([0.0, *speeds]).cumsum(0)
    return levels.view(1, -1, 1, 1, 1).expand(1, -1, 3, 8, 8)


def test_motion_amount_is_the_log_of_speeds() -> None:
    fast, slow = ramp([0.08] * 8), ramp([0.04] * 8)
    assert motion_amount(slow, fast).item() == pytest.approx(math.log(0.5), abs=0.02)
    assert motion_amount(fast[:, :1].expand_as(fast), fast).item() < -4


def test_motion_rhythm_of_repeated_frames_is_one() -> None:
    """Steps of 0 and 2 in turn have a standard deviation as large as their mean."""
    steady, judder = ramp([0.04] * 8), ramp([0.0, 0.08] * 4)
    assert motion_rhythm(judder, steady).item() == pytest.approx(1, abs=0.02)
    assert motion_rhythm(ramp([0.08] * 8), steady).item() == pytest.approx(0, abs=1e-4)
    # Still for half of the time: of 2n steps n at v and n at 0, the same coefficient.
    assert motion_rhythm(ramp([0.04] * 4 + [0.0] * 4), steady).item() == pytest.approx(1, abs=0.02)


def test_motion_direction_of_a_moving_wave() -> None:
    """The same wave to the other side, slower, still, and at a right angle."""
    x = torch.arange(64) / 64 * 2 * math.pi

    def moving(speed: float) -> torch.Tensor:
        lines = torch.stack([0.5 + 0.4 * torch.sin(2 * x - speed * t) for t in range(9)])
        return lines.view(1, 9, 1, 1, 64).expand(1, 9, 3, 64, 64)

    right = moving(0.1)
    assert motion_direction(right, right).item() == pytest.approx(0, abs=1e-6)
    assert motion_direction(moving(-0.1), right).item() == pytest.approx(-2, abs=0.01)
    assert motion_direction(moving(0.05), right).item() == pytest.approx(0, abs=0.01)
    assert motion_direction(right.transpose(3, 4), right).item() == pytest.approx(-1, abs=0.01)
    assert motion_direction(right[:, :1].expand_as(right), right).item() == pytest.approx(
        -1, abs=1e-3
    )


def means(videos: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    batch = Batch([], videos, torch.zeros(1), reference, torch.zeros(1))
    found = {}
    for name in NAMES:
        spec = catalogue.find(name)
        meter = spec.load().meter([spec], None)  # type: ignore[arg-type]
        meter.update(batch)
        found[name] = meter.result()[name].value
    return found


def beyond(videos: torch.Tensor, reference: torch.Tensor) -> set[str]:
    """The figures whose mean over the videos leaves its margin."""
    margins = catalogue.margins(Quality(), {})
    return {n for n, value in means(videos, reference).items() if abs(value) > margins[n]}


def test_planted_changes_are_seen_by_the_figure_that_is_for_them() -> None:
    clean = scenes()
    frames = torch.arange(clean.shape[1])
    grey = clean.mean(2, keepdim=True)
    blurred = torch.nn.functional.avg_pool2d(clean.flatten(0, 1), 3, 1, 1, count_include_pad=False)
    blurred = blurred.view_as(clean)
    middle = clean.mean((1, 2, 3, 4), keepdim=True)
    planted = {
        "sharpness": [blurred, (clean + 0.5 * (clean - blurred)).clamp(0, 1)],
        "contrast": [middle + 0.9 * (clean - middle), middle + 1.1 * (clean - middle)],
        "colour": [clean.flip(2), grey + 0.7 * (clean - grey), clean + 0.05, clean - 0.03],
        "motion_amount": [clean[:, :1].expand_as(clean), clean[:, frames // 2]],
        "motion_direction": [clean.flip(1), clean[:, (frames * 5) % 17]],
        "motion_rhythm": [clean[:, frames // 2 * 2], clean[:, frames.clamp(max=8)]],
    }
    for name, damaged in planted.items():
        for videos in damaged:
            assert name in beyond(videos, clean), name
    assert beyond(clean, clean) == set()


def test_other_scenes_of_the_same_kind_are_no_blur_and_no_fault_of_colour_or_pace() -> None:
    """The same prompts at other places and speeds, as another seed paints them."""
    kinds = [s for s in world.scenes() if s.motion in ("left", "right", "grow", "shrink")][::140]
    found = beyond(world.render_scenes(kinds, 1), world.render_scenes(kinds, 2))
    assert found <= {"motion_direction"}


def test_rounding_to_sixteen_bits_and_slight_noise_are_nothing() -> None:
    clean = scenes()
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert beyond(clean.bfloat16().float(), clean) == set()
    assert beyond((clean + 0.003 * noise).clamp(0, 1), clean) == set()
    assert max(abs(value) for value in means(clean.half().float(), clean).values()) < 2e-3
