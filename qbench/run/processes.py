"""A fresh process for each run, forked from one that has imported the libraries and done nothing.

Importing them takes longer than many a run, so it happens once a sweep. What is forked is the state
after the imports: no run sees what another did. The NVIDIA driver does not survive a fork, so the
imports must not start it (see `preload`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from qbench.run.events import Event

POLL_S = 60.0  # poll takes no wait of any length
PATIENCE_S = 5.0  # between asking a process to end and ending it


def prepare() -> None:
    """Start importing. Returns at once; only the first call counts."""
    from multiprocessing import forkserver

    multiprocessing.get_context("forkserver").set_forkserver_preload(["qbench.run.preload"])
    forkserver.ensure_running()


class Child:
    """One process: events come out of it, answers go in. Everything it prints goes to its log."""

    def __init__(self, work: Callable[..., None], job: str, log: Path) -> None:
        """work(job, connection) runs in the process, which leads a session of its own.

        The terminal's Ctrl-C is for the sweep, so the process does not hear it.
        """
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_begin, args=(work, job, theirs, str(log)))
        self._process.start()
        theirs.close()

    def events(self, deadline: float | None = None) -> Iterator[Event]:
        """Its events as they come, until it ends.

        Raises TimeoutError once the deadline, of time.monotonic, has passed.
        """
        while True:
            left = POLL_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            try:
                if self._connection.poll(min(left, POLL_S)):
                    yield self._connection.recv()
            except (EOFError, ConnectionError):
                return

    def answer(self, value: float) -> None:
        """What its `recv` returns. Raises OSError where it has died."""
        self._connection.send(value)

    def wait(self) -> int:
        """Its exit code, negative for a signal; what it started and left behind is ended."""
        self._process.join()
        self._signal(signal.SIGKILL)
        self._connection.close()
        code = self._process.exitcode
        assert code is not None
        return code

    def end(self) -> None:
        """End the process and all that it started, compilers among them."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            self._signal(sign)
            self._process.join(PATIENCE_S)
        self._connection.close()

    def _signal(self, sign: int) -> None:
        pid = self._process.pid
        assert pid is not None
        try:
            os.killpg(pid, sign)
        except ProcessLookupError:
            if self._process.is_alive():  # it does not lead its session yet
                self._process.kill()


def _begin(work: Callable[..., None], job: str, connection: Connection, log: str) -> None:
    from tqdm import tqdm

    os.setsid()
    # A progress bar's own lock is a semaphore, which outlives a process that is ended.
    tqdm.set_lock(threading.RLock())
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(number, target)
    work(job, connection)
