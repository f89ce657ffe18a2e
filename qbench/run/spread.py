"""A sweep spread over a Ray cluster: every run as without it, on whichever node is free.

The records, their folders and their order of dependence are those of `sweep`; what runs next is
`order`'s to say, and `cluster` has the places. A run whose node or process is lost is run again,
once. What arrives is written by this machine alone, and is in its place once its record is.
"""

from __future__ import annotations

import itertools
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from qbench.errors import InputError, one_line
from qbench.meters.environment import Environment
from qbench.pipelines import specs
from qbench.recipe.schema import Recipe, digest
from qbench.results.record import Record, Status
from qbench.run import execution, folders, recorder
from qbench.run.cluster import THREADS, Asked, Cluster, Lost, Machine, NoSeat, Seat
from qbench.run.events import Event, Placed, StageEntered
from qbench.run.execution import Stopped
from qbench.run.here import Finished, Task
from qbench.run.interrupts import Interrupts
from qbench.run.order import Load, Order, Site, Start
from qbench.run.plan import Planned
from qbench.run.sweep import Sweep, Swept, Watcher, ended_well

POLL_S = 0.2
LOOK_EVERY_S = 3.0  # at which nodes there are
PATIENCE_S = 90.0  # for a node that can do what is left, where none is there
FEWEST = 8  # videos that are worth a part of their own
BUILT = 4  # times as many where each part compiles or calibrates first
JUDGED = 0.1  # of the time that a video takes to make: to compute its figures


def devices(recipe: Recipe) -> int:
    """Devices that a run of this recipe takes at once, all of one node: one a rank."""
    parallel = recipe.variant.parallel
    return parallel.ranks if parallel else 1


def run(
    planned: list[Planned],
    out: Path,
    watcher: Watcher,
    asked: Asked,
    fresh: bool = False,
    noise_floors: bool = False,
) -> Swept:
    """`sweep.run` on a cluster. Raises InputError where there is none, or none that will do."""
    with Interrupts():  # Ray sets handlers of its own as it starts
        try:
            cluster = Cluster(asked)
        except KeyboardInterrupt:
            return Swept([], interrupted=True)
        with Interrupts() as interrupts:
            # A signal is this thread's alone to hear; those of the runs hold none back.
            sweep = Sweep(list(planned), out, watcher, fresh, noise_floors, Interrupts())
            spread = _Spread(sweep, cluster, watcher, fresh)
            return ended_well(sweep, interrupts, spread.all, spread.close)


@dataclass(frozen=True)
class _Joined:
    """A node's devices can be used, or why they cannot."""

    site: Site
    environment: Environment


@dataclass(frozen=True)
class _Refused:
    machine: Machine
    why: str


@dataclass(frozen=True)
class _Ended:
    item: Planned
    finished: Finished


@dataclass(frozen=True)
class _Again:
    """A seat is gone, and the run, or the part of one, is to start once more."""

    name: str
    why: str
    begun: bool = True  # false where there was no seat to begin with


@dataclass(frozen=True)
class _PartEnded:
    """A part of a run has ended; why its videos were not made, if so."""

    name: str
    why: str = ""


@dataclass(frozen=True)
class _Failed:
    error: BaseException


_Message = _Joined | _Refused | _Ended | _Again | _PartEnded | _Failed


@dataclass
class _Node:
    """What the sweep knows of a site."""

    machine: Machine
    device: str
    environment: Environment
    idle: list[Seat] = field(default_factory=list)  # seats that wait for their next run

    def amount(self, units: int) -> int:
        """What Ray is asked for: GPUs, or CPUs for the threads of a run."""
        if self.device == "cuda":
            return units
        return min(units * self.environment.threads, self.machine.cpus)


class _Spread:
    """The runs of a sweep on a cluster. One thread a run; this object's methods decide."""

    def __init__(self, sweep: Sweep, cluster: Cluster, watcher: Watcher, fresh: bool) -> None:
        self._sweep, self._cluster, self.watcher, self._fresh = sweep, cluster, watcher, fresh
        self._order = Order()
        self._nodes: dict[str, _Node] = {}
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._items = {item.recipe.name: item for item in sweep.queue}
        self._again: dict[str, str] = {}  # runs that were lost once, and why
        self._asked: set[str] = set()  # sites that were, whatever came of it
        self._asking = 0
        self._refusals: list[str] = []
        self._places: dict[str, _There] = {}  # of runs that have begun
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # of the seats that wait
        self._position = itertools.count(1)
        self._looked = self._useful = 0.0
        self._device = ""
        self.stopping = False

    def all(self) -> bool:
        """Run everything. Whether the user interrupted it; an interrupt is raised."""
        self._cluster.check_kinds()
        self._look()
        self._check_devices()
        while self._asking:
            self._hear()
        if not self._nodes:
            raise InputError(f"--ray: no node can be used: {self._refusals[0]}")
        self._sweep.out.mkdir(parents=True, exist_ok=True)
        self._add(self._sweep.queue)
        self._stay_with_kinds()
        while self._order.left():
            self._look()
            while start := self._order.start(time.monotonic()):
                self._begin(start)
            self._hear()
            self._give_up_on_what_no_node_can_do()
        return False

    def close(self) -> None:
        """End whatever runs; its record says that it was interrupted."""
        self.stopping = True
        self._cluster.closing()
        for place in self._places.values():
            place.give(None)
        for thread in self._threads:
            thread.join(timeout=10)
        self._cluster.close()

    # Nodes ----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See which nodes have come and which are gone."""
        now = time.monotonic()
        if self._looked and now < self._looked + LOOK_EVERY_S:
            return
        self._looked = now
        machines = self._cluster.machines()
        self._device = self._device or self._auto(machines)
        for site in [site for site, node in self._nodes.items() if node.machine.id not in machines]:
            gone = self._nodes.pop(site)
            self._order.leave(site)
            self.watcher.note(f"{gone.machine.name} is gone")
            self._end_idle(gone)
        for machine in machines.values():
            for device in self._devices():
                site = f"{machine.id}/{device}"
                total = machine.gpus if device == "cuda" else machine.cpus
                if total and site not in self._asked:
                    self._asked.add(site)
                    self._asking += 1
                    self._in_thread(partial(self._probe, machine, device))

    def _auto(self, machines: dict[str, Machine]) -> str:
        return "cuda" if any(machine.gpus for machine in machines.values()) else "cpu"

    def _devices(self) -> set[str]:
        return {self._needed(item.recipe) for item in self._items.values()}

    def _needed(self, recipe: Recipe) -> str:
        return self._device if recipe.device == "auto" else recipe.device

    def _probe(self, machine: Machine, device: str) -> _Message:
        """Take a seat and ask for the environment of runs there. The seat then waits for a run."""
        said = os.environ.get(THREADS, "")
        units = 1 if device == "cuda" else min(int(said) if said.isdigit() else 10**6, machine.cpus)
        try:
            seat = self._cluster.seat(machine, device, units, self._waits)
            environment = seat.environment(device)
        except (Lost, InputError) as error:
            return _Refused(machine, str(error))
        name = f"{machine.id}/{device}"
        kind = f"{environment.machine()} {digest([environment.hardware(), environment.software()])}"
        node = _Node(machine, device, environment)
        if units == node.amount(1):
            node.idle.append(seat)
        else:
            seat.close()
        with self._lock:
            self._nodes[name] = node
        total = machine.gpus if device == "cuda" else max(1, machine.cpus // environment.threads)
        return _Joined(Site(name, kind, device, total, total), environment)

    def _waits(self, name: str) -> None:
        self.watcher.note(f"waiting for devices of {name}, which others hold")

    def _stay_with_kinds(self) -> None:
        """A ranking that has finished runs of one kind of device goes on there."""
        if self._fresh:
            return
        for item in self._items.values():
            if item.recipe.is_reference:
                for site in self._order.sites.values():
                    if self._sweep.complete(item, self._nodes[site.name].environment):
                        self._order.prefer(item.recipe.name, site.kind)
                        break

    def _check_devices(self) -> None:
        """Raise InputError for a run that no node is large enough for."""
        machines = self._cluster.machines().values()
        most = {
            "cuda": max((machine.gpus for machine in machines), default=0),
            "cpu": max((machine.cpus for machine in machines), default=0),
        }
        for item in self._items.values():
            device = self._needed(item.recipe)
            units = devices(item.recipe)
            if units > most[device]:
                what = {"cuda": "GPU", "cpu": "CPU"}[device] + ("s of one node" * (units > 1))
                have = f"the most is {most[device]}" if most[device] else "no node has one"
                raise InputError(f"--ray: {item.recipe.name} needs {units} {what}, and {have}")

    def _give_up_on_what_no_node_can_do(self) -> None:
        now = time.monotonic()
        lacking = self._order.lacking()
        if not lacking or self._asking:
            self._useful = now
        elif now > self._useful + PATIENCE_S:
            names = ", ".join(sorted(load.name for load in lacking))
            raise Stopped(f"no node is left that can run {names}; run again to go on")

    # Runs -----------------------------------------------------------------------------------------

    def _add(self, items: list[Planned]) -> None:
        for item in items:
            self._items[item.recipe.name] = item
        self._order.add(*(_load(item, self._needed(item.recipe)) for item in items))

    def _hear(self) -> None:
        """What the threads say, for a moment."""
        try:
            message = self._inbox.get(timeout=POLL_S)
        except queue.Empty:
            return
        if isinstance(message, (_Joined, _Refused)):
            self._asking -= 1
        if isinstance(message, _Joined):
            if message.site.name in self._nodes:  # else it has gone again
                self._order.join(message.site)
        elif isinstance(message, _Refused):
            self._refusals.append(f"{message.machine.name}: {one_line(message.why)}")
            self.watcher.note(f"not used: {self._refusals[-1]}")
        elif isinstance(message, _PartEnded):
            if message.why:
                text = f"{message.name}: {message.why}; the run makes its videos itself"
                self.watcher.note(text)
            self._order.ended(message.name, time.monotonic(), not message.why)
        elif isinstance(message, _Again):
            self._looked = 0.0  # its node may be gone, and is no place to try again
            if message.begun:
                self._again[message.name] = message.why
            self.watcher.note(f"{message.name}: {message.why}; run again")
            if place := self._places.get(message.name):
                place.begun = False
            self._order.again(message.name)
        elif isinstance(message, _Ended):
            self._ended(message.item, message.finished[1])
        elif isinstance(message, _Failed):
            raise message.error

    def _ended(self, item: Planned, record: Record) -> None:
        name = item.recipe.name
        measured = record.status == "ok" and self._places.pop(name).task is not None
        self._order.ended(name, time.monotonic(), measured)
        more = self._sweep.floors(item, record)
        self._sweep.queue += more
        self._add(more)

    def _begin(self, start: Start) -> None:
        load = start.load
        name = load.whole or load.name
        if name not in self._places:
            self._places[name] = _There(self, name, self._nodes[start.site].environment)
        place = self._places[name]
        if load.part is None:
            place.give(start)
        if not place.begun:
            place.begun = True
            item = self._items[name]
            position = 0 if name in self._again else next(self._position)
            self.watcher.begin(item.recipe, position, len(self._sweep.queue))
            self._in_thread(partial(self._run, item, place))
        if load.part is not None:
            label = self._items[name].recipe.model_copy(update={"name": load.name})
            self._in_thread(partial(self._part, place, start, label))

    def _in_thread(self, act: Callable[[], _Message | None]) -> None:
        def acting() -> None:
            try:
                message = act()
            except BaseException as error:  # raised in the thread that decides
                message = _Failed(error)
            if message is not None:
                self._inbox.put(message)

        thread = threading.Thread(target=acting, daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()

    def _run(self, item: Planned, place: _There) -> None:
        try:
            self._inbox.put(_Ended(item, self._sweep.one(item, place)))
        except Lost as lost:
            self.watcher.dropped(item.recipe)
            if not self.stopping:
                begun = not isinstance(lost, NoSeat)
                self._inbox.put(_Again(item.recipe.name, str(lost), begun))
        finally:
            place.over()  # after it is said what came of it: parts that wait end after the run

    def _part(self, place: _There, start: Start, label: Recipe) -> _Message:
        """Make a part of a run's videos. What comes to nothing twice is left to the run itself."""
        load = start.load
        task = place.wanted()
        if task is None:  # the run was complete
            return _PartEnded(load.name)
        assert load.part is not None
        self.watcher.begin(label, 0, 0)
        heard = _Heard(self.watcher, label)
        seat: Seat | None = None
        try:
            seat = self.seat(start.site, load.units)
            heard.event(label, Placed(seat.machine.name))
            why = seat.part(task, *load.part, place.made, heard)
            self.give_back(start.site, seat)
            return _PartEnded(load.name, why)
        except (Lost, OSError) as error:
            if seat is not None:
                seat.close()
            if isinstance(error, NoSeat):
                return _Again(load.name, str(error), begun=False)
            if isinstance(error, Lost) and load.name not in self._again:
                return _Again(load.name, str(error))
            return _PartEnded(load.name, str(error))
        finally:
            self.watcher.dropped(label)

    # Seats ----------------------------------------------------------------------------------------

    def seat(self, site: str, units: int) -> Seat:
        """One that waits there, or a new one. Raises Lost."""
        with self._lock:
            node = self._nodes.get(site)
            if node is None:
                raise NoSeat("its node is gone")
            amount = node.amount(units)
            fitting = [seat for seat in node.idle if seat.units == amount]
            if fitting:
                node.idle.remove(fitting[0])
                return fitting[0]
            others, node.idle = (node.idle, []) if node.idle and units > 1 else ([], node.idle)
            if node.idle and node.idle[0].units > amount:
                others, node.idle = node.idle, []
        for seat in others:
            seat.close()
        return self._cluster.seat(node.machine, node.device, amount, self._waits)

    def give_back(self, site: str, seat: Seat) -> None:
        with self._lock:
            node = self._nodes.get(site)
            if node is not None and not seat.closed and not self.stopping:
                node.idle.append(seat)
                return
        seat.close()

    def lost_before(self, name: str) -> str | None:
        """Why this run is run again, if it is."""
        return self._again.get(name)

    def _end_idle(self, node: _Node) -> None:
        with self._lock:
            idle, node.idle = node.idle, []
        for seat in idle:
            seat.close()


class _There:
    """A place for one run: a site that it is given once its parts are made, if it has any."""

    def __init__(self, spread: _Spread, name: str, environment: Environment) -> None:
        self._spread, self._name, self._environment = spread, name, environment
        self._starts: queue.SimpleQueue[Start | None] = queue.SimpleQueue()
        self._known = threading.Event()
        self.begun = False
        self.task: Task | None = None
        self.made = Path()  # where the parts leave their videos

    def environment(self, device: str) -> Environment:
        return self._environment

    def give(self, start: Start | None) -> None:
        """Its site; none where there will be none."""
        self._starts.put(start)

    def wanted(self) -> Task | None:
        """What parts are to be made of, once it is known; None where it is complete already."""
        self._known.wait()
        return self.task

    def over(self) -> None:
        """The run has ended: parts of it that wait for what they are to make wait for nothing."""
        self._known.set()

    def run(self, task: Task, work: Path) -> Record:
        """Raises Lost where it is to be run once more."""
        heard = _Heard(self._spread.watcher)
        execution.keep(task.draft, work)
        if (why := self._spread.lost_before(self._name)) is not None:
            draft = recorder.changed(task.draft, notes=[*task.draft.notes, f"run again: {why}"])
            task = replace(task, draft=draft)
        if self.task is None:  # else it is run again, and its parts are there
            self.made = folders.parts_folder(work)
            shutil.rmtree(self.made, ignore_errors=True)
        self.task = task
        self._known.set()
        try:
            record = self._whole(task, work, heard)
        except Lost as lost:
            record = self._lost(task, work, heard, lost)
        except OSError as error:
            record = _not_kept(task, work, heard, error)
        shutil.rmtree(self.made, ignore_errors=True)
        return record

    def _whole(self, task: Task, work: Path, heard: _Heard) -> Record:
        start = self._starts.get()
        if start is None:
            raise Lost("the sweep ends")
        seat = self._spread.seat(start.site, start.load.units)
        heard.event(task.draft.recipe, Placed(seat.machine.name))
        made = self.made if self.made.is_dir() else None
        try:
            record = seat.run(task, work, heard, made)
        except BaseException:
            seat.close()
            raise
        self._spread.give_back(start.site, seat)
        return record

    def _lost(self, task: Task, work: Path, heard: _Heard, lost: Lost) -> Record:
        if self._spread.stopping:
            return _ended(task, work, "interrupted", "stopped by the user", heard.stage)
        if isinstance(lost, NoSeat) or self._spread.lost_before(self._name) is None:
            raise lost
        status: Status = "oom" if "memory" in str(lost).lower() else "crashed"
        return _ended(task, work, status, f"lost twice: {lost}", heard.stage)


class _Heard:
    """Passes on what a run says, and knows in which stage it is."""

    def __init__(self, watcher: Watcher, label: Recipe | None = None) -> None:
        self._watcher, self._label = watcher, label
        self.stage = "start"

    def event(self, recipe: Recipe, event: Event) -> None:
        if isinstance(event, StageEntered):
            self.stage = event.stage
        self._watcher.event(self._label or recipe, event)

    def note(self, text: str) -> None:
        self._watcher.note(text)


def _ended(task: Task, work: Path, status: Status, reason: str, stage: str) -> Record:
    """The record of a run that was ended from here, in place of whatever of it has arrived."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    record = recorder.ended(task.draft, status, reason, stage)
    execution.keep(record, work)
    return record


def _not_kept(task: Task, work: Path, heard: _Heard, error: OSError) -> Record:
    """A run whose results this machine cannot keep has failed, as it has where it runs alone."""
    why = f"{error.filename or work}: {error.strerror or error}"
    return _ended(task, work, "failed", f"its results could not be kept: {why}", heard.stage)


def _load(item: Planned, device: str) -> Load:
    """What a run takes, in the work of a million pixels through a denoise step."""
    recipe, measure, prompts = item.recipe, item.recipe.measure, len(item.prompts.prompts)
    shape = specs.video_shape(specs.find(recipe.model), recipe.generation)
    pixels = shape[0] * shape[1] * shape[2] if shape else 1e6
    video = pixels / 1e6 * (recipe.generation.steps or 50) * recipe.variant.step_share
    if measure.unit == "step":
        video /= recipe.generation.steps or 50
    compared = measure.unit == "video" and recipe.weights == "pretrained"
    turns = 2 if measure.interleave and measure.timing and not recipe.is_reference else 1
    judged = JUDGED * prompts if compared else 0.0
    rest = max(0, prompts - measure.repeats) if compared else 0
    variant = recipe.variant
    calibrated = variant.quantize is not None and variant.quantize.calibration is not None
    built = BUILT if variant.compile or calibrated else 1
    split = not variant.left_python and variant.parallel is None
    return Load(
        name=recipe.name,
        group=recipe.name if recipe.is_reference else recipe.reference or recipe.name,
        reference=recipe.is_reference,
        device=device,
        units=devices(recipe),
        fixed=video * (1 + measure.warmup + turns * measure.repeats + judged + (not split) * rest),
        shared=video * rest * split,
        least=video * built * max(FEWEST, recipe.quality.batch),
    )
