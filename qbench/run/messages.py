"""What the threads of a spread sweep tell the one that decides (see `spread`).

What a seat sends to this machine is in `nodes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from qbench.run.cluster import Machine
from qbench.run.here import Finished
from qbench.run.order import Site
from qbench.run.plan import Planned


@dataclass(frozen=True)
class Joined:
    """A node's devices can be used."""

    site: Site
    speed: float  # of its kind beside others


@dataclass(frozen=True)
class Refused:
    """They cannot, and why."""

    machine: Machine
    why: str


@dataclass(frozen=True)
class Ended:
    item: Planned
    finished: Finished


@dataclass(frozen=True)
class Working:
    """A run, or a part of one, has started, and has a first step behind it."""

    name: str
    took: float | None  # seconds since its own process began


@dataclass(frozen=True)
class Again:
    """A seat is gone, and the run, or the part of one, is to start once more."""

    name: str
    why: str
    begun: bool = True  # false where there was no seat to begin with


@dataclass(frozen=True)
class PartEnded:
    """A part of a run has ended; why its videos were not made, if so."""

    name: str
    why: str = ""
    needed: bool = True  # false where the run turned out to be complete


@dataclass(frozen=True)
class Failed:
    error: BaseException


Message = Joined | Refused | Working | Ended | Again | PartEnded | Failed
