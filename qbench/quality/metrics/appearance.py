"""How a video's pictures differ from the reference's: sharpness, contrast, colour.

Each is 0 where the video looks as the reference's does, whatever it shows, so a variant that paints
another scene as well is near 0 and one that blurs, fades or tints every scene is not. No network is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from qbench.quality.metrics.base import Batch, Context, MetricSpec, PerVideo
from qbench.quality.metrics.fidelity import same_shape

# Rec. 709 luma of R, G, B; and the least variance that counts: one level of 8 bits, squared.
LUMA = (0.2126, 0.7152, 0.0722)
LEAST = (1 / 255) ** 2


def meter(specs: Sequence[MetricSpec], context: Context) -> PerVideo:
    compute: dict[str, Callable[[Batch], torch.Tensor]] = {
        "sharpness": lambda batch: sharpness(*batch.pair()),
        "contrast": lambda batch: contrast(*batch.pair()),
        "colour": lambda batch: colour(*batch.pair()),
    }
    return PerVideo({spec: compute[spec.name] for spec in specs})


def sharpness(videos: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Log ratio of the energy of gradients per variance; below 0 is more blurred.

    Half the logarithm, so a picture scaled by k in size has -ln k. Independent of contrast: both
    energies are divided by the variance of their own picture.
    Both (batch, frames, 3, height, width) in [0, 1]. Returns (batch,).
    """
    same_shape(videos, reference)
    return _log_ratio(_gradients, videos, reference) - _log_ratio(_variance, videos, reference)


def contrast(videos: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Log ratio of the standard deviations of luma within frames; ln 0.9 is a tenth less.

    Both (batch, frames, 3, height, width) in [0, 1]. Returns (batch,).
    """
    same_shape(videos, reference)
    return _log_ratio(_variance, videos, reference)


def colour(videos: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Distance between the distributions of RGB over all pixels, as Gaussians; 0 is equal.

    The 2-Wasserstein distance of N(mean, covariance) and N(mean', covariance') (Dowson and Landau
    1982): a shift of one channel by d gives d. It sees brightness, saturation, tints and channels
    that changed places, and no movement of what the picture shows.
    Both (batch, frames, 3, height, width) in [0, 1]. Returns (batch,), in [0, sqrt 3].
    """
    same_shape(videos, reference)
    (mean_a, cov_a), (mean_b, cov_b) = _moments(videos), _moments(reference)
    root = _root(cov_a)
    inner = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum(1)
    spread = _trace(cov_a) + _trace(cov_b) - 2 * inner
    return ((mean_a - mean_b).square().sum(1) + spread.clamp(min=0)).sqrt().float()


def _log_ratio(
    energy: Callable[[torch.Tensor], torch.Tensor], videos: torch.Tensor, reference: torch.Tensor
) -> torch.Tensor:
    """Half the logarithm of the ratio of two energies, video by video."""
    ours, theirs = (energy(_luma(v)) + LEAST for v in (videos, reference))
    return (0.5 * (ours / theirs).log()).float()


def _luma(videos: torch.Tensor) -> torch.Tensor:
    """(batch, frames, height, width)"""
    weights = torch.tensor(LUMA, device=videos.device).view(3, 1, 1)
    return (videos.float() * weights).sum(2)


def _gradients(luma: torch.Tensor) -> torch.Tensor:
    down, right = luma.diff(dim=2), luma.diff(dim=3)
    return down.square().double().mean((1, 2, 3)) + right.square().double().mean((1, 2, 3))


def _variance(luma: torch.Tensor) -> torch.Tensor:
    """Within frames, mean over frames."""
    return luma.double().flatten(2).var(2, correction=0).mean(1)


def _moments(videos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (batch, 3) and covariance (batch, 3, 3) of the colours of all pixels."""
    pixels = videos.double().transpose(1, 2).flatten(2)
    mean = pixels.mean(2)
    centred = pixels - mean.unsqueeze(2)
    return mean, centred @ centred.transpose(1, 2) / pixels.shape[2]


def _root(symmetric: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(symmetric)
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.transpose(-1, -2)


def _trace(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(1)
