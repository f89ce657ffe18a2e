"""Is this a video at all? A run that fails here is `invalid` and wins nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qbench.quality.metrics import temporal

BLACK, FROZEN, FLAT = 0.02, 2e-4, 5e-3
STILL = 3  # steps in a row without motion that make a video stand still
SATURATED = 0.5  # share of values at the ends of the range, beyond the reference's share
LEVEL = 1 / 255
# Four times the second difference of the reference's video, and at least thirteen of 255 levels:
# frames that alternate by a tenth, or noise that changes from frame to frame at 31 dB.
FLICKER, FLICKER_LEAST = 4.0, 0.05


class Checker:
    """Looks at videos as they come; `faults()` says in words what is wrong, worst first.

    A video counts as black, flat, frozen ... only where the reference's video of the same prompt
    is not: then the prompt asked for it.
    """

    def __init__(self, expected: tuple[int, ...]) -> None:
        self.expected = expected  # one video's shape: (frames, 3, height, width)
        self.videos = 0
        self._wrong = ""
        self._not_finite = 0
        self._bad = dict.fromkeys(_KINDS, 0)

    @property
    def measurable(self) -> bool:
        """Whether other figures can be computed of these videos at all."""
        return not self._wrong and not self._not_finite

    def update(
        self, videos: torch.Tensor, latents: torch.Tensor, reference: torch.Tensor | None = None
    ) -> None:
        """videos, reference: (n, frames, 3, height, width) in [0, 1]. latents: (n, ...)."""
        self.videos += len(videos)
        if tuple(videos.shape[1:]) != self.expected:
            self._wrong = f"wrong shape: {tuple(videos.shape[1:])} instead of {self.expected}"
            return
        videos = videos.float()
        broken = ~torch.isfinite(latents.flatten(1)).all(1)
        broken |= ~torch.isfinite(videos.flatten(1)).all(1)
        self._not_finite += int(broken.sum())
        known = broken.clone()
        for name, test in _KINDS.items():
            bad = test(videos, None if reference is None else reference.float()) & ~known
            self._bad[name] += int(bad.sum())
            known |= bad  # a black video is flat and frozen too; the first name says it

    def faults(self) -> list[str]:
        found = [self._wrong] if self._wrong else []
        counts = {"NaN or infinity": self._not_finite, **self._bad}
        return found + [
            f"{name} in {count} of {self.videos} videos" for name, count in counts.items() if count
        ]


def _black(videos: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    return _only_ours(lambda v: v.flatten(1).amax(1) < BLACK, videos, reference)


def _flat(videos: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    return _only_ours(lambda v: v.flatten(3).std(3).amax((1, 2)) < FLAT, videos, reference)


def _frozen(videos: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    if videos.shape[1] < 2:
        return videos.new_zeros(len(videos), dtype=torch.bool)  # one frame alone cannot freeze
    return _only_ours(lambda v: temporal.motion(v).amax(1) < FROZEN, videos, reference)


def _still(videos: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    """STILL steps in a row without motion, at which the reference's video moves."""
    if videos.shape[1] <= STILL:
        return videos.new_zeros(len(videos), dtype=torch.bool)
    still = temporal.motion(videos) < FROZEN
    if reference is not None:
        still &= temporal.motion(reference) >= FROZEN
    return still.unfold(1, STILL, 1).all(2).any(1)


def _saturated(videos: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    def share(v: torch.Tensor) -> torch.Tensor:
        return ((v <= LEVEL) | (v >= 1 - LEVEL)).flatten(1).float().mean(1)

    usual = videos.new_zeros(len(videos)) if reference is None else share(reference)
    return share(videos) > usual + SATURATED


def _flickering(videos: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
    if reference is None:
        return videos.new_zeros(len(videos), dtype=torch.bool)
    usual = temporal.flicker(reference)
    return temporal.flicker(videos) > (FLICKER * usual).clamp(min=FLICKER_LEAST)


def _only_ours(
    test: Callable[[torch.Tensor], torch.Tensor],
    videos: torch.Tensor,
    reference: torch.Tensor | None,
) -> torch.Tensor:
    bad = test(videos)
    return bad if reference is None else bad & ~test(reference)


_KINDS: dict[str, Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "black": _black,
    "a single flat colour": _flat,
    "frozen": _frozen,
    "standing still part of the time": _still,
    "saturated": _saturated,
    "flickering beyond the reference": _flickering,
}
