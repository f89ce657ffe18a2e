"""Runs on the machine of this process: the processes of a run, the reference's beside it, locks.

A sweep uses it directly; on a cluster each node has one of its own (see `nodes`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qbench.meters.environment import Environment
from qbench.pipelines import specs
from qbench.recipe.schema import Recipe
from qbench.results.record import Record
from qbench.run import execution, locks, recorder
from qbench.run.events import Event
from qbench.run.execution import Limits
from qbench.run.interrupts import Interrupts
from qbench.run.job import Job
from qbench.run.machines import Machines, no_room_beside
from qbench.run.reference_server import ReferenceServer

Finished = tuple[Path, Record]


class Listener(Protocol):
    """Who is told how a run gets on, and what it waits for."""

    def event(self, recipe: Recipe, event: Event) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Task:
    """A run as a sweep hands it over. The record is to be made from `draft`."""

    draft: Record
    prompts: tuple[str, ...]
    reference: Finished | None = None  # what it is compared with
    paired: bool = False  # the reference is to take its turns beside it
    made: Path | None = None  # videos that others have made of it


@contextmanager
def locked(path: Path, recipe: Recipe, listener: Listener, shared: bool = False) -> Iterator[None]:
    """Hold the lock for the block; the listener hears whom it waits for."""

    def waiting(holder: str) -> None:
        listener.note(f"{recipe.name}: waiting for {holder}")

    with locks.held(path, f"qbench run {recipe.name}", waiting, shared):
        yield


class Here:
    """What runs on one device of this machine share: its ceilings, and references that wait."""

    def __init__(
        self, listener: Listener, interrupts: Interrupts, scratch: Path | None = None
    ) -> None:
        """scratch: where the references' processes work; null is the system's own place."""
        self._listener, self._interrupts, self._scratch = listener, interrupts, scratch
        self._machines = Machines()
        self._servers: dict[str, ReferenceServer] = {}

    def environment(self, device: str) -> Environment:
        return self._machines.environment(device)

    def peak(self, device: str) -> float:
        """TFLOP/s in BF16, measured once a machine; 1 where it is not."""
        ceilings = self._machines.ceilings(device)
        rates = ceilings.product_flop_per_s if ceilings else {}
        return rates.get("bf16", 1e12) / 1e12

    def run(self, task: Task, work: Path) -> Record:
        """Run in this folder, which is empty, once no timed run has the device."""
        draft, recipe = task.draft, task.draft.recipe
        self._machines.know(recipe.device, draft.environment)
        parallel = recipe.variant.parallel
        with ExitStack() as held:
            for device in locks.of_devices(
                draft.environment.device, parallel.ranks if parallel else 1
            ):
                shared = not recipe.measure.timing
                held.enter_context(locked(device, recipe, self._listener, shared))
            record = self._measured(task, work)
        if record.beats_peak():
            self._machines.calibrate_again(recipe.device)
        return record

    def close(self) -> None:
        for server in self._servers.values():
            server.close(lambda: self._interrupts.hurry)

    def _measured(self, task: Task, work: Path) -> Record:
        draft = recorder.changed(
            task.draft,
            ceilings=self._machines.ceilings(task.draft.recipe.device),
            compiler_cache="cold",
        )
        server, why_not = self._server(task)
        if why_not:
            draft = _alone(draft, f"not interleaved: {why_not}")
        record = self._attempt(task, draft, work, server)
        if server and record.status == "oom":
            # Alone it may fit: the reference's process holds memory for as long as it waits.
            server.close()
            draft = _alone(
                draft, "not interleaved: beside the reference's process it ran out of memory"
            )
            shutil.rmtree(work)
            work.mkdir()
            record = self._attempt(task, draft, work, None)
        return record

    def _attempt(
        self, task: Task, draft: Record, work: Path, server: ReferenceServer | None
    ) -> Record:
        job = Job(
            draft=draft,
            folder=work,
            cache=work / execution.CACHE,
            prompts=task.prompts,
            reference=task.reference and task.reference[0].resolve(),
            interleaved=server is not None,
            made=task.made,
        )
        limits = Limits(draft.recipe, specs.find(draft.recipe.model).local)
        record = execution.execute(job, limits, self._listener, server, self._interrupts)
        measure = draft.recipe.measure
        try:
            # A floor is there for its videos, not for how soon the first one comes.
            floor = draft.recipe.noise_floor
            again = measure.timing and measure.warm_start and job.ranks == 1 and not floor
            if record.status == "ok" and again and _builds(record):
                warm = execution.warm_first_call(job, limits, self._listener, self._interrupts)
                if warm is not None:
                    record = recorder.changed(record, first_call_warm_s=warm)
                    execution.keep(record, work)
        finally:
            with self._interrupts.held():
                shutil.rmtree(work / execution.CACHE, ignore_errors=True)
        return record

    def _server(self, task: Task) -> tuple[ReferenceServer | None, str]:
        """The reference's process for this run, and why there is none though one was asked for."""
        if not task.paired or task.reference is None:
            return None, ""
        folder, record = task.reference
        if record.recipe.variant.parallel:
            return None, "the reference itself takes several processes"
        known = self._servers.get(record.run)
        if known and known.failure and known.failure.out_of_memory:
            return None, "the reference's process ran out of memory beside another"
        if why_not := no_room_beside(record):
            return None, why_not
        if known is None or known.failure:
            job = Job(draft=record, folder=folder.resolve(), prompts=task.prompts)
            self._servers[record.run] = ReferenceServer(job, self._scratch)
        return self._servers[record.run], ""


def _alone(draft: Record, why: str) -> Record:
    return recorder.changed(draft, interleaved="no room", notes=[*draft.notes, why])


def _builds(record: Record) -> bool:
    """Whether the first call had something to compile that a cache may keep."""
    return record.recipe.variant.compile is not None
