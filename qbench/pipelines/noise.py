"""Random numbers of a video: its initial latents and what its scheduler adds between steps.

Both depend on the video's seed alone. They are drawn on the CPU in FP32, since a GPU, and BF16 on
a CPU, draw other values from the same seed, and from generators that belong to one video, since a
generator that is shared gives a video whatever earlier calls have left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor

# Separates a scheduler's noise from the initial latents of the same seed, which would otherwise be
# the same numbers.
SCHEDULER_STREAM = 0x5DEECE66D


class Scheduler(Protocol):
    """The part of diffusers' schedulers that a video's noise comes from."""

    step: Callable[..., object]


def initial(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise of `shape`, float32, on the CPU: the same on every device."""
    import torch

    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def generators(seeds: Sequence[int]) -> list[Generator]:
    """One CPU generator a video, for the noise that its scheduler adds."""
    import torch

    return [torch.Generator("cpu").manual_seed(SCHEDULER_STREAM ^ (seed << 1)) for seed in seeds]


@contextmanager
def seeded(scheduler: Scheduler, own: Sequence[Generator]) -> Iterator[None]:
    """Have every random draw inside `scheduler.step` come from the videos' own generators.

    Handing a generator to the pipeline is not enough: CogVideoX's DPM scheduler draws twice a step
    and passes it on once, and others ignore it. Raises Unsupported where a scheduler draws in a
    way that cannot be split by video.
    """
    from qbench.pipelines.draws import Draws

    plain = scheduler.step

    @functools.wraps(plain)  # pipelines look at its signature
    def step(*args: object, **kwargs: object) -> object:
        with Draws(own):
            return plain(*args, **kwargs)

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step  # the class's own shows again
