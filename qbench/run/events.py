"""What a run's process and the sweep say to each other: one type a message, all of them here.

Events go from the process to the sweep. The only answers are the number of a unit, to the
reference's process, and the seconds that the reference took, to the variant's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qbench.results.record import Status


@dataclass(frozen=True)
class StageEntered:
    """A stage begins, or goes on: `done` of `total` units, where it has units."""

    stage: str
    done: int | None = None
    total: int | None = None
    unit: str = "video"


@dataclass(frozen=True)
class Placed:
    """The run happens on this node of a cluster."""

    where: str


@dataclass(frozen=True)
class WorkPlanned:
    """How many denoise steps lie ahead, and how many bytes of raw outputs will be written."""

    steps: int
    output_bytes: int = 0


@dataclass(frozen=True)
class StepsDone:
    """Denoise steps that ended since the last such event."""

    count: int = 1


@dataclass(frozen=True)
class TurnAsked:
    """An interleaved run asks that the reference do the unit of this number, and waits."""

    number: int


@dataclass(frozen=True)
class ServerReady:
    """The reference's process has warmed up and waits for its first turn."""


@dataclass(frozen=True)
class TurnTaken:
    """The reference's process has done a unit in so many seconds."""

    seconds: float


@dataclass(frozen=True)
class ServerFailed:
    """The reference's process ends without having been asked to."""

    reason: str
    out_of_memory: bool


@dataclass(frozen=True)
class FirstCallDone:
    """A process that makes the first call alone has made it, in so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Beat:
    """A rank of several is alive, and has begun so many collectives."""

    begun: int


@dataclass(frozen=True)
class RankFailed:
    """A rank other than the first has ended on an error."""

    status: Status
    reason: str


@dataclass(frozen=True)
class RunEnded:
    """The run's process has written its record."""

    status: str


Event = (
    StageEntered
    | Placed
    | WorkPlanned
    | StepsDone
    | TurnAsked
    | ServerReady
    | TurnTaken
    | ServerFailed
    | FirstCallDone
    | Beat
    | RankFailed
    | RunEnded
)


class Link(Protocol):
    """The process's end of the line to its sweep."""

    def emit(self, event: Event) -> None: ...

    def reference_turn(self, number: int) -> float:
        """Seconds that the reference takes for the unit of this number; NaN where it has died."""
        ...

    def next_turn(self) -> int:
        """The number of the unit that the reference is asked for."""
        ...


class NoLink:
    """For a run that belongs to no sweep: nobody listens, and there is no reference beside it."""

    def emit(self, event: Event) -> None:
        pass

    def reference_turn(self, number: int) -> float:
        raise RuntimeError("a run that belongs to no sweep has no reference beside it")

    def next_turn(self) -> int:
        raise RuntimeError("a run that belongs to no sweep is asked for no turns")
