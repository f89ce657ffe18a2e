"""A seat on a node of a cluster: so many of its devices, held by one process of Ray's.

It does for a run what `here` does, with the same processes, in a folder of its own, and hands back
what happens as it happens, then the run's files, then its record. Imports no Ray.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from qbench.meters.environment import Environment
from qbench.pipelines import specs
from qbench.quality.outputs import FOLDER as OUTPUTS
from qbench.recipe.schema import Recipe
from qbench.results import store
from qbench.results.record import Record
from qbench.run import execution, folders, locks, processes, worker
from qbench.run.events import Event, RunEnded, StageEntered
from qbench.run.execution import Limits
from qbench.run.here import Here, Task, locked
from qbench.run.interrupts import Interrupts
from qbench.run.job import Job
from qbench.run.processes import Child

CHUNK_BYTES = 16 * 2**20  # bytes of a file that travel at once
# Removes a folder once the process that started it is gone, however it went: what it reads from is
# closed then. Neither a child of that process nor in its group, or it would be ended with it. What
# the run's own process still writes while it ends is removed too.
_CLEANER = (
    "import os, shutil, sys, time\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid(); os.chdir('/'); sys.stdin.buffer.read()\n"
    "gone = 0\n"
    "while gone < 3:\n"
    "    gone = 0 if os.path.exists(sys.argv[1]) else gone + 1\n"
    "    shutil.rmtree(sys.argv[1], ignore_errors=True); time.sleep(0.3)\n"
)


@dataclass(frozen=True)
class Heard:
    """What a run's process said, in order."""

    events: tuple[Event, ...]


@dataclass(frozen=True)
class Noted:
    """A line for the user."""

    text: str


@dataclass(frozen=True)
class Chunk:
    """The next bytes of a file of the run's folder."""

    name: str
    data: bytes
    last: bool


@dataclass(frozen=True)
class FilesAt:
    """Where the run's files lie, for a sweep that can take them from there."""

    folder: str


@dataclass(frozen=True)
class Done:
    """The run is over: its record, or none of a part that was made."""

    record: Record | None = None
    failed: str = ""  # why a part was not made


Message = Heard | Noted | Chunk | FilesAt | Done
Inbox = queue.SimpleQueue[Heard | Noted | Done | BaseException]


class _Listener:
    """Puts what it hears where the sweep will read it."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def event(self, recipe: Recipe, event: Event) -> None:
        self._inbox.put(Heard((event,)))

    def note(self, text: str) -> None:
        self._inbox.put(Noted(text))


class Node:
    """What Ray starts on a node: made once a seat, asked one thing at a time."""

    def __init__(self, unset: tuple[str, ...], current: Path) -> None:
        """unset: variables that Ray has set and the sweep has not, so runs shall not have them.

        current: the sweep's current folder, which what a recipe names may be relative to.
        """
        with contextlib.suppress(OSError):  # then nothing of it lies there
            os.chdir(current)
        for name in unset:
            os.environ.pop(name, None)
        self._scratch = processes.prepare()
        _clean_up_after_this_process(self._scratch)
        self._inbox: Inbox = queue.SimpleQueue()
        self._listener = _Listener(self._inbox)
        self._interrupts = Interrupts()
        self._here = Here(self._listener, self._interrupts, self._scratch)

    def answers(self) -> bool:
        return True

    def environment(self, device: str) -> Environment:
        return self._here.environment(device)

    def peak(self, device: str) -> float:
        return self._here.peak(device)

    def mark(self, secret: str) -> str:
        """A file with this in it, where runs happen: whoever can read it can take files there."""
        path = self._scratch / "mark"
        path.write_text(secret)
        return str(path)

    # Folders of the sweep's machine that a run reads ---------------------------------------------

    def reads(self, key: str, folder: Path, files: dict[str, tuple[int, int]]) -> bool:
        """Whether these files are here: brought before under this key, or in place.

        files: name -> size and time of change. The same file system may be mounted everywhere.
        """
        return self._brought(key).is_dir() or _seen(folder, files)

    def receive(self, key: str, name: str, data: bytes) -> None:
        """The next bytes of a file; the folder is there once an empty name ends it."""
        new = self._brought(key).with_suffix(".new")
        if not name:
            new.mkdir(parents=True, exist_ok=True)
            new.rename(self._brought(key))
            return
        path = new / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)

    def _brought(self, key: str) -> Path:
        return self._scratch / "brought" / key

    def _local(self, key: str, folder: Path) -> Path:
        return self._brought(key) if self._brought(key).is_dir() else folder

    # Runs ----------------------------------------------------------------------------------------

    def run(self, task: Task, made: str = "", near: bool = False) -> Iterator[Message]:
        """Run; what of it others have made was brought under that key.

        near: the sweep takes the files from here by itself.
        """
        work = self._work()
        if task.reference:
            folder, record = task.reference
            task = replace(task, reference=(self._local(record.run, folder), record))
        if task.made:
            task = replace(task, made=self._local(made, task.made))
        yield from self._followed(lambda: Done(self._here.run(task, work)), work, near)

    def part(self, task: Task, number: int, of: int, near: bool = False) -> Iterator[Message]:
        """Make a part of a run's videos."""
        work = self._work()

        def make() -> Done:
            (device,) = locks.of_devices(task.draft.environment.device)
            with locked(device, task.draft.recipe, self._listener, shared=True):
                return self._made(task, (number, of), work)

        yield from self._followed(make, work / OUTPUTS, near)

    def _work(self) -> Path:
        work = self._scratch / "run"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        return work

    def _made(self, task: Task, part: tuple[int, int], work: Path) -> Done:
        recipe = task.draft.recipe
        cache = work / execution.CACHE
        job = Job(draft=task.draft, folder=work, cache=cache, prompts=task.prompts, part=part)
        limits = Limits(recipe, specs.find(recipe.model).local)
        child = Child(worker.make_part, job.model_dump_json(), work / folders.LOG)
        ended, code = "", None
        try:
            for event in child.events(limits.deadline):
                if isinstance(event, StageEntered):
                    limits.enter(event.stage)
                elif isinstance(event, RunEnded):
                    ended = event.status
                self._listener.event(recipe, event)
            if not ended:
                code = child.code()
        except TimeoutError:
            return Done(failed=limits.reason())
        finally:
            child.end()
        if ended:
            return Done()
        # What it said last is why it ended, unless a signal ended it.
        why = execution.how_it_ended(code) if code and code < 0 else _last_line(work)
        return Done(failed=f"stage {limits.stage}: {why}")

    def _followed(self, act: Callable[[], Done], folder: Path, near: bool) -> Iterator[Message]:
        """What is heard while it acts, then what it left in the folder, then what came of it."""

        def acting() -> None:
            try:
                self._inbox.put(act())
            except BaseException as error:  # raised again below, in the thread that Ray listens to
                self._inbox.put(error)

        threading.Thread(target=acting, daemon=True, name="run").start()
        while True:
            message = self._inbox.get()
            events: list[Event] = []
            while isinstance(message, Heard):  # all that has come by now, in one message
                events += message.events
                if self._inbox.empty():
                    break
                message = self._inbox.get()
            if events:
                yield Heard(tuple(events))
            if isinstance(message, Noted):
                yield message
            elif isinstance(message, BaseException):
                raise message
            elif isinstance(message, Done):
                if near and not message.failed:
                    yield FilesAt(str(folder))  # what is not taken is removed before the next run
                else:
                    if not message.failed:
                        yield from _chunks(folder)
                    shutil.rmtree(folder, ignore_errors=True)
                yield message
                return
            elif not isinstance(message, Heard):
                assert_never(message)


@functools.cache  # which holds what it gives: where that goes, the folder does
def _clean_up_after_this_process(folder: Path) -> subprocess.Popen[bytes]:
    """Removes the folder once its end of the pipe closes, as it does with this process."""
    command = [sys.executable, "-I", "-S", "-c", _CLEANER, str(folder)]
    cleaner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    cleaner.wait()  # what remains is its child
    return cleaner


def _seen(folder: Path, files: dict[str, tuple[int, int]]) -> bool:
    try:
        return all(_stat(folder / name) == there for name, there in files.items())
    except OSError:
        return False


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def listed(folder: Path, patterns: tuple[str, ...] = ("**/*",)) -> dict[str, tuple[int, int]]:
    """Files of a folder that match: name -> size and time of change."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): _stat(path) for path in sorted(paths)}


def chunks(folder: Path, names: Iterator[str]) -> Iterator[Chunk]:
    """These files of a folder, a chunk at a time."""
    for name in names:
        with (folder / name).open("rb") as file:
            data = file.read(CHUNK_BYTES)
            while True:
                more = file.read(CHUNK_BYTES)
                yield Chunk(name, data, last=not more)
                if not more:
                    break
                data = more


def left_in(folder: Path) -> list[str]:
    """Files of a run's folder, but for its record, which is written last."""
    return [name for name in listed(folder) if name != store.FILE]


def _chunks(folder: Path) -> Iterator[Chunk]:
    return chunks(folder, iter(left_in(folder)))


def _last_line(work: Path) -> str:
    try:
        lines = (work / folders.LOG).read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "its process died"
