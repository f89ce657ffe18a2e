"""A place for one run on a cluster: what happens at the head while the run is on a node."""

from __future__ import annotations

import queue
import shutil
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from qbench.meters.environment import Environment
from qbench.recipe.schema import Recipe
from qbench.results.record import Record, Status
from qbench.run import execution, folders, recorder
from qbench.run.cluster import Lost, NoSeat, Seat
from qbench.run.events import Event, Placed, StageEntered, StepsDone
from qbench.run.here import Task
from qbench.run.messages import Again, Message, PartEnded, Working
from qbench.run.order import Start
from qbench.run.plan import Planned
from qbench.run.sites import Sites
from qbench.run.sweep import Sweep, Watcher


class Head(Protocol):
    """The sweep that runs are spread by."""

    watcher: Watcher
    stopping: bool  # the sweep ends

    def tell(self, message: Message) -> None:
        """Something that the order of the sweep depends on."""
        ...

    def lost_before(self, name: str) -> str | None:
        """Why this run, or part of one, is run again, if it is."""
        ...


class There:
    """A place for one run: a site that it is given once its parts are made, if it has any."""

    def __init__(self, head: Head, sites: Sites, name: str, environment: Environment) -> None:
        self._head, self._sites, self._name, self._environment = head, sites, name, environment
        self._starts: queue.SimpleQueue[Start | None] = queue.SimpleQueue()
        self._known = threading.Event()
        self.begun = False
        self.ahead = False  # parts of it began before its reference had ended: they end before it
        self.ran = False  # rather than being complete
        self._task: Task | None = None
        self._made: Path | None = None  # where the parts leave their videos
        self._held = ExitStack()  # of the run's folder, until the run itself takes the lock

    def environment(self, device: str) -> Environment:
        return self._environment

    def give(self, start: Start | None) -> None:
        """Its site; none where there will be none."""
        self._starts.put(start)

    def make_ahead(self, sweep: Sweep, item: Planned) -> None:
        """Find what parts are to make before the run can begin."""
        try:
            if found := sweep.ahead(item, self._environment, self._held):
                self._task, self._made = found
        finally:
            self._known.set()

    def begin(self) -> None:
        """The run itself begins."""
        self._held.close()

    def over(self) -> None:
        """The run has ended: parts of it that wait for what they are to make wait for nothing."""
        self._known.set()

    def run(self, task: Task, work: Path) -> Record:
        """Raises Lost where it is to be run once more."""
        relay = Relay(self._head, self._name)
        execution.keep(task.draft, work)
        if (why := self._head.lost_before(self._name)) is not None:
            draft = recorder.changed(task.draft, notes=[*task.draft.notes, f"run again: {why}"])
            task = replace(task, draft=draft)
        if self._made is None:  # else it is run again, or its parts came first: they are there
            self._made = folders.parts_folder(work)
            shutil.rmtree(self._made, ignore_errors=True)
        self._task, self.ran = task, True
        self._known.set()
        try:
            record = self._whole(task, work, relay)
        except Lost as lost:
            record = self._lost(task, work, relay, lost)
        except OSError as error:
            record = _not_kept(task, work, relay.stage, error)
        self.clear()
        return record

    def clear(self) -> None:
        """Leave nothing of what its parts have made."""
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)
            self._made = None
        self._held.close()

    def part(self, start: Start, label: Recipe) -> Message:
        """Make a part of its videos. What comes to nothing twice is left to the run itself."""
        head, name = self._head, start.load.name
        self._known.wait()
        task, made = self._task, self._made
        if task is None or made is None:  # the run was complete
            return PartEnded(name, needed=False)
        assert start.load.part is not None
        head.watcher.begin(label, 0, 0)
        relay = Relay(head, name, label)
        seat: Seat | None = None
        try:
            seat = self._sites.seat(start.site, start.load.units)
            relay.event(label, Placed(seat.machine.name))
            why = seat.part(task, *start.load.part, made, relay)
            self._sites.give_back(start.site, seat)
            return PartEnded(name, why)
        except (Lost, OSError) as error:
            if seat is not None:
                seat.close()
            if isinstance(error, NoSeat):
                return Again(name, str(error), begun=False)
            if isinstance(error, Lost) and head.lost_before(name) is None:
                return Again(name, str(error))
            return PartEnded(name, str(error))
        finally:
            if self._made is None:  # all has ended meanwhile
                shutil.rmtree(made, ignore_errors=True)
            head.watcher.dropped(label)

    def _whole(self, task: Task, work: Path, relay: Relay) -> Record:
        start = self._starts.get()
        if start is None:
            raise Lost("the sweep ends")
        seat = self._sites.seat(start.site, start.load.units)
        relay.event(task.draft.recipe, Placed(seat.machine.name))
        made = self._made if self._made and self._made.is_dir() else None
        try:
            record = seat.run(task, work, relay, made)
        except BaseException:
            seat.close()
            raise
        self._sites.give_back(start.site, seat)
        return record

    def _lost(self, task: Task, work: Path, relay: Relay, lost: Lost) -> Record:
        if self._head.stopping:
            return _ended(task, work, "interrupted", "stopped by the user", relay.stage)
        if isinstance(lost, NoSeat) or self._head.lost_before(self._name) is None:
            raise lost
        status: Status = "oom" if "memory" in str(lost).lower() else "crashed"
        return _ended(task, work, status, f"lost twice: {lost}", relay.stage)


class Relay:
    """Passes on what a run, or a part of one, says, and knows in which stage it is."""

    def __init__(self, head: Head, name: str, label: Recipe | None = None) -> None:
        self._head, self._name, self._label = head, name, label
        self._heard: float | None = None  # when its process first said at what it is
        self._working = False
        self.stage = "start"

    def event(self, recipe: Recipe, event: Event) -> None:
        if isinstance(event, StageEntered):
            self._heard = self._heard or time.monotonic()
            self.stage = event.stage
        elif isinstance(event, StepsDone) and not self._working:
            self._working = True  # with all that a first step loads, builds or compiles behind it
            took = time.monotonic() - self._heard if self._heard else None
            self._head.tell(Working(self._name, took))
        self._head.watcher.event(self._label or recipe, event)

    def note(self, text: str) -> None:
        self._head.watcher.note(text)


def _ended(task: Task, work: Path, status: Status, reason: str, stage: str) -> Record:
    """The record of a run that was ended from here, in place of whatever of it has arrived."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    record = recorder.changed(recorder.ended(task.draft, status, reason, stage), files={})
    execution.keep(record, work)
    return record


def _not_kept(task: Task, work: Path, stage: str, error: OSError) -> Record:
    """A run whose results this machine cannot keep has failed, as it has where it runs alone."""
    # Of a file that did not get here, the place that it was to have, not where a node has it.
    where = error.filename2 or error.filename or work
    why = f"{where}: {error.strerror or error}"
    return _ended(task, work, "failed", f"its results could not be kept: {why}", stage)
