"""Which run of a sweep starts next, and on which devices, where there are several.

Runs of one ranking happen on one kind of device, the reference before the others. Rankings are
given to kinds so that all of them end at about the same time. Of what can start, references come
first and then the longest; a run that needs several devices of a node has one node kept free for
it. Where runs are fewer than devices, the videos of a run are made in parts.

No clock and no cluster in here: a simulation (`scripts/plan_sweep.py`) asks the same questions.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

OVERDUE = 0.1  # of its time so far: how much longer a run takes that should have ended


@dataclass(frozen=True)
class Load:
    """A run by what it takes, in a unit of work that is the same for all of a sweep."""

    name: str
    group: str  # the ranking that it belongs to
    reference: bool  # the others of its group wait for it
    device: str  # cpu or cuda
    units: int  # that it takes at once, of one node: GPUs, or threads
    fixed: float  # work that is one device's
    shared: float = 0.0  # work that parts of it can do elsewhere
    least: float = 1.0  # of that, below which a part is not worth its start

    @property
    def work(self) -> float:
        return self.fixed + self.shared


@dataclass
class Site:
    """A node's devices: all of one kind, which is what figures may be compared across."""

    name: str
    kind: str
    device: str
    total: int
    free: int


@dataclass(frozen=True)
class Start:
    """A run, and the sites of its parts; the first is where it is put together."""

    load: Load
    sites: tuple[str, ...]


@dataclass
class _Running:
    load: Load
    kind: str
    sites: list[str]
    began: float
    parts: int


@dataclass
class _Speed:
    """Work that a kind does in a second, from what has ended there."""

    work: float = 0.0
    seconds: float = 0.0

    def rate(self, otherwise: float) -> float:
        return self.work / self.seconds if self.seconds else otherwise


@dataclass
class _Group:
    waiting: list[Load] = field(default_factory=list)
    kind: str = ""
    opened: bool = False  # something of it has started, so it stays with its kind
    referred: bool = False  # its reference has ended

    def work(self) -> float:
        return sum(load.work for load in self.waiting)

    def ready(self) -> list[Load]:
        if self.referred:
            return self.waiting
        return [load for load in self.waiting if load.reference]


class Order:
    """The runs that wait, the sites, and what runs where."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self._groups: dict[str, _Group] = {}
        self._running: dict[str, _Running] = {}
        self._speeds: dict[str, _Speed] = {}

    # What happens -----------------------------------------------------------------------------

    def join(self, site: Site) -> None:
        self.sites[site.name] = site
        self._speeds.setdefault(site.kind, _Speed())

    def leave(self, name: str) -> None:
        """A node is gone; what ran there is told by `ended` or `again`."""
        self.sites.pop(name, None)

    def add(self, *loads: Load) -> None:
        """More runs. One whose group has no reference that waits or runs can start at once."""
        for load in loads:
            self._groups.setdefault(load.group, _Group()).waiting.append(load)
        running = {run.load.group for run in self._running.values() if run.load.reference}
        for load in loads:
            group = self._groups[load.group]
            if not any(other.reference for other in group.waiting) and load.group not in running:
                group.referred = True

    def prefer(self, group: str, kind: str) -> None:
        """The ranking has runs on this kind of device already, so it goes on there."""
        self._groups[group].kind, self._groups[group].opened = kind, True

    def freed(self, name: str, site: str) -> None:
        """A part of this run has ended at this site."""
        self._running[name].sites.remove(site)
        if site in self.sites:
            self.sites[site].free += self._running[name].load.units

    def ended(self, name: str, now: float, measured: bool = True) -> None:
        """A run has ended, and says how fast its kind is unless it was complete already."""
        run = self._end(name)
        if run.load.reference:
            self._groups[run.load.group].referred = True
        if measured:
            speed = self._speeds[run.kind]
            speed.seconds += now - run.began
            speed.work += run.load.fixed + run.load.shared / run.parts

    def again(self, name: str) -> None:
        """A run came to nothing and waits once more."""
        load = self._end(name).load
        self._groups[load.group].waiting.append(load)

    def _end(self, name: str) -> _Running:
        for site in list(self._running[name].sites):
            self.freed(name, site)
        return self._running.pop(name)

    # What is asked ----------------------------------------------------------------------------

    def left(self) -> bool:
        return bool(self._running) or any(group.waiting for group in self._groups.values())

    def lacking(self) -> list[Load]:
        """Runs that wait and that no site can ever take, as the sites are."""
        return [
            load
            for group in self._groups.values()
            for load in group.waiting
            if not self._kinds(group) or (group.opened and group.kind not in self._kinds(group))
        ]

    def start(self, now: float) -> Start | None:
        """The next run that should start now, if any; it then counts as running."""
        self._give_to_kinds(now)
        free: dict[str, int] = {}
        for site in self.sites.values():
            free[site.kind] = free.get(site.kind, 0) + site.free
        for kind in sorted(free, key=lambda kind: (-free[kind], kind)):
            if free[kind] and (found := self._choose(kind, now)):
                return self._begin(found, kind, now)
        return None

    def _begin(self, start: Start, kind: str, now: float) -> Start:
        load, group = start.load, self._groups[start.load.group]
        group.waiting.remove(load)
        group.opened = True
        for site in start.sites:
            self.sites[site].free -= load.units
        self._running[load.name] = _Running(
            load, kind, list(start.sites), now, max(1, len(start.sites))
        )
        return start

    # Rankings to kinds ------------------------------------------------------------------------

    def _kinds(self, group: _Group) -> list[str]:
        """The kinds that have a site large enough for every run of the group that waits."""
        need: dict[str, int] = {}
        for load in group.waiting:
            need[load.device] = max(need.get(load.device, 0), load.units)
        fits = {
            site.kind
            for site in self.sites.values()
            if need.get(site.device, 0) and site.total >= need[site.device]
        }
        return sorted(fits) if len(need) == 1 else []

    def _give_to_kinds(self, now: float) -> None:
        """Give every ranking of which nothing has started to the kind that ends it first.

        The largest first, each on top of what its kind has to do already.
        """
        unopened = [g for g in self._groups.values() if g.waiting and not g.opened]
        if not unopened:
            return
        behind = dict.fromkeys(self._speeds, 0.0)
        for group in self._groups.values():
            if group.opened and group.kind in behind:
                behind[group.kind] += group.work()
        for run in self._running.values():
            behind[run.kind] += self._remaining(run, now) * self._rate(run.kind)
        power = {kind: self._power(kind) for kind in behind}
        for group in sorted(unopened, key=lambda g: -g.work()):
            kinds = [kind for kind in self._kinds(group) if power[kind]]
            if kinds:
                work = group.work()
                kind = min(kinds, key=lambda k: ((behind[k] + work) / power[k], k))
                group.kind = kind
                behind[kind] += work

    def _power(self, kind: str) -> float:
        """Work a second of all its devices."""
        return self._rate(kind) * sum(s.total for s in self.sites.values() if s.kind == kind)

    def _rate(self, kind: str) -> float:
        """Work that a device does in a second; of a kind that nothing has ended on, the mean's."""
        known = [speed.rate(0.0) for speed in self._speeds.values() if speed.seconds]
        return self._speeds[kind].rate(sum(known) / len(known) if known else 1.0)

    def _remaining(self, run: _Running, now: float) -> float:
        """Seconds that a run has still to go, about."""
        whole = (run.load.fixed + run.load.shared / run.parts) / self._rate(run.kind)
        spent = now - run.began
        return max(whole - spent, OVERDUE * spent)

    # One run to its devices -------------------------------------------------------------------

    def _choose(self, kind: str, now: float) -> Start | None:
        groups = [g for g in self._groups.values() if g.waiting and g.kind == kind]
        ready = [(group.work(), load) for group in groups for load in group.ready()]
        ready.sort(key=lambda one: (not one[1].reference, -one[1].units, -one[0], -one[1].work))
        kept: set[str] = set()  # nodes that a larger run waits for
        for _, load in ready:
            places = self._places(kind, load.units, kept)
            if places:
                return self._parted(load, kind, places, len(ready), now)
            if site := self._fullest(kind, load.units, kept):
                kept.add(site)
        return None

    def _places(self, kind: str, units: int, kept: Iterable[str]) -> list[str]:
        """Sites that can take a run at once, as often as they can, the tightest fit first."""
        sites = [s for s in self.sites.values() if s.kind == kind and s.name not in kept]
        fits = sorted((s for s in sites if s.free >= units), key=lambda s: (s.free, s.name))
        return [site.name for site in fits for _ in range(site.free // units)]

    def _fullest(self, kind: str, units: int, kept: Iterable[str]) -> str:
        """The site that will be the first to have so many units free."""
        sites = [
            s
            for s in self.sites.values()
            if s.kind == kind and s.total >= units and s.name not in kept
        ]
        return max(sites, key=lambda s: (s.free, s.name)).name if sites else ""

    def _parted(
        self, load: Load, kind: str, places: list[str], ready: int, now: float
    ) -> Start | None:
        """In how many parts it is best run: as many as leave no device idle.

        For the last run that can start, it may be best to wait for devices that are busy.
        """
        most = max(1, int(load.shared / load.least))
        parts = min(most, max(1, len(places) // ready))
        if ready > 1 or most == 1:
            return Start(load, tuple(places[:parts]))
        busy = [run for run in self._running.values() if run.kind == kind]
        ends = [self._remaining(run, now) for run in busy for _ in run.sites]
        waits = [0.0] * len(places) + heapq.nsmallest(most, ends)
        rate = self._rate(kind)

        def done(count: int) -> float:
            return waits[count - 1] + (load.fixed + load.shared / count) / rate

        best = min(range(1, min(most, len(waits)) + 1), key=lambda count: (done(count), count))
        return Start(load, tuple(places[:best])) if waits[best - 1] == 0 else None
