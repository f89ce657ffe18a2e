"""Losses of several lengths in one optimizer step, so that weights learn one and forget none."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

Length = tuple[int, int]  # frames, pixels a side


def length(text: str) -> Length:
    """17x64: frames and side."""
    frames, _, side = text.partition("x")
    if not (frames.isdigit() and side.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a length such as 17x64")
    return int(frames), int(side)


@dataclass(frozen=True)
class Share:
    """What a length has of a step: clips in a batch, in every n-th step.

    window: so many frames of each clip, drawn anew, for a part that sees a few frames at a time.
    """

    length: Length
    batch: int
    every: int = 1
    window: int = 0

    @property
    def name(self) -> str:
        return f"{self.length[0]}x{self.length[1]}"


def share(text: str) -> Share:
    """49x256:12 or 49x256:12:4 or 49x256:12:4:17: length, batch, every n-th step, window."""
    size, *numbers = text.split(":")
    if not 1 <= len(numbers) <= 3 or not all(n.isdigit() and int(n) for n in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 49x256:12:4")
    return Share(length(size), *map(int, numbers))


class Mixture:
    """Each call gives the losses of one step, as `fit` takes them.

    Long clips have small losses and new lengths large ones. Each is divided by its own running mean
    and multiplied by that of the first, so that all pull alike and the sum has the first's scale.
    """

    def __init__(self, losses: dict[Share, Callable[[], torch.Tensor]]) -> None:
        self.losses = losses
        self.running: dict[Share, torch.Tensor] = {}
        self.step = 0

    def __call__(self) -> Iterator[torch.Tensor]:
        first = next(iter(self.losses))
        for part, loss_of_batch in self.losses.items():
            if part is not first and self.step % part.every:
                continue
            loss = loss_of_batch()
            now = loss.detach()
            self.running[part] = torch.lerp(self.running.get(part, now), now, 0.02)
            yield loss * (self.running[first] / self.running[part])
        self.step += 1

    def told(self) -> str:
        """The running mean of each length's own loss."""
        return ", ".join(f"{part.name} {float(v):.5f}" for part, v in self.running.items())
