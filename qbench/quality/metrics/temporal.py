"""Change over time within a video."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qbench.quality.metrics.base import Context, MetricSpec, PerVideo


def meter(specs: Sequence[MetricSpec], context: Context) -> PerVideo:
    return PerVideo(dict.fromkeys(specs, lambda batch: flicker(batch.frames)))


def flicker(videos: torch.Tensor) -> torch.Tensor:
    """Mean absolute second difference over time: steady motion leaves little, alternation most.

    videos: (batch, frames, 3, height, width) in [0, 1]. Returns (batch,), in [0, 2]; 0 for fewer
    than three frames.
    """
    if videos.shape[1] < 3:
        return videos.new_zeros(len(videos), dtype=torch.float32)
    second = videos[:, 2:] - 2 * videos[:, 1:-1] + videos[:, :-2]
    return second.float().abs().flatten(1).mean(1)


def motion(videos: torch.Tensor) -> torch.Tensor:
    """Mean absolute change of each step from frame to frame: (batch, frames - 1), in [0, 1]."""
    return (videos[:, 1:] - videos[:, :-1]).float().abs().flatten(2).mean(2)
