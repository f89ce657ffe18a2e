"""How far a video is from the reference's video of the same prompt and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from qbench.quality.metrics.base import Batch, Context, MetricSpec, PerVideo

PSNR_CAP = 100.0  # dB; identical videos would be infinite, which no mean survives


def meter(specs: Sequence[MetricSpec], context: Context) -> PerVideo:
    compute: dict[str, Callable[[Batch], torch.Tensor]] = {
        "psnr": lambda batch: psnr(*batch.pair()),
        "ssim": lambda batch: ssim(*batch.pair()),
        "latent_error": lambda batch: latent_error(*batch.latent_pair()),
    }
    return PerVideo({spec: compute[spec.name] for spec in specs})


def psnr(videos: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each video over all its frames, in dB, higher is closer.

    Both (batch, frames, 3, height, width) in [0, 1]. Returns (batch,), at most PSNR_CAP.
    """
    same_shape(videos, reference)
    error = (videos.double() - reference.double()).square().flatten(1).mean(1)
    return (-10 * torch.log10(error.clamp(min=10 ** (-PSNR_CAP / 10)))).float()


def ssim(videos: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004), mean over frames; 1 is identical.

    Gaussian window of 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, over every pixel with borders
    reflected, which is how torchmetrics does it; scikit-image leaves the borders out.
    Both (batch, frames, 3, height, width) in [0, 1]. Returns (batch,).
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    same_shape(videos, reference)
    batch, frames = videos.shape[:2]
    score = structural_similarity_index_measure(
        videos.flatten(0, 1).float(),
        reference.flatten(0, 1).float(),
        data_range=1.0,
        reduction="none",
    )
    assert isinstance(score, torch.Tensor)  # a tuple only where the full image is asked for
    return score.view(batch, frames).mean(1)


def latent_error(latents: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """||latents - reference|| / ||reference|| of each video's final latents; 0 is identical.

    Both (batch, ...). Returns (batch,).
    """
    same_shape(latents, reference)
    difference = (latents.double() - reference.double()).flatten(1).norm(dim=1)
    return (difference / reference.double().flatten(1).norm(dim=1)).float()


def same_shape(a: torch.Tensor, b: torch.Tensor) -> None:
    """Raises ValueError where the two are no pair."""
    if a.shape != b.shape:
        raise ValueError(
            f"paired metrics need equal shapes, got {tuple(a.shape)}, {tuple(b.shape)}"
        )
