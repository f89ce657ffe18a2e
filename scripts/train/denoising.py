"""What training a denoiser of the rendered world takes, whatever its architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qbench import world
from scripts.train.text import TEXT_TOKENS


def training_scenes(first: int) -> list[world.Scene]:
    """The scenes that a denoiser may see; of them the first so many, or all at 0."""
    scenes = [scene for scene in world.scenes() if not world.held_out(scene)]
    return scenes[:first] if first else scenes


def caption_ids(tokenizer: Any, scenes: list[world.Scene], device: str) -> torch.Tensor:
    """(2 * scenes + 1, tokens): both captions of each scene, and last the empty one."""
    captions = [scene.caption(t) for scene in scenes for t in (0, 1)] + [""]
    ids = tokenizer(captions, padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt")
    return ids["input_ids"].to(device)


def v_loss(
    predict: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    bank: torch.Tensor,
    ids: torch.Tensor,
    signal: torch.Tensor,
    owners: torch.Tensor,
    batch: int,
    generator: torch.Generator,
    even: bool = False,
) -> Callable[[], torch.Tensor]:
    """The loss of a batch that is drawn anew at every call, with one caption in ten left empty.

    predict: noised latents, timesteps and rows of `ids` (a caption's tokens or their embeddings) ->
    v, in autocast. bank: latents of clips. owners: the scene of each. signal: cumulative alphas of
    the schedule. even: one timestep from each equal part of the schedule, for small batches.
    """
    device, empty = bank.device, len(ids) - 1

    def draw(high: int) -> torch.Tensor:
        return torch.randint(high, (batch,), device=device, generator=generator)

    def loss() -> torch.Tensor:
        pick = draw(len(bank))
        clean = bank[pick].float()
        noise = torch.randn(clean.shape, device=device, generator=generator)
        t = draw(len(signal))
        if even:
            place = torch.arange(batch, device=device)
            place = place + torch.rand(batch, device=device, generator=generator)
            t = (place / batch * len(signal)).long().clamp(max=len(signal) - 1)
        # v = a * noise - s * clean (Salimans and Ho 2022, section 4), a^2 + s^2 = 1
        a = signal[t].sqrt().view(-1, 1, 1, 1, 1)
        s = (1 - signal[t]).sqrt().view(-1, 1, 1, 1, 1)
        caption = owners[pick] * 2 + draw(2)
        unguided = torch.rand(len(t), device=device, generator=generator) < 0.1
        caption = torch.where(unguided, empty, caption)
        with torch.autocast(device.type, torch.bfloat16):
            guess = predict(a * clean + s * noise, t, ids[caption])
        return (guess.float() - (a * noise - s * clean)).square().mean()

    return loss
