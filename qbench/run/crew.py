"""The processes of a run on several GPUs, seen from the sweep: one a rank, ended together.

A rank that dies takes the others into a collective that never ends, and so does one that hangs. So
each rank gives a sign of life every second, with the number of collectives that it has begun: all
begin the same ones in the same order, and the one that is behind is the one to name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from qbench.meters import nvml
from qbench.results.record import Status
from qbench.run import folders, worker
from qbench.run.events import Beat, Event, RankFailed, RunEnded, StageEntered
from qbench.run.job import Job
from qbench.run.processes import Child, show_where, signal_name
from qbench.run.together import MEETING

SILENT_S = 15.0  # without a sign of life: stopped, or the machine is out of memory
BEHIND_S = 20.0  # in no exchange while another waits in one, in stages in which nothing compiles
COMPILING_S = 600.0  # the same where something may
GRACE_S = 3.0  # that the first rank's own record may come after another rank's error
STEADY = ("warm-up", "steady", "error by step")


@dataclass(frozen=True)
class Lost:
    """A rank that ended the run: what becomes of the record, and why."""

    status: Status
    reason: str


def devices(wanted: int, device: str) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls the first GPUs of this machine; none on CPUs."""
    if device == "cpu":
        return ()
    return nvml.visible(wanted)


def log_of(rank: int) -> str:
    """The name of a rank's log, in the run's folder."""
    return folders.LOG if rank == 0 else f"log-rank-{rank}.txt"


@dataclass
class _Rank:
    """What is known of one rank."""

    child: Child
    begun: int = 0
    over: bool = False  # it said so
    gone: bool = False
    heard: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)

    def beats(self, event: Beat) -> None:
        self.heard = time.monotonic()
        if event.begun != self.begun:
            self.begun, self.moved = event.begun, self.heard


class Crew:
    """As `processes.Child`, for a run of several ranks. `lost` says which of them ended it."""

    def __init__(self, job: Job) -> None:
        self.lost: Lost | None = None
        self._stage, self._compiles = "start", job.draft.recipe.variant.compile is not None
        self._meeting = job.folder / MEETING
        there = devices(job.ranks, job.draft.environment.device)
        job = job.model_copy(update={"devices": there})
        # With too few GPUs the first rank says so; the others would have none.
        enough = job.draft.environment.device == "cpu" or len(there) == job.ranks
        self._ranks: list[_Rank] = []
        for rank in range(job.ranks if enough else 1):
            work = worker.run if rank == 0 else worker.follow
            own = job.model_copy(update={"rank": rank})
            self._ranks.append(_Rank(Child(work, own.model_dump_json(), job.folder / log_of(rank))))

    @property
    def _first(self) -> _Rank:
        return self._ranks[0]

    def events(self, deadline: Callable[[], float]) -> Iterator[Event]:
        """The first rank's events as they come, until it ends or any rank is lost.

        Raises TimeoutError once the deadline, of time.monotonic, has passed; it may change.
        """
        failed, until = None, float("inf")
        while not self._first.gone and self.lost is None:
            if deadline() <= time.monotonic():
                raise TimeoutError
            ready = {one.child.connection: i for i, one in enumerate(self._ranks) if not one.gone}
            for connection in wait(list(ready), timeout=0.5):
                number = ready[connection]  # type: ignore[index]
                event = self._next(number)
                if isinstance(event, RankFailed):
                    failed = failed or self._of(number, event.status, event.reason)
                    until = min(until, time.monotonic() + GRACE_S)
                elif event is not None and number == 0:
                    began = time.monotonic()
                    yield event  # the reference may take its turn meanwhile, for minutes
                    self._unheard(time.monotonic() - began)
            if failed and (self._first.over or time.monotonic() > until):
                self.lost = self.lost or failed
            self.lost = self.lost or self._silent() or self._behind()
        if self._first.gone and self._first.over and self.lost is None:
            self._look_for_dead()

    def _next(self, number: int) -> Event | None:
        """What a rank says next, but for signs of life; None where there is nothing, or no rank."""
        rank = self._ranks[number]
        try:
            event = rank.child.receive()
        except (EOFError, ConnectionError):
            rank.gone = True
            if number and not rank.over:
                self.lost = self._of(number, "crashed", f"the process {_end(rank.child)}")
            return None
        rank.heard = time.monotonic()
        if isinstance(event, Beat):
            rank.beats(event)
            return None
        if isinstance(event, (RunEnded, RankFailed)):
            rank.over = True
        elif isinstance(event, StageEntered) and number == 0:
            self._stage = event.stage
            for one in self._ranks:
                one.moved = time.monotonic()
        return event

    def _unheard(self, seconds: float) -> None:
        """Nobody listened for so long, so what no rank said meanwhile means nothing."""
        for rank in self._ranks:
            rank.heard += seconds
            rank.moved += seconds

    def _of(self, number: int, status: Status, reason: str) -> Lost:
        return Lost(status, f"rank {number} of {len(self._ranks)}: {reason}; see {log_of(number)}")

    def _silent(self) -> Lost | None:
        """A rank that gives no sign of life any more."""
        now = time.monotonic()
        for number, rank in enumerate(self._ranks):
            if not rank.gone and not rank.over and now - rank.heard > SILENT_S:
                return self._of(
                    number, "crashed", f"no sign of life for {SILENT_S:.0f} s: it hangs"
                )
        return None

    def _behind(self) -> Lost | None:
        """A rank that has begun fewer collectives than another, and begins none."""
        steady = self._stage in STEADY or not self._compiles
        limit, most = BEHIND_S if steady else COMPILING_S, max(rank.begun for rank in self._ranks)
        for number, rank in enumerate(self._ranks):
            idle = time.monotonic() - rank.moved
            if rank.begun < most and not rank.over and idle > limit:
                what = f"in {self._stage} it has begun {rank.begun} exchanges, others {most}, and"
                return self._of(number, "crashed", f"{what} none for {limit:.0f} s: it hangs")
        return None

    def _look_for_dead(self) -> None:
        """The first rank has ended: find one that died before it and made it fail."""
        for number, rank in enumerate(self._ranks[1:], start=1):
            while not rank.gone and self.lost is None and rank.child.connection.poll(0.2):
                self._next(number)

    def answer(self, value: float) -> None:
        """What the first rank's `recv` returns. Raises OSError where it has died."""
        self._first.child.answer(value)

    def wait(self) -> int:
        """The first rank's exit code, negative for a signal; the other ranks are ended."""
        code = self._first.child.wait()
        for rank in self._ranks[1:]:
            rank.child.end(lambda: not rank.over)  # noqa: B023 - called here and now
        self._meeting.unlink(missing_ok=True)
        return code

    def show_where(self) -> None:
        """Have each rank write to its log what its threads are doing."""
        show_where(rank.child for rank in self._ranks)

    def end(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """End all ranks, at once where one is lost: the others wait for it."""
        if self.lost is not None:
            self.show_where()
        for rank in self._ranks:
            rank.child.end(lambda: self.lost is not None or hurry())
        self._meeting.unlink(missing_ok=True)


def _end(child: Child) -> str:
    code = child.code()
    if code is None:
        return "closed its connection"
    if code < 0:
        return f"died of {signal_name(-code)}"
    return f"ended with exit code {code}"


def logs(folder: Path, ranks: int) -> dict[str, str]:
    """The logs of ranks beside the first, as the record names them."""
    names = {f"log_rank_{rank}": log_of(rank) for rank in range(1, ranks)}
    return {key: name for key, name in names.items() if (folder / name).is_file()}
