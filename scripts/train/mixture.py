"""Losses of several lengths in one optimizer step, so that weights learn one and forget none."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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


class Captured:
    """A loss and its gradients as one CUDA graph.

    Where a step has thousands of small kernels the host is what takes the time, and a graph is one
    launch. Gradients are added to those that parameters have, which must stay where they are: they
    are set to zero, never let go.
    """

    def __init__(
        self, loss_of_batch: Callable[[], torch.Tensor], generator: torch.Generator, pool: Any
    ) -> None:
        self._weight = torch.ones((), device=generator.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is made at the first call is no part of the graph
            for _ in range(2):
                (loss_of_batch() * self._weight).backward()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        # Others may ask how far their work is: NCCL's watchdog does so all the time.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            loss = loss_of_batch()
            (loss * self._weight).backward()
            self._loss = loss.detach()

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """The loss of a batch that is drawn anew; weight: what its gradients are multiplied by."""
        self._weight.copy_(weight)
        self._graph.replay()
        return self._loss.clone()


class Mixture:
    """Each call gives the losses of one step, as `fit` takes them.

    Long clips have small losses and new lengths large ones. Each is divided by its own running mean
    and multiplied by that of the first, so that all pull alike and the sum has the first's scale.
    """

    def __init__(self, losses: dict[Share, Callable[[], torch.Tensor]]) -> None:
        self.losses = losses
        self.captured: dict[Share, Captured] = {}
        self.running: dict[Share, torch.Tensor] = {}
        self.step = 0

    def capture(self, generator: torch.Generator) -> None:
        """From here on each loss is a graph that has left its gradients behind when it is given."""
        pool = torch.cuda.graph_pool_handle()
        self.captured = {
            part: Captured(loss_of_batch, generator, pool)
            for part, loss_of_batch in self.losses.items()
        }

    def __call__(self) -> Iterator[torch.Tensor]:
        for part, loss_of_batch in self.losses.items():
            if part is not self._first and self.step % part.every:
                continue
            graph = self.captured.get(part)  # whose gradients go by the means of the steps before
            loss = graph(self._pull(part)) if graph else loss_of_batch()
            now = loss.detach()
            self.running[part] = torch.lerp(self.running.get(part, now), now, 0.02)
            yield loss * self._pull(part)
        self.step += 1

    @property
    def _first(self) -> Share:
        return next(iter(self.losses))

    def _pull(self, part: Share) -> torch.Tensor:
        """What this length's loss is multiplied by: nothing is known of one before its first."""
        if part not in self.running:
            return torch.ones(())
        return self.running[self._first] / self.running[part]

    def told(self) -> str:
        """The running mean of each length's own loss."""
        return ", ".join(f"{part.name} {float(v):.5f}" for part, v in self.running.items())
