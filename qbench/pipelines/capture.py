"""What a pipeline passes to its denoiser, recorded inside the pipeline's own loop."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from qbench.pipelines.base import Module

Inputs = dict[str, object]  # by the name of the denoiser's parameter: tensors, or tuples of them


class Recorder:
    """Stands at the denoiser's place, keeps the inputs of each call, and passes it on or not."""

    def __init__(self, module: Module, compute: bool) -> None:
        self.module, self.compute = module, compute
        self.config, self.dtype, self.device = module.config, module.dtype, module.device
        self.steps: list[list[Inputs]] = []
        self._calls: list[Inputs] = []

    def cache_context(self, name: str, **where: object) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = self.module.cache_context(name, **where)
        return context

    def __call__(self, *args: object, return_dict: bool = True, **kwargs: object) -> object:
        inputs = by_name(type(self.module), args, kwargs)
        self._calls.append({name: _kept(value) for name, value in inputs.items()})
        if self.compute:
            return self.module(*args, return_dict=return_dict, **kwargs)
        first = next(iter(inputs.values()))
        assert isinstance(first, torch.Tensor)
        return (torch.zeros_like(first),)

    def end_step(self, _: int) -> None:
        self.steps.append(self._calls)
        self._calls = []


def by_name(kind: type, args: tuple[object, ...], kwargs: dict[str, object]) -> Inputs:
    """The arguments of a call by the names of `forward`'s parameters, without what is None."""
    signature = inspect.signature(kind.forward)  # type: ignore[attr-defined]
    bound = signature.bind(None, *args, **kwargs).arguments
    self_name = next(iter(signature.parameters))
    given = {name: value for name, value in bound.items() if name != self_name}
    return {name: value for name, value in given.items() if value is not None}


def _kept(value: object) -> object:
    """A copy: the loop may go on in place."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (tuple, list)):
        return tuple(_kept(item) for item in value)
    return value
