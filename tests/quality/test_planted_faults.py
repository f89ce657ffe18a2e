"""Faults planted in rendered clips: what each is called, with the networks and without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qbench import world
from qbench.optimizations import frame_faults
from qbench.pipelines import specs
from qbench.quality import evaluate
from qbench.quality.floor import Floor
from qbench.quality.metrics import catalogue
from qbench.quality.outputs import Outputs
from qbench.quality.verdict import Candidate, Judged, judge
from qbench.recipe.schema import Quality

N = 16
PAIRED = [
    "psnr", "sharpness", "contrast", "colour", "motion_amount", "motion_direction",
    "motion_rhythm", "flicker",
]  # fmt: skip


def clips(seed: int) -> Tensor:
    """Sixteen rendered clips (16, 17, 3, 64, 64); another seed has them elsewhere in the frame."""
    counts = [len(values) for values in world.ATTRIBUTES.values()]
    indices = torch.tensor([[(i * 7 + 3 * j) % n for j, n in enumerate(counts)] for i in range(N)])
    return world.render(indices, world.jitter(N, seed))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Judged]:
    reference = clips(0)
    place = tmp_path_factory.mktemp("clips")

    def kept(name: str, frames: Tensor) -> Outputs:
        found = Outputs(place / name)
        found.add(0, frames, torch.zeros(N, 1))
        return found

    theirs = kept("reference", reference)
    model = specs.find("tiny-cogvideox")
    prompts = [f"clip {i}" for i in range(N)]

    def measured(name: str, frames: Tensor) -> evaluate.Evaluation:
        quality = Quality(metrics=PAIRED)
        shape = (17, 3, 64, 64)
        return evaluate.measure(kept(name, frames), theirs, prompts, shape, model, quality, "cpu")

    seed = measured("seed", clips(1)).metrics
    margins = catalogue.margins(Quality(), {})

    def verdict(name: str, frames: Tensor, other_noise: bool = False, floor: bool = True) -> Judged:
        found = measured(name, frames)
        one = Candidate(name, found.metrics, "; ".join(found.faults), other_noise)
        floors = Floor(other_noise={"seed": seed}) if floor else Floor()
        return judge([one], {}, floors, margins)[0]

    return verdict


@pytest.mark.parametrize("fault", frame_faults.CHANGES)
@pytest.mark.parametrize("floor", [True, False])
def test_no_fault_passes_with_no_network(
    judged: Callable[..., Judged], fault: str, floor: bool
) -> None:
    """Figures of the pair alone, as with a model of one's own, and with no floor either."""
    found = judged(f"{fault}-{floor}", frame_faults.CHANGES[fault](clips(0)), floor=floor)
    if fault in ELSEWHERE:  # as far as another seed, and nothing has seen what is shown
        assert found.verdict in ("unverified", "degraded", "broken"), found.because
        return
    assert found.verdict in ("degraded", "broken"), (found.because, found.alone)
    assert found.shown, found.because


# Pictures and amounts of motion are the reference's: sixteen videos need not tell them from another
# seed's by direction alone.
ELSEWHERE = ("reversed", "mirrored", "last half backwards", "upside down")
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "slower by a third": lambda v: v[:, [int(i * 2 / 3) for i in range(17)]],
    "every third repeated": lambda v: v[:, [i - (i % 3 == 2) for i in range(17)]],
    "twice as fast, then still": lambda v: v[:, [min(2 * i, 16) for i in range(17)]],
    "first half another seed's": lambda v: torch.cat([clips(3)[:, :8], v[:, 8:]], 1),
    "last half backwards": lambda v: torch.cat([v[:, :9], v[:, 9:].flip(1)], 1),
    "upside down": lambda v: v.flip(3),
    "green and blue swapped": lambda v: v[:, :, [0, 2, 1]],
    "a tenth brighter": lambda v: (v + 0.1).clamp(0, 1),
    "grey": lambda v: v.mean(2, keepdim=True).expand_as(v),
    "negative": lambda v: 1 - v,
    "half the size and back": lambda v: (
        torch.nn.functional.interpolate(v.flatten(0, 1)[..., ::2, ::2], scale_factor=2.0)
    ).view_as(v),
    "ghosts of the frame before": lambda v: torch.cat([v[:, :1], (v[:, 1:] + v[:, :-1]) / 2], 1),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_neither_do_others_of_their_kinds(judged: Callable[..., Judged], kind: str) -> None:
    found = judged(kind, OTHERS[kind](clips(0)))
    if kind in ELSEWHERE:
        assert found.verdict in ("unverified", "degraded", "broken"), found.because
        return
    assert found.verdict in ("degraded", "broken"), (found.because, found.alone)


def test_sound_videos_are_called_no_loss(judged: Callable[..., Judged]) -> None:
    """Noise below what a display shows, soft stains just above it, and another seed's videos."""
    video = clips(0)
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    assert judged("same", video + 0.001 * noise).text == "indistinguishable"
    stains = torch.nn.functional.interpolate(noise[:, 0, :, :8, :8], scale_factor=8, mode="bicubic")
    near = judged("near", video + 0.008 * stains.unsqueeze(1))
    assert near.verdict == "unverified"  # as good in picture and motion; nothing saw what is shown
    assert set(near.rests_on) == {"picture", "motion"}
    assert near.distance == "close"
    other = judged("other", clips(2), other_noise=True)
    assert other.verdict == "unverified", other.because
    assert other.distance == "other noise"
    strayed = judged("strayed", clips(2))
    assert strayed.distance == "as far as another seed"
