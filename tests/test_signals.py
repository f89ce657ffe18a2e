"""Ctrl-C ends what runs, wherever it falls."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from qbench.run.interrupts import Interrupts
from qbench.signals import wait_for_imports

# Many a library asks so whether another one works.
SWALLOWS = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)
except BaseException:
    pass
"""


@pytest.fixture
def interruptible() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _import_and_work() -> None:
    importlib.import_module("swallows")
    time.sleep(10)


@pytest.mark.parametrize("handled", [Interrupts, nullcontext])
def test_ctrl_c_in_an_import_that_catches_everything_comes_after_it(
    handled: type[AbstractContextManager[object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interruptible: None,
) -> None:
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "swallows", raising=False)
    wait_for_imports()
    with pytest.raises(KeyboardInterrupt), handled():
        _import_and_work()
    assert "swallows" in sys.modules
