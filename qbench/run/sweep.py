"""Many recipes, one after the other: the reference first, each in a process of its own.

A crash, an out-of-memory, a time-out or an error becomes a record with a status and a reason, and
the sweep goes on. What is already complete for the same fingerprints is not run again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from qbench import cache
from qbench.errors import InputError
from qbench.meters import roofline
from qbench.meters.environment import Environment
from qbench.meters.roofline import Ceilings
from qbench.pipelines import specs
from qbench.prompts import PromptSet
from qbench.quality import networks
from qbench.quality.outputs import FOLDER, Outputs
from qbench.recipe.schema import Recipe, digest
from qbench.results import store
from qbench.results.record import Fingerprints, Record, Reference, Status
from qbench.run import processes, recorder, worker
from qbench.run.events import Event, StageEntered, TurnAsked
from qbench.run.job import Job
from qbench.run.plan import Planned
from qbench.run.processes import Child
from qbench.run.reference_server import ReferenceServer

DONE = ("ok", "invalid")  # a record with such a status is complete
LABELS = ("about", "reference", "noise_floor", "expects")


class Watcher(Protocol):
    """Who is told how the sweep gets on; see `progress`."""

    def begin(self, recipe: Recipe, position: int, total: int) -> None: ...
    def event(self, recipe: Recipe, event: Event) -> None: ...
    def end(self, record: Record, path: Path, fresh: bool) -> None: ...


def run(
    planned: list[Planned], out: Path, watcher: Watcher, fresh: bool = False
) -> list[tuple[Path, Record]]:
    """Run what is not complete. Returns each recipe's record with its folder, in order.

    With `fresh`, the recipes that were named run again. KeyboardInterrupt ends the sweep after
    the record of the interrupted run is written.
    """
    processes.prepare()
    finished: dict[str, tuple[Path, Record]] = {}
    machines = _Machines(out)
    servers: dict[str, ReferenceServer] = {}
    texts = {item.recipe.name: item.prompts for item in planned}
    try:
        for position, item in enumerate(planned, 1):
            recipe = item.recipe
            reference = None if recipe.is_reference else finished.get(recipe.reference or "")
            draft = _draft(item, machines.environment(recipe.device), reference)
            folder = (
                machines.folder(recipe.device) / f"{recipe.plain_name}-{_short(draft.fingerprints)}"
            )
            old = None if fresh and not item.implied else _complete(folder, draft)
            watcher.begin(recipe, position, len(planned))
            if old is None:
                draft = draft.model_copy(update={"ceilings": machines.ceilings(recipe.device)})
            server = None
            if recipe.measure.interleave and draft.reference and reference and not old:
                job = _job(reference[1], reference[0], texts[reference[1].recipe.name])
                server = servers.setdefault(draft.reference.run, ReferenceServer(job))
            where = reference[0] if reference else None
            record = old or _execute(draft, folder, item.prompts, where, watcher, server)
            watcher.end(record, folder, fresh=old is None)
            if old is None and record.beats_peak():
                machines.calibrate_again(recipe.device)
            finished[recipe.name] = (folder, record)
            if record.status == "interrupted":
                break
    finally:
        for server in servers.values():
            server.close()
    return list(finished.values())


class _Machines:
    """What is read once a sweep of each device that recipes ask for."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._environments: dict[str, Environment] = {}
        self._ceilings: dict[str, Ceilings | None] = {}

    def environment(self, device: str) -> Environment:
        if device not in self._environments:
            self._environments[device] = read_environment(device)
        return self._environments[device]

    def folder(self, device: str) -> Path:
        return self._out / self.environment(device).machine()

    def ceilings(self, device: str) -> Ceilings | None:
        if device not in self._ceilings:
            self._ceilings[device] = roofline.kept(
                self._calibration(device), self.environment(device).device
            )
        return self._ceilings[device]

    def calibrate_again(self, device: str) -> None:
        self._ceilings[device] = roofline.kept(
            self._calibration(device), self.environment(device).device, again=True
        )

    def _calibration(self, device: str) -> Path:
        found = self.environment(device)
        machine = digest([found.hardware(), found.software()])
        return cache.folder() / f"{found.machine()}-{machine}"


def _draft(
    item: Planned, environment: Environment, reference: tuple[Path, Record] | None
) -> Record:
    recipe = item.recipe
    model = specs.find(recipe.model)
    now = datetime.now(UTC)
    usable = reference if reference and reference[1].status == "ok" else None
    return Record(
        run=f"{recipe.plain_name}-{now:%Y%m%dT%H%M%S}-{os.getpid()}",
        recipe=recipe,
        overrides=item.overrides,
        started=now.isoformat(timespec="seconds"),
        environment=environment,
        fingerprints=Fingerprints(
            recipe=recipe.fingerprint(),
            settings=_settings(recipe, model),
            prompts=item.prompts.digest(),
            model=model.digest(recipe.weights),
            hardware=digest(environment.hardware()),
            software=digest(environment.software()),
        ),
        reference=Reference(recipe=usable[1].recipe.name, run=usable[1].run) if usable else None,
    )


def _settings(recipe: Recipe, model: specs.Model) -> str:
    """How it is measured, the metric networks included: other weights give other figures."""
    return digest([recipe.settings_fingerprint(), networks.digest_of(recipe.quality, model)])


def _short(fingerprints: Fingerprints) -> str:
    return digest(fingerprints.model_dump())[:8]


def _complete(folder: Path, draft: Record) -> Record | None:
    """The record already there, if it is whole and was compared with the same reference run."""
    try:
        old = store.read(folder / store.FILE)
    except store.Unreadable:
        return None
    same = old.fingerprints == draft.fingerprints and old.reference == draft.reference
    if same and old.recipe.is_reference and not _has_videos(old, folder):
        return None  # others are compared with them, so they are made anew
    return _relabelled(old, draft, folder) if same and old.status in DONE else None


def _relabelled(old: Record, draft: Record, folder: Path) -> Record:
    """The record with what its recipe says about itself today: nothing of that is measured."""
    labels = {name: getattr(draft.recipe, name) for name in LABELS}
    if labels == {name: getattr(old.recipe, name) for name in LABELS}:
        return old
    recipe = old.recipe.model_copy(update=labels)
    new = old.model_copy(update={"recipe": recipe, "overrides": draft.overrides})
    store.write(new, folder)
    return new


def _has_videos(record: Record, folder: Path) -> bool:
    """Whether the videos of a complete run are there. Raises InputError where others are."""
    if "outputs" not in record.files:
        return True  # it made none
    return Outputs(folder / FOLDER).verify(record.outputs_sha256, record.videos)


def read_environment(device: str) -> Environment:
    """Read in a process of its own, so that this one never holds a GPU's memory."""
    done = subprocess.run(
        [sys.executable, "-m", "qbench.meters.environment", device],
        capture_output=True,
        text=True,
    )
    if done.returncode == 2:
        raise InputError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"the environment could not be read: {done.stderr.strip()[-500:]}")
    return Environment.model_validate_json(done.stdout.strip().splitlines()[-1])


def _job(
    draft: Record,
    folder: Path,
    prompts: PromptSet,
    reference: Path | None = None,
    interleaved: bool = False,
) -> Job:
    return Job(
        draft=draft,
        folder=folder.resolve(),
        prompts=prompts.prompts,
        reference=reference and reference.resolve(),
        interleaved=interleaved,
    )


def _execute(
    draft: Record,
    folder: Path,
    prompts: PromptSet,
    reference: Path | None,
    watcher: Watcher,
    server: ReferenceServer | None,
) -> Record:
    """One process from start to end; its record, or one that says how it died."""
    folder.mkdir(parents=True, exist_ok=True)
    usable = reference if draft.reference else None
    job = _job(draft, folder, prompts, usable, interleaved=server is not None)
    store.write(draft, folder)
    stage, limit = "start", draft.recipe.measure.timeout_s
    deadline = time.monotonic() + limit
    child: Child | None = None
    try:
        with _interrupt_held():  # a process that was started is a process that is ended
            child = Child(worker.run, job.model_dump_json(), folder / "log.txt")
        for event in child.events(deadline):
            if isinstance(event, StageEntered):
                stage = event.stage
            elif isinstance(event, TurnAsked) and server:
                child.answer(server.turn(event.number, deadline))
            watcher.event(draft.recipe, event)
        code = child.wait()
    except TimeoutError:
        assert child is not None
        child.end()
        reason = f"took longer than measure.timeout_s = {limit:g} s"
        return _ended(draft, folder, "timeout", reason, stage)
    except KeyboardInterrupt:
        if child is not None:
            child.end()
        return _ended(draft, folder, "interrupted", "stopped by the user", stage)
    try:
        record = store.read(folder / store.FILE)
    except store.Unreadable as error:
        return _ended(draft, folder, "crashed", str(error), stage)
    if record.status != "running":
        return record
    return _ended(draft, folder, "crashed", _how(code), stage)


@contextmanager
def _interrupt_held() -> Iterator[None]:
    """Hold Ctrl-C back until the block is left, so that none falls inside it."""
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


def _ended(draft: Record, folder: Path, status: Status, reason: str, stage: str) -> Record:
    record = recorder.ended(draft, status, reason, stage)
    store.write(record, folder)
    return record


def _how(code: int) -> str:
    if code >= 0:
        return f"the process ended with exit code {code} and left no record; see its log"
    name = signal.Signals(-code).name
    hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
    return f"the process died of {name}{hint}"
