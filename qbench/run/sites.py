"""The nodes of a spread sweep as it knows them, and the seats on them that wait for a run.

A process needs some time until it can run anything, so seats are taken as a node comes, and kept
from one run to the next. Any thread may ask.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from qbench.errors import InputError
from qbench.meters.environment import Environment
from qbench.recipe.schema import digest
from qbench.run.cluster import THREADS, Cluster, Lost, Machine, NoSeat, Seat
from qbench.run.messages import Joined, Refused
from qbench.run.order import Site


@dataclass
class _Known:
    """What is known of the devices of one type that a node has."""

    machine: Machine
    device: str
    environment: Environment
    idle: list[Seat] = field(default_factory=list)  # seats that wait for their next run

    def amount(self, units: int) -> int:
        """What Ray is asked for: GPUs, or CPUs for the threads of a run."""
        if self.device == "cuda":
            return units
        return min(units * self.environment.threads, self.machine.cpus)


class Sites:
    """Of the nodes that have joined, by the names of their sites."""

    def __init__(self, cluster: Cluster, waits: Callable[[str], None]) -> None:
        """waits: is told the name of a node whose devices others hold."""
        self._cluster, self._waits = cluster, waits
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()
        self._closing = False

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __len__(self) -> int:
        return len(self._known)

    def environment(self, name: str) -> Environment:
        return self._known[name].environment

    def join(
        self, machine: Machine, device: str, units: int, number: int, compared: bool
    ) -> Joined | Refused:
        """Take seats of so many units, and ask the first for the environment of runs there.

        number: of seats to take, the others only if they are free. compared: whether the cluster
        has GPUs of another kind, so that its speed is to be known.
        """
        seats = list[Seat]()
        try:
            seats.append(self._cluster.seat(machine, device, units, self._waits))
            with contextlib.suppress(NoSeat):
                while len(seats) < number:
                    seats.append(self._cluster.seat(machine, device, units, None))
            environment = seats[0].environment(device)
            speed = seats[0].peak(device) if device == "cuda" and compared else 1.0
        except (Lost, InputError) as error:
            _close(seats)
            return Refused(machine, str(error))
        known = _Known(machine, device, environment)
        if units == known.amount(1):
            known.idle += seats
        else:
            _close(seats)
        name = site_of(machine, device)
        with self._lock:
            self._known[name] = known
        kind = f"{environment.machine()} {digest([environment.hardware(), environment.software()])}"
        total = machine.gpus if device == "cuda" else max(1, machine.cpus // environment.threads)
        return Joined(Site(name, kind, device, total, total), speed)

    def leave(self, there: Collection[str]) -> dict[str, Machine]:
        """Forget the sites of nodes that are not among these ids: which, and of which nodes."""
        with self._lock:
            gone = {n: known for n, known in self._known.items() if known.machine.id not in there}
            for name in gone:
                del self._known[name]
        for known in gone.values():
            _close(known.idle)
        return {name: known.machine for name, known in gone.items()}

    def close(self) -> None:
        """Keep no seat any more that is given back."""
        self._closing = True

    def seat(self, name: str, units: int) -> Seat:
        """One that waits there, or a new one. Raises Lost."""
        while True:
            with self._lock:
                known = self._known.get(name)
                if known is None:
                    raise NoSeat("its node is gone")
                amount = known.amount(units)
                waiting = next((seat for seat in known.idle if seat.units == amount), None)
                if waiting is None:
                    others, known.idle = known.idle, []  # they hold what this one needs
                    break
                known.idle.remove(waiting)
            if waiting.answers():
                return waiting
            waiting.close()  # it died while it waited, which is no loss of the run that comes now
        _close(others)
        return self._cluster.seat(known.machine, known.device, amount, self._waits)

    def give_back(self, name: str, seat: Seat) -> None:
        """Have it wait for the next run of its site."""
        with self._lock:
            known = self._known.get(name)
            if known is not None and not seat.closed and not self._closing:
                known.idle.append(seat)
                return
        seat.close()


def site_of(machine: Machine, device: str) -> str:
    """The name of a node's devices of one type."""
    return f"{machine.id}/{device}"


def units_of(machine: Machine, device: str) -> int:
    """What a run takes of the node, as far as is known before its environment is."""
    if device == "cuda":
        return 1
    said = os.environ.get(THREADS, "")
    return max(1, min(int(said), machine.cpus)) if said.isdigit() else machine.cpus


def _close(seats: Collection[Seat]) -> None:
    for seat in seats:
        seat.close()
