"""What an axis changed about a live pipeline, and the way back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Forward = Callable[..., Any]  # what a module computes: each kind takes and gives its own

_MISSING = object()


class Changes:
    """The changes of one axis to live objects, undone in reverse order.

    `permanent` says why a change cannot be undone; it is empty where all of them can. `of_weights`
    are those of the denoiser's weights, which can be undone until these are quantized.
    """

    def __init__(self, axis: str, of_weights: bool = False) -> None:
        self.axis, self.of_weights = axis, of_weights
        self.permanent = ""
        self._undo: list[Callable[[], object]] = []

    def __bool__(self) -> bool:
        return bool(self._undo or self.permanent)

    def replace(self, owner: object, name: str, value: object) -> None:
        """Set an attribute of one object; undone, it is what it was or the class's own again."""
        own = vars(owner)
        parts = next((own[kind] for kind in _PARTS if name in own.get(kind, ())), own)
        old = parts.get(name, _MISSING)
        setattr(owner, name, value)
        if old is _MISSING:
            self.on_undo(lambda: delattr(owner, name))
        else:
            self.on_undo(lambda: setattr(owner, name, old))

    def compute(self, layer: nn.Module, forward: Forward) -> None:
        """Have `forward(layer, ...)` compute what is asked of the layer."""
        self.replace(layer, "forward", functools.partial(forward, layer))

    def on_undo(self, step: Callable[[], object]) -> None:
        self._undo.append(step)

    def keep(self, reason: str) -> None:
        """Give up the way back: later changes have made it impossible."""
        self._undo.clear()
        self.permanent = reason

    def undo(self) -> None:
        """Take every change back, the last one first. What is permanent stays."""
        while self._undo:
            self._undo.pop()()


_PARTS = ("_modules", "_parameters", "_buffers")  # where torch keeps a module's own attributes
