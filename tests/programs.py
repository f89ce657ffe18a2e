"""qbench's own program for tests, forked from a process that has imported what it imports.

Starting `python -m qbench run` takes ten seconds of imports: for itself, for the process that reads
the machine, and for the one that runs are forked from. A test of what it prints, or leaves, needs
none of them again. What is forked is a process like any other: with its own arguments, folder,
environment, limits, streams and exit code, and it hears signals. What libraries read of the
environment as they are imported was read before, so tests of that, and of starting itself, start
`sys.executable`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

ROOT = Path(__file__).parent.parent
FORK_SERVER = "from multiprocessing.forkserver import main"


class Program:
    """`python -m` with these words, started: what tests use of subprocess.Popen."""

    def __init__(self, *words: str, cwd: Path = ROOT, limits: Mapping[str, int] = {}) -> None:
        """limits: of the system, by their names in `resource`."""
        pipes = [os.pipe() for _ in range(2)]
        job = {"words": words, "cwd": str(cwd), "environment": dict(os.environ)}
        text = json.dumps(job | {"limits": dict(limits)}).encode()
        ours, theirs = socket.socketpair()
        with open(os.devnull) as nothing:
            files = [nothing.fileno(), *(writing for _, writing in pipes), theirs.fileno()]
            socket.send_fds(_server(), [b"%8d" % len(text)], files)
            _server().sendall(text)
        theirs.close()
        for _, writing in pipes:
            os.close(writing)
        self._ours, self._told = ours, ours.makefile("r")
        self.pid = int(self._told.readline())
        self._streams = [os.fdopen(reading) for reading, _ in pipes]
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended, as it may at any moment
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """What it wrote to both streams, once nobody holds them open any more."""
        texts: dict[IO[str], str] = {}

        def read(stream: IO[str]) -> None:
            texts[stream] = stream.read()

        readers = [threading.Thread(target=read, args=(s,), daemon=True) for s in self._streams]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                self.kill()
                raise subprocess.TimeoutExpired("qbench", timeout)
        self.returncode = int(self._told.readline())
        for file in (self._told, self._ours, *self._streams):
            file.close()
        out, err = (texts[stream] for stream in self._streams)
        return out, err


def run(
    *words: str, cwd: Path = ROOT, limits: Mapping[str, int] = {}
) -> subprocess.CompletedProcess[str]:
    """`python -m` with these words, to its end."""
    program = Program(*words, cwd=cwd, limits=limits)
    out, err = program.communicate()
    assert program.returncode is not None
    return subprocess.CompletedProcess(words, program.returncode, out, err)


def apart(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`qbench.subprocesses.run` for what a test calls in its own process."""
    return run(module, *words, cwd=Path.cwd())


@functools.cache
def _server() -> socket.socket:
    """The line to the process that is forked from. It ends with this one."""
    ours, theirs = socket.socketpair()
    code = f"import programs; programs.serve({theirs.fileno()})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=environment, cwd=ROOT
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


# The other side -------------------------------------------------------------------------------


def serve(number: int) -> None:
    """Fork a program for each message, until there are no more."""
    line = socket.socket(fileno=number)
    _import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch
    while True:
        head, files, _, _ = socket.recv_fds(line, 8, 4)
        if not head:
            return
        text = b""
        while len(text) < int(head):
            text += line.recv(int(head) - len(text))
        if not os.fork():
            line.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _watch(json.loads(text), files)
        for file in files:
            os.close(file)


def _import_all() -> None:
    import gc
    import importlib

    for name in ("run.preload", "cli", "progress", "run.spread", "meters.environment"):
        importlib.import_module(f"qbench.{name}")
    del sys.modules["qbench.run.preload"]  # what else it does is for each fork server to do
    gc.freeze()


def _watch(job: dict, files: list[int]) -> NoReturn:
    """Be the program's parent, which tells its process, and in the end how it ended."""
    *streams, telling = files
    program = os.fork()
    if not program:
        os.close(telling)
        _as_process(lambda: _be_program(job, streams))
    for file in streams:
        os.close(file)
    os.write(telling, f"{program}\n".encode())
    _, status = os.waitpid(program, 0)
    with contextlib.suppress(OSError):  # nobody may ask any more
        os.write(telling, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _be_program(job: dict, streams: list[int]) -> None:
    import runpy
    import tempfile

    _take(streams)
    # As a terminal starts it: a suite in the background would hand on that Ctrl-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    for name, limit in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    tempfile.tempdir = None  # it follows TMPDIR
    kept = [path for path in sys.path if path not in ("", str(ROOT / "tests"), str(ROOT))]
    sys.path[:] = [os.getcwd(), *kept, str(ROOT)]
    _start_nothing_anew()
    module, *sys.argv[1:] = job["words"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _start_nothing_anew() -> None:
    """What this program would start to import the same again is forked from it."""
    from multiprocessing import util

    from qbench import subprocesses

    plain_spawn, plain_run = util.spawnv_passfds, subprocesses.run

    def spawn(path: bytes, words: Sequence[str], passed: Sequence[int]) -> int:
        if not words[-1].startswith(FORK_SERVER):
            return plain_spawn(path, words, passed)
        return os.fork() or _as_process(lambda: _be_fork_server(words[-1], set(passed)))

    def read_machine(module: str, *words: str) -> subprocess.CompletedProcess[str]:
        if module != "qbench.meters.environment":
            return plain_run(module, *words)
        pipes = [os.pipe() for _ in range(2)]
        process = os.fork() or _as_process(lambda: _be_reader(words[0], [w for _, w in pipes]))
        for _, writing in pipes:
            os.close(writing)
        out, err = (os.fdopen(reading).read() for reading, _ in pipes)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        return subprocess.CompletedProcess(words, code, out, err)

    util.spawnv_passfds = spawn
    subprocesses.run = read_machine


def _be_fork_server(code: str, passed: set[int]) -> None:
    Path("/proc/self/comm").write_text("forkserver")
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number not in passed:
            with contextlib.suppress(OSError):
                os.close(number)
    exec(code, {"__name__": "__main__"})


def _be_reader(device: str, streams: list[int]) -> None:
    from qbench.meters import environment

    _take([os.open(os.devnull, os.O_RDONLY), *streams])
    sys.argv[1:] = [device]
    environment.main()


def _take(streams: list[int]) -> None:
    """Make these the process's own streams."""
    for number, file in enumerate(streams):
        os.dup2(file, number)
    for file in set(streams):
        os.close(file)


def _as_process(work: Callable[[], object]) -> NoReturn:
    """Do this, and end as a process of Python's ends."""
    code = 0
    try:
        work()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):
        threading._shutdown()
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
