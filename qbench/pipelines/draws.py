"""The draws inside a scheduler's step, made by the videos' own generators: see `noise.seeded`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.overrides import TorchFunctionMode

from qbench.errors import Unsupported

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Draws(TorchFunctionMode):
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
