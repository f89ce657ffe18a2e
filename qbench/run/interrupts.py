"""Ctrl-C, a scheduler's SIGTERM and a closed terminal's SIGHUP, while a sweep runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from qbench import signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """The first signal raises KeyboardInterrupt, unless it is held; later ones only make haste.

    So a record that is being written is written, however often Ctrl-C is pressed. A signal that
    the program was started to ignore (`nohup`) stays ignored. Handlers can be set in the main
    thread alone; elsewhere signals stay as they were.
    """

    def __init__(self) -> None:
        self._count, self._held, self._raised = 0, 0, False
        self._before: dict[signal.Signals, object] = {}

    @property
    def hurry(self) -> bool:
        """Whether the user has asked more than once."""
        return self._count > 1

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]  # as getsignal gave it

    @contextmanager
    def held(self) -> Iterator[None]:
        """No KeyboardInterrupt falls inside the block; one that is due is raised at its end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise_if_due()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._raised and signals.postponed(number, frame):
            return
        self._count += 1
        self._raise_if_due()

    def _raise_if_due(self) -> None:
        if self._count and not self._held and not self._raised:
            self._raised = True
            raise KeyboardInterrupt
