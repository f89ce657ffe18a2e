"""Is this a video at all? A run that fails here is `invalid` and wins nothing."""

from __future__ import annotations

import torch

BLACK, FROZEN, FLAT = 0.02, 2e-4, 5e-3


def faults(
    videos: torch.Tensor,
    latents: torch.Tensor,
    expected: tuple[int, ...],
    reference: torch.Tensor | None = None,
) -> list[str]:
    """What is wrong, in words, worst first; empty where nothing is.

    videos: (n, frames, 3, height, width) in [0, 1]. latents: (n, ...). expected: one video's shape.
    A video counts as black, flat or frozen only where the reference's video of the same prompt
    (`reference`, shaped like `videos`) is not.
    """
    if tuple(videos.shape[1:]) != expected:
        return [f"wrong shape: {tuple(videos.shape[1:])} instead of {expected}"]
    found = []
    broken = ~torch.isfinite(latents.flatten(1)).all(1) | ~torch.isfinite(videos.flatten(1)).all(1)
    if broken.any():
        found.append(f"NaN or infinity in {int(broken.sum())} of {len(videos)} videos")
    kinds = {
        "black": lambda v: v.flatten(1).amax(1) < BLACK,
        "a single flat colour": lambda v: v.flatten(3).std(3).amax((1, 2)) < FLAT,
        "frozen": lambda v: _motion(v) < FROZEN,
    }
    for name, test in kinds.items():
        bad = test(videos) & ~broken
        if reference is not None:
            bad &= ~test(reference)
        if bad.any():
            found.append(f"{name} in {int(bad.sum())} of {len(videos)} videos")
            break  # a black video is flat and frozen too; the first name says it
    return found


def _motion(videos: torch.Tensor) -> torch.Tensor:
    """Mean absolute change from frame to frame of each video; one frame alone cannot freeze."""
    if videos.shape[1] < 2:
        return torch.full((len(videos),), float("inf"))
    return (videos[:, 1:] - videos[:, :-1]).abs().flatten(1).mean(1)
