"""Ctrl-C that falls into an import: it waits for the import's end.

Libraries catch whatever their imports raise, or turn it into another error, so that a
KeyboardInterrupt in there is lost and the sweep that was to end goes on.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

AGAIN_S = 0.05


def postponed(number: int, frame: FrameType | None) -> bool:
    """Whether an import is under way where the signal fell; it then comes again a little later."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            later = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
            later.daemon = True
            later.start()
            return True
        frame = frame.f_back
    return False


def wait_for_imports() -> None:
    """Have Ctrl-C wait where it is as Python sets it up, and a handler can be set."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    if not postponed(number, frame):
        signal.default_int_handler(number, frame)
