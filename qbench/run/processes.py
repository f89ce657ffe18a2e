"""A fresh process for each run, forked from one that has imported the libraries and done nothing.

Importing them takes longer than many a run, so it happens once a sweep. What is forked is the state
after the imports: no run sees what another did. The NVIDIA driver does not survive a fork, so the
imports must not start it (see `preload`).
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from qbench.run.events import Event

POLL_S = 60.0  # poll takes no wait of any length
PATIENCE_S = 5.0  # between asking a process to end and ending it
SHOW, SHOWING_S = signal.SIGUSR1, 0.5  # Python's own stacks, written by its handler of faults
SAFE = "PYTHONSAFEPATH"  # a user's statistics.py in the current folder is not Python's
SEARCHED = "PYTHONPATH"
LEAVING_S = 30.0  # that a process which has left its record may take to end
SOCKETS = "qbench-"  # what folders of sockets begin with, then the process

Work = Callable[[str, Connection], None]


def prepare() -> Path:
    """Start importing. Returns at once; only the first call counts.

    The folder is this process's own, and is removed when it ends.
    """
    from multiprocessing import forkserver

    own = _own_sockets()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["qbench.run.preload"])
    with _as_program():
        forkserver.ensure_running()
    return own


def _own_sockets() -> Path:
    """Have multiprocessing keep its sockets in a folder named for this process.

    Its own are left behind when a process is killed, and nothing tells whose they were. Here the
    next sweep clears up after one that was.
    """
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{SOCKETS}[0-9]*-*"):
        owner = folder.name.removeprefix(SOCKETS).split("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
    settings = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    if settings.get("tempdir") is None:
        own = own_folder()
        settings["tempdir"] = own
        multiprocessing.util.Finalize(
            None, shutil.rmtree, args=(own,), kwargs={"ignore_errors": True}, exitpriority=-100
        )
    return Path(settings["tempdir"])


def own_folder() -> str:
    """A new folder that a later sweep removes if this process is killed before it does."""
    return tempfile.mkdtemp(prefix=f"{SOCKETS}{os.getpid()}-")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _as_program() -> Iterator[None]:
    """Start processes as if from qbench's own command, whatever program this is called from.

    A process that is started anew imports its parent's main module, which for a user's script
    would run it again, and searches where its parent does, the current folder included.
    """
    main, path = sys.modules["__main__"], sys.path.copy()
    variables = {SAFE: "1"}  # the current folder is no place to import from
    if (own := _root()) == os.getcwd():
        # But for qbench, where it is run from a checkout: the fork server knows no search path of
        # ours, and what it cannot import ahead it leaves out without a word.
        variables[SEARCHED] = os.pathsep.join(filter(None, [os.environ.get(SEARCHED), own]))
    before = {name: os.environ.get(name) for name in variables}
    sys.modules["__main__"] = ModuleType("__main__")
    sys.modules["__main__"].__spec__ = None
    sys.path[:] = safe_path(path)
    os.environ.update(variables)
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        sys.path[:] = path
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _root() -> str:
    """The folder that qbench is imported from."""
    return str(Path(__file__).parent.parent.parent)


def safe_path(path: list[str]) -> list[str]:
    """The search path with the current folder last, where qbench itself is in it, or not at all."""
    here, own = os.getcwd(), _root()
    kept = [item for item in path if item not in ("", ".", here)]
    return [*kept, here] if own == here else kept


class Child:
    """One process: events come out of it, answers go in. Everything it prints goes to its log."""

    def __init__(self, work: Work, job: str, log: Path) -> None:
        """work(job, connection) runs in the process, which leads a session of its own.

        The terminal's Ctrl-C is for the sweep, so the process does not hear it.
        """
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_begin, args=(work, job, theirs, str(log)))
        with _as_program():
            self._process.start()
        theirs.close()

    def events(self, deadline: Callable[[], float]) -> Iterator[Event]:
        """Its events as they come, until it ends.

        Raises TimeoutError once the deadline, of time.monotonic, has passed; it may change.
        """
        while True:
            left = deadline() - time.monotonic()
            if left <= 0:
                raise TimeoutError
            try:
                if self._connection.poll(min(left, POLL_S)):
                    yield self._connection.recv()
            except (EOFError, ConnectionError):
                return

    @property
    def connection(self) -> Connection:
        """Where its events come from, to wait for several processes at once."""
        return self._connection

    def receive(self) -> Event:
        """Its next event. Raises EOFError or ConnectionError where it has ended."""
        event: Event = self._connection.recv()
        return event

    def code(self) -> int | None:
        """Its exit code, negative for a signal, where it ends within a second."""
        self._process.join(1.0)
        return self._process.exitcode

    def answer(self, value: float) -> None:
        """What its `recv` returns. Raises OSError where it has died."""
        self._connection.send(value)

    def wait(self) -> int:
        """Its exit code, negative for a signal; what it started and left behind is ended."""
        self._process.join(LEAVING_S)
        self._signal(signal.SIGKILL)
        self._process.join()
        self._connection.close()
        code = self._process.exitcode
        assert code is not None
        return code

    def show_where(self) -> None:
        """Have it write to its log what each of its threads is doing, though it hang."""
        show_where([self])

    def end(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """End the process and all that it started, compilers among them; at once in a hurry."""
        self._signal(signal.SIGTERM)
        until = time.monotonic() + PATIENCE_S
        while self._process.is_alive() and time.monotonic() < until and not hurry():
            self._process.join(0.1)
        self._signal(signal.SIGKILL)
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


def signal_name(number: int) -> str:
    """SIGKILL and such; those for real-time use, of which Python names only two, by number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def show_where(children: Iterable[Child]) -> None:
    """As a child's own, of several at once."""
    for child in children:
        pid = child._process.pid
        if pid is not None and child._process.is_alive():
            os.kill(pid, SHOW)
    time.sleep(SHOWING_S)


def _begin(work: Work, job: str, connection: Connection, log: str) -> None:
    from tqdm import tqdm

    os.setsid()
    # A progress bar's own lock is a semaphore, which outlives a process that is ended.
    tqdm.set_lock(threading.RLock())
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(number, target)
    faulthandler.register(SHOW, all_threads=True)
    work(job, connection)


def end_with_parent(first: Callable[[], None] = lambda: None) -> None:
    """From now on this process and all that it started end when the sweep's process is gone.

    `first` is called before, in a thread of its own. The fork server lives as long as any run that
    it forked, so its death would tell nothing: what is watched is the sweep itself.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    sockets = multiprocessing.process.current_process()._config.get(  # type: ignore[attr-defined]
        "tempdir"
    )

    def watch() -> None:
        parent.join()
        try:
            first()
        finally:
            if sockets:
                shutil.rmtree(sockets, ignore_errors=True)
            os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
