"""How a video's motion differs from the reference's: its amount, direction and rhythm.

Each is 0 where the video moves as the reference's does. Amount and rhythm do not depend on what the
picture shows, so another scene that moves as much and as evenly is near 0; direction holds the
movement of each region against the reference's, which only videos of the same noise share. No
network is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from qbench.quality.metrics.base import Batch, Context, MetricSpec, PerVideo
from qbench.quality.metrics.fidelity import same_shape
from qbench.quality.metrics.temporal import motion

LEVEL = 1 / 255
GRID = 4  # regions along each side in which movement is told apart
# Below these, change is taken for none: a quarter of a level, root mean square; a tenth of a level,
# mean; and the movement of an edge of one level by a hundredth of a pixel.
LEAST_CHANGE, LEAST_STEP, LEAST_MOVEMENT = LEVEL / 4, LEVEL / 10, (0.01 * LEVEL**2) ** 2


def meter(specs: Sequence[MetricSpec], context: Context) -> PerVideo:
    compute: dict[str, Callable[[Batch], torch.Tensor]] = {
        "motion_amount": lambda batch: motion_amount(*batch.pair()),
        "motion_direction": lambda batch: motion_direction(*batch.pair()),
        "motion_rhythm": lambda batch: motion_rhythm(*batch.pair()),
    }
    return PerVideo({spec: compute[spec.name] for spec in specs})


def motion_amount(videos: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Log ratio of the change from frame to frame, root mean square; ln 0.5 is half as much.

    Both (batch, frames, 3, height, width) in [0, 1], two frames and more. Returns (batch,).
    """
    same_shape(videos, reference)
    ours, theirs = (_change(video) + LEAST_CHANGE for video in (videos, reference))
    return (ours / theirs).log().float()


def motion_direction(videos: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Cosine between the movements of the two videos, less 1: 0 the same, -2 all reversed.

    Movement is what the gradient constraint of optical flow (Horn and Schunck 1981) knows of it
    without solving for speed: the product of luma's change over time and its gradient, mean over
    each of GRID x GRID regions, at every step. -1 is no relation, as where the video stands still.
    Both (batch, frames, 3, height, width) in [0, 1], two frames and more. Returns (batch,).
    """
    same_shape(videos, reference)
    ours, theirs = (_movement(video).double().flatten(1) for video in (videos, reference))
    product = (ours * theirs).sum(1) + LEAST_MOVEMENT
    squares = (ours.square().sum(1) + LEAST_MOVEMENT) * (theirs.square().sum(1) + LEAST_MOVEMENT)
    return (product / squares.sqrt() - 1).clamp(-2, 0).float()


def motion_rhythm(videos: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How much more unevenly the video changes over time than the reference's.

    The difference of two coefficients of variation (standard deviation over mean) of the steps'
    mean absolute changes. A video that repeats every second frame has 1 where steady motion has 0.
    Both (batch, frames, 3, height, width) in [0, 1], three frames and more. Returns (batch,).
    """
    same_shape(videos, reference)
    return (_unevenness(videos) - _unevenness(reference)).float()


def _change(videos: torch.Tensor) -> torch.Tensor:
    return videos.float().diff(dim=1).square().flatten(1).mean(1, dtype=torch.float64).sqrt()


def _unevenness(videos: torch.Tensor) -> torch.Tensor:
    steps = motion(videos).double()
    return steps.std(1, correction=0) / (steps.mean(1) + LEAST_STEP)


def _movement(videos: torch.Tensor) -> torch.Tensor:
    """(batch, frames - 1, 2, GRID, GRID): down and right, of luma as the mean of the channels."""
    luma = videos.float().mean(2)
    change, between = luma.diff(dim=1), (luma[:, 1:] + luma[:, :-1]) / 2
    down = functional.pad(between[..., 2:, :] - between[..., :-2, :], (0, 0, 1, 1)) / 2
    right = functional.pad(between[..., 2:] - between[..., :-2], (1, 1)) / 2
    products = torch.stack([change * down, change * right], 2)
    regions = functional.adaptive_avg_pool2d(products.flatten(0, 1), GRID)
    return regions.view(*products.shape[:3], GRID, GRID)
