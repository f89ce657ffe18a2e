"""A run by what it takes, and the parts that its videos can be made in on several devices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# The longest that a run should take, of what its kind has still to do, where parts can shorten it:
# a reference holds up its whole ranking.
LONGEST, LONGEST_REFERENCE = 0.3, 0.03
WORTH = 4  # times what a part takes to start: as much is in each that could do without
LUCK = 0.5  # of what ends last, for which the others are idle
ROUNDING = 1e-9  # a run that is all that is left on three devices is three times each one's


@dataclass(frozen=True)
class Load:
    """A run by what it takes, in a unit of work that is the same for all of a sweep."""

    name: str
    group: str  # the ranking that it belongs to
    reference: bool  # the others of its group wait for it
    device: str  # cpu or cuda
    units: int  # that it takes at once, of one node: GPUs, or threads
    fixed: float  # work that is one place's
    shared: float = 0.0  # work that parts of it can do elsewhere
    least: float = 1.0  # of that, below which a part is not worth its start
    start: float = 0.0  # what a part takes before it does any of it
    early: bool = True  # whether parts may be made beside its reference
    part: tuple[int, int] | None = None  # its number, of how many
    whole: str = ""  # the run that it is a part of

    @property
    def work(self) -> float:
        return self.fixed + self.shared

    def starting(self, work: float) -> Load:
        """As it is where a device does so much work while a part starts."""
        if work == self.start:
            return self
        return replace(self, start=work, least=max(self.least, work))


def parted(load: Load, parts: int) -> list[Load]:
    """So many parts, each with as much of what can be shared; what cannot stays with the run."""
    each = load.shared / parts
    return [
        replace(
            load,
            name=f"{load.name}, part {number + 1}/{parts}",
            fixed=each,
            shared=0.0,
            part=(number, parts),
            whole=load.name,
        )
        for number in range(parts)
    ]


def how_many(load: Load, places: int, free: int, rivals: int, each: float, holds_up: bool) -> int:
    """As many as leave no device idle, and as end it well before everything else has ended.

    places: for it at once, if nothing else ran. free: of those, now. rivals: that could start now,
    it included, and have as many of them. each: work that every device has still to do. holds_up:
    others, until it has ended.
    """
    most = int(load.shared / load.least)
    if most < 2 or places < 2:
        return 1
    soonest = _soonest(load, min(most, places), places, each)
    safest = _safest(load, places, rivals, each, holds_up)
    return min(most, max(free // rivals, soonest, safest))


def _soonest(load: Load, most: int, places: int, each: float) -> int:
    """The number with which everything should end first: parts take starts, and wait for devices.

    One of the others is free after another, until all that they have to do is done.
    """
    alone = load.start + load.work
    others = max(0.0, each - alone / places)

    def ends(parts: int) -> float:
        if parts == 1:
            return max(each, alone)
        spread = each + ((parts - 1) * load.start - load.fixed) / places
        last = others * (parts - 1) / (places - 1) + load.start + load.shared / parts
        return max(spread, last) + load.start + load.fixed

    return min(range(1, most + 1), key=ends)


def _safest(load: Load, places: int, rivals: int, each: float, holds_up: bool) -> int:
    """The number with which it should not end last by bad luck, where that is worth the starts.

    All devices share what starts take, and all but one what the last run keeps them waiting. Each
    of those that could start now may be the last on a device.
    """
    longest = LONGEST_REFERENCE if holds_up else LONGEST
    wished = math.ceil(load.work / (longest * each) - ROUNDING)
    if not load.start:
        return wished

    last = min(1.0, places / rivals)

    def cost(parts: int) -> float:
        starts = parts + 1 if parts > 1 else 0
        return last * LUCK * (1 - 1 / places) * load.work / parts + starts * load.start / places

    wished = min(wished, int(load.shared / (WORTH * load.start)))
    return min(range(1, max(1, wished) + 1), key=cost)


def are_worth_it(load: Load, until: float) -> bool:
    """Whether to make its videos while it waits, by a device that is idle else.

    That takes a start more, which costs nothing while it lasts no longer than the run would wait.

    until: work that a device does before the run itself could begin.
    """
    return load.shared >= load.least and until > load.start
