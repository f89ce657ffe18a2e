"""At which timestep a denoiser is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from qbench.pipelines.base import Module


def on_timestep(module: Module, tell: Callable[[float], None]) -> RemovableHandle:
    """Have `tell` hear the timestep of the first video before each call of the denoiser.

    It is read on the host, once a call.
    """
    import inspect

    place = list(inspect.signature(type(module).forward).parameters).index("timestep") - 1

    @torch.compiler.disable
    def look(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        value = kwargs["timestep"] if "timestep" in kwargs else args[place]
        tell(float(value.flatten()[0]) if isinstance(value, Tensor) else float(value))  # type: ignore[arg-type]

    handle: RemovableHandle = module.register_forward_pre_hook(look, with_kwargs=True)
    return handle
