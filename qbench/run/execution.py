"""One run, seen from the sweep: its process from start to end, and a record whatever comes."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qbench.recipe.schema import Recipe
from qbench.results import store
from qbench.results.record import Record, Status
from qbench.run import crew, folders, recorder, worker
from qbench.run.crew import Crew, Lost
from qbench.run.events import Event, FirstCallDone, StageEntered, TurnAsked
from qbench.run.interrupts import Interrupts
from qbench.run.job import Job
from qbench.run.processes import Child, signal_name
from qbench.run.reference_server import ReferenceServer

CACHE = "compiler-cache"  # in the run's folder, for as long as it runs


class Listener(Protocol):
    """Who hears of a run's events; see `progress`."""

    def event(self, recipe: Recipe, event: Event) -> None: ...


class Stopped(Exception):
    """The sweep cannot go on, and why, in one line."""


@dataclass
class Limits:
    """When a run has taken too long: as a whole, and in loading a model from a folder."""

    recipe: Recipe
    local: bool
    stage: str = "start"
    _began: float = field(default_factory=time.monotonic)
    _entered: float = field(default_factory=time.monotonic)

    def enter(self, stage: str) -> None:
        self.stage, self._entered = stage, time.monotonic()

    def deadline(self) -> float:
        """Of time.monotonic."""
        whole = self._began + self.recipe.measure.timeout_s
        return min(whole, self._entered + self._loading()) if self._bounded() else whole

    def reason(self) -> str:
        """What was exceeded, once something was."""
        measure = self.recipe.measure
        if time.monotonic() >= self._began + measure.timeout_s:
            return f"took longer than measure.timeout_s = {measure.timeout_s:g} s"
        return f"loading took longer than measure.load_timeout_s = {measure.load_timeout_s:g} s"

    def _bounded(self) -> bool:
        return self.local and self.stage == "load"

    def _loading(self) -> float:
        return self.recipe.measure.load_timeout_s


def execute(
    job: Job,
    limits: Limits,
    listener: Listener,
    server: ReferenceServer | None,
    interrupts: Interrupts,
) -> Record:
    """The job's record, or one that says how its process died. Raises Stopped on a full disk.

    Where the user interrupts the run, its record says so and KeyboardInterrupt is not raised.
    """
    draft, folder = job.draft, job.folder
    child: Child | Crew | None = None
    try:
        keep(draft, folder)
        with interrupts.held():  # a process that was started is a process that is ended
            child = _started(job)
        for event in child.events(limits.deadline):
            if isinstance(event, StageEntered):
                limits.enter(event.stage)
            elif isinstance(event, TurnAsked):
                seconds = server.turn(event.number, limits.deadline) if server else math.nan
                child.answer(seconds)
            listener.event(draft.recipe, event)
        if isinstance(child, Crew) and child.lost:
            with interrupts.held():
                child.end()
                return _without_rank(draft, folder, child.lost, limits.stage)
        code = child.wait()
    except TimeoutError:
        with interrupts.held():
            assert child is not None
            child.show_where()
            child.end(lambda: interrupts.hurry)
            return _ended(draft, folder, "timeout", limits.reason(), limits.stage)
    except KeyboardInterrupt:
        with interrupts.held():
            if child is not None:
                child.end(lambda: interrupts.hurry)
            return _ended(draft, folder, "interrupted", "stopped by the user", limits.stage)
    except ConnectionError:  # it died while the reference took its turn
        assert child is not None
        code = child.wait()
    with interrupts.held():
        try:
            record = store.read(folder / store.FILE)
        except store.Unreadable as error:
            return _ended(draft, folder, "crashed", str(error), limits.stage)
        if record.status != "running":
            return record
        how = how_it_ended(code)
        if job.ranks > 1:
            how = f"rank 0 of {job.ranks}: {how}"
        return _ended(draft, folder, "crashed", how, limits.stage)


def _started(job: Job) -> Child | Crew:
    """The run's process, or those of its ranks."""
    if job.ranks > 1:
        return Crew(job)
    return Child(worker.run, job.model_dump_json(), job.folder / folders.LOG)


def _without_rank(draft: Record, folder: Path, lost: Lost, stage: str) -> Record:
    """The record of a run that a rank ended, unless the first rank had found a better reason."""
    with contextlib.suppress(store.Unreadable):
        record = store.read(folder / store.FILE)
        if record.status not in ("running", "failed"):
            return record
    return _ended(draft, folder, lost.status, lost.reason, stage)


def warm_first_call(
    job: Job, limits: Limits, listener: Listener, interrupts: Interrupts
) -> float | None:
    """Seconds of the first call in another process that finds the compilers' caches filled.

    None where the run's own first call left nothing in them, or where the process does not finish.
    """
    assert job.cache is not None
    if not any(job.cache.rglob("*")):
        return None
    folder = job.folder / "warm"
    folder.mkdir(exist_ok=True)
    second = job.model_copy(update={"folder": folder})
    listener.event(job.draft.recipe, StageEntered("warm start"))
    with interrupts.held():
        child = Child(worker.first_call, second.model_dump_json(), folder / folders.LOG)
    try:
        for event in child.events(limits.deadline):
            if isinstance(event, FirstCallDone):
                return event.seconds
    except TimeoutError:
        return None
    finally:
        with interrupts.held():
            child.end(lambda: interrupts.hurry)
            shutil.rmtree(folder, ignore_errors=True)
    return None


def keep(record: Record, folder: Path) -> None:
    """Write the record. Raises Stopped where the disk refuses."""
    try:
        store.write(record, folder)
    except OSError as error:
        raise Stopped(f"{folder}: the record cannot be written: {error.strerror}") from None


def _ended(draft: Record, folder: Path, status: Status, reason: str, stage: str) -> Record:
    record = recorder.ended(draft, status, reason, stage)
    shared = draft.recipe.variant.parallel
    if shared:
        more = crew.logs(folder, shared.ranks)
        record = recorder.changed(record, files={**record.files, **more})
    keep(record, folder)
    return record


def how_it_ended(code: int) -> str:
    """A process that has left no record, by its exit code, negative for a signal."""
    if code >= 0:
        return f"the process ended with exit code {code} and left no record; see its log"
    name = signal_name(-code)
    hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
    return f"the process died of {name}{hint}"
