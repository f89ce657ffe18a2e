"""Of CogVideoX's causal VAE, what every way of decoding needs: earlier frames, and latents' places.

Frames are dimension 2 of every tensor here, whatever comes before and after.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def earlier(x: torch.Tensor, ahead: int, cache: torch.Tensor | None) -> list[torch.Tensor]:
    """The `ahead` frames before the first: the cache, or else the first one again and again."""
    return [x[:, :, :1]] * ahead if cache is None else [cache]


def kept(x: torch.Tensor, ahead: int, cache: torch.Tensor | None) -> torch.Tensor:
    """The last `ahead` frames seen by now, as the next frames' cache.

    They take the place of the old cache: the layers' together are as large as three of the widest
    tensors.
    """
    recent = x if x.shape[2] >= ahead else torch.cat([*earlier(x, ahead, cache), x], dim=2)
    last = recent[:, :, -ahead:]
    return last.clone() if cache is None else cache.copy_(last)


def latents_of(
    sizes: Sequence[int], of: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which latent each frame, row and column has, as torch enlarges by the nearest.

    sizes, of: frames, height and width, and those of the latents.
    """
    times, rows, columns = (
        _nearest(size, count, device) for size, count in zip(sizes, of, strict=True)
    )
    if sizes[0] > 1 and sizes[0] % 2 == 1:  # the first frame has a latent of its own
        rest = _nearest(sizes[0] - 1, of[0] - 1, device) + 1
        times = torch.cat([rest.new_zeros(1), rest])
    return times, rows, columns


def _nearest(size: int, of: int, device: torch.device | str) -> torch.Tensor:
    return torch.arange(size, device=device) * of // size
