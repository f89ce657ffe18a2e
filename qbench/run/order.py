"""Which run of a sweep starts next, and on which devices, where there are several.

Runs of one ranking happen on one kind of device, the reference before the others. Rankings are
given to kinds so that all of them end at about the same time. Of what can start, references come
first and then the longest; a run that needs several devices of a node has one node kept free for
it. A run that would outlast the others has its videos made in parts, each of them as a run of its
own would be, and is put together once they are there. So has one for which a device is idle while
its reference runs elsewhere: its videos do not depend on that, what it is compared with does.

No clock and no cluster in here: a simulation (`scripts/plan_sweep.py`) asks the same questions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from qbench.run.parts import Load, are_worth_it, how_many, parted
from qbench.run.speeds import Speeds

OVERDUE = 0.1  # of its time so far: how much longer a run takes that should have ended


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
    """A run, or a part of one, and the site where it is to start."""

    load: Load
    site: str
    early: bool = False  # before its reference has ended, so it is a part


@dataclass
class _Running:
    load: Load
    kind: str
    site: str
    began: float
    starting: float | None = None  # seconds until it did any of its work, once it has told


@dataclass
class _Split:
    """A run whose parts are being made."""

    load: Load  # with the work that is left for it
    parts: int  # that have not ended


@dataclass
class _Group:
    waiting: list[Load] = field(default_factory=list)
    kind: str = ""
    opened: bool = False  # something of it has started, so it stays with its kind
    resumed: bool = False  # its reference was complete before, so it is soon over
    referred: bool = False  # its reference has ended

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
        self._split: dict[str, _Split] = {}
        self._speeds = Speeds()

    # What happens -----------------------------------------------------------------------------

    def join(self, site: Site, speed: float = 1.0) -> None:
        """A node. speed: of its kind beside others, as far as is known before anything has run."""
        self.sites[site.name] = site
        self._speeds.expect(site.kind, speed)

    def leave(self, name: str) -> None:
        """A node is gone; what ran there is told by `ended` or `again`."""
        self.sites.pop(name, None)

    def add(self, *loads: Load) -> None:
        """More runs. One whose group has no reference that is still to end can start at once."""
        for load in loads:
            self._groups.setdefault(load.group, _Group()).waiting.append(load)
        pending = [run.load for run in self._running.values()]
        pending += [split.load for split in self._split.values()]
        pending += [load for group in self._groups.values() for load in group.waiting]
        held = {load.group for load in pending if load.reference}
        for load in loads:
            if load.group not in held:
                self._groups[load.group].referred = True

    def prefer(self, group: str, kind: str) -> None:
        """The ranking has runs on this kind of device already, so it goes on there.

        Unless something of it has begun on another, or is to go on there, already.
        """
        found = self._groups.get(group)
        if found is not None and not found.opened:
            found.kind, found.opened, found.resumed = kind, True, True

    def working(self, name: str, now: float, took: float | None = None) -> None:
        """A run, or a part of one, has started, and begins what it was started for.

        took: seconds since its own process began, where that is known. The first of a device waits
        besides for what all of them import, and none of the others will.
        """
        run = self._running.get(name)
        if run is None or run.starting is not None:
            return
        run.starting = now - run.began
        if run.load.start:
            seen = run.starting if took is None else took
            self._speeds.saw_start(run.kind, run.load.start, seen)

    def ended(self, name: str, now: float, measured: bool = True) -> None:
        """A run, or a part of one, has ended.

        It says how fast its kind is unless it was complete already, or came to nothing. A run that
        ends before its parts have no more need of them.
        """
        run = self._running.get(name)
        if run is None:  # before any of its parts was all made: it was complete
            load = self._split.pop(name).load
            self._groups[load.group].waiting = [
                part for part in self._groups[load.group].waiting if part.whole != name
            ]
        else:
            load = self._free(name).load
            if measured:
                told = run.starting is not None
                work = load.work if told else load.start + load.work
                self._speeds.saw_work(run.kind, work, now - run.began - (run.starting or 0.0))
        if load.part is None:
            self._groups[load.group].referred |= load.reference
        elif split := self._split.get(load.whole):
            split.parts -= 1
            if not split.parts:
                self._groups[load.group].waiting.append(self._split.pop(load.whole).load)

    def again(self, name: str) -> None:
        """A run, or a part, came to nothing and waits once more."""
        load = self._free(name).load
        self._groups[load.group].waiting.append(load)

    def _free(self, name: str) -> _Running:
        run = self._running.pop(name)
        if run.site in self.sites:
            self.sites[run.site].free += run.load.units
        return run

    # What is asked ----------------------------------------------------------------------------

    def left(self) -> bool:
        waiting = any(group.waiting for group in self._groups.values())
        return waiting or bool(self._running) or bool(self._split)

    def runs(self, name: str) -> bool:
        return name in self._running

    def lacking(self) -> list[Load]:
        """Runs that wait and that no site can ever take, as the sites are."""
        return [
            load
            for group in self._groups.values()
            for load in group.waiting
            if not self._kinds(group) or (group.opened and group.kind not in self._kinds(group))
        ]

    def start(self, now: float) -> Start | None:
        """What should start now, if anything; it then counts as running."""
        self._give_to_kinds(now)
        free: dict[str, int] = {}
        for site in self.sites.values():
            free[site.kind] = free.get(site.kind, 0) + site.free
        for kind in sorted(free, key=lambda kind: (-free[kind], kind)):
            if free[kind] and (found := self._choose(kind, now)):
                load, group = found.load, self._groups[found.load.group]
                group.waiting.remove(load)
                group.opened = True
                self.sites[found.site].free -= load.units
                self._running[load.name] = _Running(load, kind, found.site, now)
                return found
        return None

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
        behind = self._behind(now, opened=True)
        power = {kind: self._power(kind) for kind in behind}
        for group in sorted(unopened, key=lambda g: -sum(x.work * x.units for x in g.waiting)):
            kinds = [kind for kind in self._kinds(group) if power[kind]]
            if kinds:
                work = {kind: self._work(group, kind) for kind in kinds}
                kind = min(kinds, key=lambda k: ((behind[k] + work[k]) / power[k], k))
                group.kind = kind
                behind[kind] += work[kind]

    def _behind(self, now: float, opened: bool) -> dict[str, float]:
        """Work that each kind has to do: of rankings that have started there, or of all it has."""
        behind = dict.fromkeys(self._speeds.kinds(), 0.0)
        for group in self._groups.values():
            if group.kind in behind and (group.opened or not opened):
                behind[group.kind] += self._work(group, group.kind)
        for split in self._split.values():
            kind, load = self._groups[split.load.group].kind, split.load
            behind[kind] += self._whole(load, kind) * load.units
        for run in self._running.values():
            left = self._remaining(run, now) * self._speeds.rate(run.kind)
            behind[run.kind] += left * run.load.units
        return behind

    def _work(self, group: _Group, kind: str) -> float:
        """Of what waits, with what it takes to start each."""
        return sum(self._whole(load, kind) * load.units for load in group.waiting)

    def _whole(self, load: Load, kind: str) -> float:
        """What a device does from its start on."""
        return self._speeds.starting(kind, load.start) + load.work

    def _power(self, kind: str) -> float:
        """Work a second of all its devices."""
        return self._speeds.rate(kind) * self._devices(kind)

    def _devices(self, kind: str) -> int:
        return sum(site.total for site in self.sites.values() if site.kind == kind)

    def _known(self, load: Load, kind: str) -> Load:
        """The load with the work that a device does while it starts, as starts have taken."""
        return load.starting(self._speeds.starting(kind, load.start))

    def _remaining(self, run: _Running, now: float) -> float:
        """Seconds that a run has still to go, about."""
        spent, rate = now - run.began, self._speeds.rate(run.kind)
        start = run.starting
        if start is None:
            start = self._speeds.starting(run.kind, run.load.start) / rate
        return max(start + run.load.work / rate - spent, OVERDUE * spent)

    # One run to its devices -------------------------------------------------------------------

    def _choose(self, kind: str, now: float) -> Start | None:
        """What is ready and fits, the most pressing first.

        Rankings that have begun come before others, which can still be given to another kind.
        """
        groups = [g for g in self._groups.values() if g.waiting and g.kind == kind]
        works = [(group, self._work(group, kind)) for group in groups]
        ready = [(group, work, load) for group, work in works for load in group.ready()]
        ready.sort(
            key=lambda one: (
                not one[0].opened,
                not one[2].reference,
                -one[2].units,
                -one[1],
                -one[2].work,
                one[2].name,
            )
        )
        early = self._early(groups, now)
        kept: set[str] = set()  # nodes that a larger run waits for
        for group, _, load in ready:
            if site := self._place(kind, load.units, kept):
                beside = self._beside(group, self._whole(load, kind)) if load.reference else []
                rivals = len(ready) + len(early) + len(beside)
                parts = self._parts(load, kind, rivals, now, len(beside))
                return Start(self._parted(load, parts) if parts > 1 else load, site)
            if site := self._fullest(kind, load.units, kept):
                kept.add(site)
        for load in early:
            if site := self._place(kind, load.units, kept):
                if load.part is None:
                    load = self._parted(load, self._parts(load, kind, len(early), now))
                return Start(load, site, early=True)
        return None

    def _early(self, groups: Iterable[_Group], now: float) -> list[Load]:
        """What else idle devices can do while references run: videos of what waits for those.

        Parts that are left over come first, then the longest run.
        """
        found = []
        for group in groups:
            if not group.referred:
                found += [load for load in group.waiting if load.part and not load.reference]
                found += self._beside(group, self._until_referred(group, now))
        return sorted(found, key=lambda load: (load.part is None, -load.work, load.name))

    def _beside(self, group: _Group, until: float) -> list[Load]:
        """Runs whose videos are worth making while a device does so much for the reference."""
        if group.resumed:
            return []
        runs = [load for load in group.waiting if load.part is None and not load.reference]
        runs = [load for load in runs if load.early]
        return [load for load in runs if are_worth_it(self._known(load, group.kind), until)]

    def _until_referred(self, group: _Group, now: float) -> float:
        """Work that a device does until the group's reference has ended; 0 if it does not run."""
        running = [
            self._remaining(run, now) * self._speeds.rate(run.kind)
            for run in self._running.values()
            if run.load.reference and self._groups[run.load.group] is group
        ]
        if not running:
            return 0.0
        whole = [
            self._whole(split.load, group.kind)
            for split in self._split.values()
            if split.load.reference and self._groups[split.load.group] is group
        ]
        return max(running) + sum(whole)

    def _place(self, kind: str, units: int, kept: Iterable[str]) -> str:
        """The site with room for it that is the tightest fit."""
        sites = [s for s in self.sites.values() if s.kind == kind and s.name not in kept]
        fits = [s for s in sites if s.free >= units]
        return min(fits, key=lambda s: (s.free, s.name)).name if fits else ""

    def _fullest(self, kind: str, units: int, kept: Iterable[str]) -> str:
        """The site that will be the first to have so many units free."""
        sites = [s for s in self.sites.values() if s.kind == kind and s.name not in kept]
        large = [s for s in sites if s.total >= units]
        return max(large, key=lambda s: (s.free, s.name)).name if large else ""

    def _parts(self, load: Load, kind: str, rivals: int, now: float, beside: int = 0) -> int:
        """How many parts it is made in.

        rivals: how many could start now, it included. beside: of those, what can while it runs.
        """
        sites = [site for site in self.sites.values() if site.kind == kind]
        free = sum(site.free // load.units for site in sites)
        places = sum(site.total // load.units for site in sites)
        each = self._behind(now, opened=False)[kind] / self._devices(kind)
        holds_up = load.reference and beside < places - 1  # else no device is idle meanwhile
        return how_many(self._known(load, kind), places, free, rivals, each, holds_up)

    def _parted(self, load: Load, parts: int) -> Load:
        """Have the run wait for so many parts of it; the first of them."""
        group = self._groups[load.group]
        group.waiting.remove(load)
        made = parted(load, parts)
        group.waiting += made
        self._split[load.name] = _Split(replace(load, shared=0.0), parts)
        return made[0]
