"""Ctrl-C ends what runs, wherever it falls."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from conftest import ROOT

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


# Ctrl-C falls into an early import of the command line, as it does in its first tenth of a second.
INTERRUPTS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
INSTALLED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["qbench"]
MODULE, _, FUNCTION = INSTALLED.partition(":")


@pytest.mark.parametrize(
    "start", [["-m", "qbench"], ["-c", f"from {MODULE} import {FUNCTION}; {FUNCTION}()"]]
)
def test_ctrl_c_before_anything_has_begun_leaves_no_traceback(
    start: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *start, "validate", "recipes"],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")
    # To a shell 130 both: Python ends by the signal where an evaluated annotation was interrupted.
    assert done.returncode in (130, -signal.SIGINT)
