"""How far a video is from the reference's video of the same prompt and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from qbench.quality.metrics.base import Batch, Context, MetricSpec, PerVideo

PSNR_CAP = 100.0  # dB; identical videos would be infinite, which no mean survives
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # of SSIM


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
    same_shape(videos, reference)
    count, channels = videos.shape[:2].numel(), videos.shape[2]
    window = _window(videos.device).expand(channels, 1, -1, -1)
    a, b = (
        torch.nn.functional.pad(v.flatten(0, 1).float(), [WINDOW // 2] * 4, mode="reflect")
        for v in (videos, reference)
    )
    moments = torch.nn.functional.conv2d(
        torch.cat([a, b, a * a, b * b, a * b]), window, groups=channels
    )
    mean_a, mean_b, square_a, square_b, product = moments.split(count)
    variances = (square_a - mean_a**2).clamp(min=0) + (square_b - mean_b**2).clamp(min=0)
    covariance = product - mean_a * mean_b
    light = (2 * mean_a * mean_b + K1**2) / (mean_a**2 + mean_b**2 + K1**2)
    structure = (2 * covariance + K2**2) / (variances + K2**2)
    return (light * structure).view(*videos.shape[:2], -1).mean((1, 2))


def _window(device: torch.device) -> torch.Tensor:
    """Weights of a pixel's neighbours, which add up to 1."""
    away = torch.arange(WINDOW, dtype=torch.float32, device=device) - WINDOW // 2
    weight = torch.exp(-((away / SIGMA) ** 2) / 2)
    return torch.outer(weight, weight) / weight.sum() ** 2


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
