"""Random numbers of a video: its initial latents and what its scheduler adds between steps.

Both depend on the video's seed alone. They are drawn on the CPU in FP32, since a GPU, and BF16 on
a CPU, draw other values from the same seed, and from generators that belong to one video, since a
generator that is shared gives a video whatever earlier calls have left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch.overrides import TorchFunctionMode

from qbench.errors import Unsupported

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
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def generators(seeds: Sequence[int]) -> list[Generator]:
    """One CPU generator a video, for the noise that its scheduler adds."""
    return [torch.Generator("cpu").manual_seed(SCHEDULER_STREAM ^ (seed << 1)) for seed in seeds]


@contextmanager
def seeded(scheduler: Scheduler, own: Sequence[Generator]) -> Iterator[None]:
    """Have every random draw inside `scheduler.step` come from the videos' own generators.

    Handing a generator to the pipeline is not enough: CogVideoX's DPM scheduler draws twice a step
    and passes it on once, and others ignore it. Raises Unsupported where a scheduler draws in a
    way that cannot be split by video.
    """
    plain = scheduler.step

    @functools.wraps(plain)  # pipelines look at its signature
    def step(*args: object, **kwargs: object) -> object:
        with _Draws(own):
            return plain(*args, **kwargs)

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step  # the class's own shows again


class _Draws(TorchFunctionMode):
    """Normal draws split evenly among `own` along the first axis; other draws are refused."""

    NORMAL: ClassVar[tuple[object, ...]] = (torch.randn, torch.randn_like)
    OTHER: ClassVar[tuple[object, ...]] = (
        torch.rand,
        torch.rand_like,
        torch.normal,
        torch.randint,
        torch.bernoulli,
    )

    def __init__(self, own: Sequence[Generator]) -> None:
        super().__init__()
        self.own = own

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func in self.OTHER:
            raise Unsupported(f"generation.scheduler: it draws by {func.__name__}, not by seed")
        if func not in self.NORMAL:
            return func(*args, **(kwargs or {}))
        # torch's own draw has the shape, dtype and device; its values are not used.
        drawn = func(*args, **(kwargs or {}))
        assert isinstance(drawn, torch.Tensor)
        return self._normal(drawn.shape).to(drawn.device, drawn.dtype)

    def _normal(self, shape: torch.Size) -> Tensor:
        videos = len(self.own)
        if not shape or shape[0] % videos:
            raise Unsupported(
                f"generation.scheduler: it draws noise of shape {tuple(shape)} for {videos} videos"
            )
        part = (shape[0] // videos, *shape[1:])
        return torch.cat([torch.randn(part, generator=one) for one in self.own])
