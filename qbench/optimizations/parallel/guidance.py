"""Classifier-free guidance on two sets of ranks: each computes one half of every step.

Every rank runs the pipeline's whole loop, on the same latents. What is split is the denoiser's
call, and after it all ranks hold both predictions, so the schedulers of all compute the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qbench.optimizations.changes import Changes, Forward

if TYPE_CHECKING:
    from qbench.optimizations.parallel.groups import Group
    from qbench.pipelines.base import Module, VideoPipeline


def apply(video: VideoPipeline, group: Group, changes: Changes) -> None:
    """Have the denoiser compute this rank's half of guidance, and fetch the other."""
    module = video.denoiser
    inner = module.forward
    if video.separate_guidance:
        changes.replace(module, "forward", _InTurn(inner, group))
        return

    def forward(_: Module, *args: object, **kwargs: object) -> object:
        both = _batch(args, kwargs)
        mine = [_half(x, both, group) for x in args]
        own = inner(*mine, **{name: _half(x, both, group) for name, x in kwargs.items()})
        return _with(own, torch.cat(group.gather(own[0])))

    changes.compute(module, forward)


def _batch(args: tuple[object, ...], kwargs: dict[str, object]) -> int:
    """Rows of the batch: of the latents, which every denoiser is given first."""
    first = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    rows = first.shape[0]
    if rows % 2:
        raise RuntimeError(f"a batch of {rows} is not made of two halves of guidance")
    return rows


def _half(x: object, both: int, group: Group) -> object:
    """This rank's half of an input that has a row for each of the batch; others as they are."""
    if isinstance(x, Tensor) and x.dim() and x.shape[0] == both:
        return x.chunk(2)[group.index]
    return x


def _with(output: Any, prediction: Tensor) -> object:
    """The denoiser's output with another prediction, which is all that it holds."""
    return (prediction,) if isinstance(output, tuple) else type(output)(prediction)


class _InTurn:
    """Families that call the denoiser twice a step, with the prompt and then without.

    The pipeline reads neither prediction before it has both. So each rank computes the call that
    is its own, gives an empty tensor for the other, and both are filled in after the second.
    """

    def __init__(self, inner: Forward, group: Group) -> None:
        self._inner, self._group = inner, group
        self._first: Tensor | None = None

    def __call__(self, *args: object, **kwargs: object) -> object:
        turn = 0 if self._first is None else 1
        if turn == self._group.index:
            out = self._inner(*args, **kwargs)
            prediction = out[0].contiguous()
        else:
            latents = args[0] if args else kwargs["hidden_states"]
            assert isinstance(latents, Tensor)
            out, prediction = (), torch.empty_like(latents).contiguous()
        if self._first is None:
            self._first = prediction
        else:
            self._group.fill(self._first, 0)
            self._group.fill(prediction, 1)
            self._first = None
        return _with(out, prediction)
