"""A sweep spread over a Ray cluster: every run as without it, on whichever node is free.

The records, their folders and their order of dependence are those of `sweep`; what runs next is
`order`'s to say, and `sites` has the places. A run whose node or process is lost is run again,
once. What arrives is written by this machine alone, and is in its place once its record is.
"""

from __future__ import annotations

import dataclasses
import itertools
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import assert_never

from qbench.errors import InputError, one_line
from qbench.recipe.schema import Recipe
from qbench.results.record import Record
from qbench.run.cluster import Asked, Cluster, Lost, Machine, NoSeat
from qbench.run.execution import Stopped
from qbench.run.interrupts import Interrupts
from qbench.run.loads import load_of, seats_of
from qbench.run.messages import Again, Ended, Failed, Joined, Message, PartEnded, Refused, Working
from qbench.run.order import Order, Site, Start
from qbench.run.parts import Load
from qbench.run.plan import Planned
from qbench.run.sites import Sites, site_of, units_of
from qbench.run.sweep import Sweep, Swept, Watcher, carry_out
from qbench.run.there import There

POLL_S = 0.2
LOOK_EVERY_S = 3.0  # at which nodes there are
PATIENCE_S = 90.0  # for a node that can do what is left, where none is there
BUSY_S = 30.0  # for a node whose devices others hold, where another is ready


def run(
    planned: list[Planned],
    out: Path,
    watcher: Watcher,
    asked: Asked,
    fresh: bool = False,
    floors_s: float = 0.0,
) -> Swept:
    """`sweep.run` on a cluster. Raises InputError where there is none, or none that will do."""
    with Interrupts():  # Ray sets handlers of its own as it starts
        try:
            cluster = Cluster(asked)
        except KeyboardInterrupt:
            return Swept([], interrupted=True)
        with Interrupts() as interrupts:
            # A signal is this thread's alone to hear; those of the runs hold none back.
            sweep = Sweep(list(planned), out, watcher, fresh, floors_s, Interrupts())
            spread = _Spread(sweep, cluster, watcher, fresh)
            return carry_out(sweep, interrupts, spread.all, spread.close)


class _Spread:
    """The runs of a sweep on a cluster. One thread a run; this object's methods decide."""

    def __init__(self, sweep: Sweep, cluster: Cluster, watcher: Watcher, fresh: bool) -> None:
        self._sweep, self._cluster, self.watcher, self._fresh = sweep, cluster, watcher, fresh
        self._order = Order()
        self._sites = Sites(cluster, self._waits)
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._items = {sweep.key(item.recipe): item for item in sweep.queue}
        self._again: dict[str, str] = {}  # runs that were lost once, and why
        self._asked: set[str] = set()  # sites that were, whatever came of it
        self._asking = 0
        self._useful: int | None = None  # seats that are worth starting before any run is placed
        self._refusals: list[str] = []
        self._places: dict[str, There] = {}  # of runs that have begun
        self._threads: list[threading.Thread] = []
        self._position = itertools.count(1)
        self._looked = 0.0
        self._useless: float | None = None  # since when no node can do what is left
        self._most = {"cuda": 0, "cpu": 0}  # of the largest node
        self._device, self._mixed = "", False
        self.stopping = False

    def all(self) -> bool:
        """Run everything. Whether the user interrupted it; an interrupt is raised."""
        self._cluster.check_kinds()
        self._look()
        self._check_devices()
        began = time.monotonic()
        while self._asking and not (self._sites and time.monotonic() > began + BUSY_S):
            self._hear()
        if not self._sites:
            raise InputError(f"--ray: no node can be used: {self._refusals[0]}")
        self._sweep.out.mkdir(parents=True, exist_ok=True)
        self._add(self._sweep.queue)
        for site in self._order.sites.values():
            self._stay_with_kind(site)
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
        self._sites.close()
        self._cluster.closing()
        for place in self._places.values():
            place.give(None)
        for thread in self._threads:
            thread.join(timeout=10)
        for place in self._places.values():
            place.clear()
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
        if self._useful is None:
            self._useful = sum(map(seats_of, map(self._load, self._sweep.queue)))
        self._mixed = len({machine.kinds for machine in machines.values() if machine.gpus}) > 1
        for site, machine in self._sites.leave(machines.keys()).items():
            self._order.leave(site)
            self.watcher.note(f"{machine.name} is gone")
        for machine in machines.values():
            for device in self._devices():
                site = site_of(machine, device)
                total = machine.gpus if device == "cuda" else machine.cpus
                if total and site not in self._asked:
                    self._asked.add(site)
                    self._asking += 1
                    units = units_of(machine, device)
                    seats = max(1, min(total // units, self._useful))
                    self._useful -= seats
                    join = partial(self._sites.join, machine, device, units, seats, self._mixed)
                    self._in_thread(join)

    def _auto(self, machines: dict[str, Machine]) -> str:
        return "cuda" if any(machine.gpus for machine in machines.values()) else "cpu"

    def _devices(self) -> set[str]:
        return {self._needed(item.recipe) for item in self._items.values()}

    def _needed(self, recipe: Recipe) -> str:
        return self._device if recipe.device == "auto" else recipe.device

    def _waits(self, name: str) -> None:
        self.watcher.note(f"waiting for devices of {name}")

    def _stay_with_kind(self, site: Site) -> None:
        """A ranking that has finished runs of this kind of device goes on there."""
        if self._fresh:
            return
        environment = self._sites.environment(site.name)
        for item in self._items.values():
            if item.recipe.is_reference and self._sweep.complete(item, environment):
                self._order.prefer(self._sweep.key(item.recipe), site.kind)

    def _check_devices(self) -> None:
        """Raise InputError for a run that no node has any device for."""
        machines = self._cluster.machines().values()
        self._most = {
            "cuda": max((machine.gpus for machine in machines), default=0),
            "cpu": max((machine.cpus for machine in machines), default=0),
        }
        for item in self._items.values():
            device = self._needed(item.recipe)
            if not self._most[device]:
                what = {"cuda": "GPU", "cpu": "CPU"}[device]
                raise InputError(f"--ray: {item.recipe.name} needs a {what}, and no node has one")

    def _give_up_on_what_no_node_can_do(self) -> None:
        lacking = self._order.lacking()
        if not lacking or self._asking:
            self._useless = None
            return
        names, now = ", ".join(sorted(load.name for load in lacking)), time.monotonic()
        if self._useless is None:
            self._useless = now
            self.watcher.note(f"no node can run {names}; waiting {PATIENCE_S:.0f} s for one")
        elif now > self._useless + PATIENCE_S:
            raise Stopped(f"no node is left that can run {names}; run again to go on")

    # Runs -----------------------------------------------------------------------------------------

    def _add(self, items: list[Planned]) -> None:
        loads = []
        for item in items:
            key = self._sweep.key(item.recipe)
            self._items[key] = item
            load = self._load(item)
            group = self._sweep.key(item.recipe, load.group)
            # What no node has enough GPUs for is skipped on the largest, as it is without Ray.
            units = min(load.units, self._most[load.device])
            loads.append(dataclasses.replace(load, name=key, group=group, units=units))
        self._order.add(*loads)

    def _load(self, item: Planned) -> Load:
        return load_of(item, self._needed(item.recipe))

    def _hear(self) -> None:
        """What the threads say, for a moment."""
        try:
            message = self._inbox.get(timeout=POLL_S)
        except queue.Empty:
            return
        if isinstance(message, (Joined, Refused)):
            self._asking -= 1
        if isinstance(message, Joined):
            if message.site.name in self._sites:  # else it has gone again
                self._order.join(message.site, message.speed)
                if self._order.left():  # else the rankings are not in it yet
                    self._stay_with_kind(message.site)
        elif isinstance(message, Refused):
            self._refusals.append(f"{message.machine.name}: {one_line(message.why)}")
            self.watcher.note(f"not used: {self._refusals[-1]}")
        elif isinstance(message, Working):
            self._order.working(message.name, time.monotonic(), message.took)
        elif isinstance(message, PartEnded):
            if message.why:
                text = f"{message.name}: {message.why}; the run makes its videos itself"
                self.watcher.note(text)
            made = message.needed and not message.why
            self._order.ended(message.name, time.monotonic(), made)
        elif isinstance(message, Again):
            self._looked = 0.0  # its node may be gone, and is no place to try again
            if message.begun:
                self._again[message.name] = message.why
            self.watcher.note(f"{message.name}: {message.why}; run again")
            if place := self._places.get(message.name):
                place.begun = False
            self._order.again(message.name)
        elif isinstance(message, Ended):
            self._ended(message.item, message.finished[1])
        elif isinstance(message, Failed):
            raise message.error
        else:
            assert_never(message)

    def _ended(self, item: Planned, record: Record) -> None:
        name = self._sweep.key(item.recipe)
        place = self._places.pop(name)
        place.clear()
        self._order.ended(name, time.monotonic(), record.status == "ok" and place.ran)
        more = self._sweep.floors(item, record)
        self._sweep.queue += more
        self._add(more)

    def _begin(self, start: Start) -> None:
        load = start.load
        name = load.whole or load.name
        item, place = self._items[name], self._places.get(name)
        if place is None:
            place = There(self, self._sites, name, self._sites.environment(start.site))
            self._places[name] = place
            if start.early:
                place.ahead = True
                self._in_thread(partial(place.make_ahead, self._sweep, item))
        if load.part is None:
            place.give(start)
        if not place.begun and (load.part is None or not place.ahead):
            place.begun = True
            position = 0 if name in self._again else next(self._position)
            self.watcher.begin(item.recipe, position, len(self._sweep.queue))
            self._in_thread(partial(self._run, item, place))
        if load.part is not None:
            label = item.recipe.model_copy(update={"name": load.name})
            self._in_thread(partial(place.part, start, label))

    def _in_thread(self, act: Callable[[], Message | None]) -> None:
        def acting() -> None:
            try:
                message = act()
            except BaseException as error:  # raised in the thread that decides
                message = Failed(error)
            if message is not None:
                self.tell(message)

        thread = threading.Thread(target=acting, daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()

    def _run(self, item: Planned, place: There) -> None:
        place.begin()
        try:
            self.tell(Ended(item, self._sweep.one(item, place)))
        except Lost as lost:
            self.watcher.dropped(item.recipe)
            if not self.stopping:
                begun = not isinstance(lost, NoSeat)
                self.tell(Again(self._sweep.key(item.recipe), str(lost), begun))
        finally:
            place.over()  # after it is said what came of it: parts that wait end after the run

    # What threads ask and tell --------------------------------------------------------------------

    def tell(self, message: Message) -> None:
        """Something that the order of the sweep depends on."""
        self._inbox.put(message)

    def lost_before(self, name: str) -> str | None:
        """Why this run, or part of one, is run again, if it is."""
        return self._again.get(name)
