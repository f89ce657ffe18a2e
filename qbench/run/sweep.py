"""Many recipes, one after the other: the reference first, each in a process of its own.

A crash, an out-of-memory, a time-out or an error becomes a record with a status and a reason, and
the sweep goes on. What is already complete for the same fingerprints is not run again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from qbench.meters.environment import Environment
from qbench.pipelines import specs
from qbench.quality import networks
from qbench.recipe.schema import Recipe, digest
from qbench.results import store
from qbench.results.record import Fingerprints, Record, Reference
from qbench.run import execution, floors, folders, locks, processes, recorder
from qbench.run.events import Event
from qbench.run.execution import Limits, Stopped
from qbench.run.interrupts import Interrupts
from qbench.run.job import Job
from qbench.run.machines import Machines, no_room_beside
from qbench.run.plan import Planned
from qbench.run.reference_server import ReferenceServer

Finished = tuple[Path, Record]


class Watcher(Protocol):
    """Who is told how the sweep gets on; see `progress`."""

    def begin(self, recipe: Recipe, position: int, total: int) -> None: ...
    def event(self, recipe: Recipe, event: Event) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self, record: Record, path: Path, fresh: bool) -> None: ...


class Silent:
    """A watcher that says nothing."""

    def begin(self, recipe: Recipe, position: int, total: int) -> None: ...
    def event(self, recipe: Recipe, event: Event) -> None: ...
    def note(self, text: str) -> None: ...
    def end(self, record: Record, path: Path, fresh: bool) -> None: ...


@dataclass(frozen=True)
class Swept:
    """Each recipe's record with its folder, in order, and whether the sweep came to its end."""

    finished: list[Finished]
    interrupted: bool = False
    stopped: str = ""  # why it could not go on


def run(
    planned: list[Planned],
    out: Path,
    watcher: Watcher,
    fresh: bool = False,
    noise_floors: bool = False,
) -> Swept:
    """Run what is not complete.

    fresh: the recipes that were named run again; what was complete is replaced once they are.
    noise_floors: where verdicts will be given, the floors that are missing are measured too.
    """
    with Interrupts() as interrupts:
        sweep = _Sweep(list(planned), out, watcher, fresh, noise_floors, interrupts)
        interrupted, stopped = False, ""
        try:
            out.mkdir(parents=True, exist_ok=True)
            processes.prepare()
            interrupted = sweep.all()
        except KeyboardInterrupt:
            interrupted = True
        except Stopped as error:
            stopped = str(error)
        except OSError as error:
            if error.filename is None or not Path(error.filename).is_relative_to(out):
                raise
            stopped = f"{error.filename}: {error.strerror}"
        finally:
            with interrupts.held():
                sweep.close()
    return Swept(list(sweep.finished.values()), interrupted, stopped)


class _Sweep:
    """What the runs of a sweep share."""

    def __init__(
        self,
        queue: list[Planned],
        out: Path,
        watcher: Watcher,
        fresh: bool,
        noise_floors: bool,
        interrupts: Interrupts,
    ) -> None:
        self._queue, self._watcher, self._interrupts = queue, watcher, interrupts
        self._fresh, self._noise_floors = fresh, noise_floors
        self._machines = Machines(out)
        self._servers: dict[str, ReferenceServer] = {}
        self.finished: dict[str, Finished] = {}

    def all(self) -> bool:
        """Run the queue. Whether the user interrupted it."""
        position = 0
        while position < len(self._queue):
            item = self._queue[position]
            position += 1
            self._watcher.begin(item.recipe, position, len(self._queue))
            folder, record = self._one(item)
            self.finished[item.recipe.name] = (folder, record)
            if record.status == "interrupted":
                return True
            if item.recipe.is_reference and record.status == "ok" and self._noise_floors:
                self._queue[position:position] = self._floors(item, record)
        return False

    def close(self) -> None:
        for server in self._servers.values():
            server.close(lambda: self._interrupts.hurry)

    # One run ---------------------------------------------------------------------------------

    def _one(self, item: Planned) -> Finished:
        recipe = item.recipe
        environment = self._machines.environment(recipe.device)
        reference = None if recipe.is_reference else self.finished.get(recipe.reference or "")
        draft = self._draft(item, environment, reference)
        folder = self._machines.folder(recipe.device) / _folder_name(draft)
        with ExitStack() as locked:
            locked.enter_context(self._locked(locks.of_folder(folder), recipe))
            used = reference if draft.reference else None
            if used:
                locked.enter_context(self._locked(locks.of_folder(used[0]), recipe, shared=True))
            old = folders.complete(folder, draft)
            if old is not None and (not self._fresh or item.implied):
                kept = _relabelled(old, draft)
                if kept != old:
                    execution.keep(kept, folder)
                self._watcher.end(kept, folder, fresh=False)
                return folder, kept
            earlier = _readable(folder)
            device = locks.of_device(environment.device)
            locked.enter_context(self._locked(device, recipe, shared=not recipe.measure.timing))
            record = self._measured(item, draft, folder, used)
        self._watcher.end(record, folder, fresh=True)
        if record.beats_peak():
            self._machines.calibrate_again(recipe.device)
        if recipe.is_reference and earlier and record.status in folders.DONE:
            self._tell_compared(folder, earlier, record)
        return folder, record

    @contextmanager
    def _locked(self, path: Path, recipe: Recipe, shared: bool = False) -> Iterator[None]:
        def waiting(holder: str) -> None:
            self._watcher.note(f"{recipe.name}: waiting for {holder}")

        with locks.held(path, f"qbench run {recipe.name}", waiting, shared):
            yield

    def _measured(
        self, item: Planned, draft: Record, folder: Path, reference: Finished | None
    ) -> Record:
        """Run in a folder beside what is complete, and put in its place at the end."""
        recipe = item.recipe
        draft = recorder.changed(
            draft, ceilings=self._machines.ceilings(recipe.device), compiler_cache="cold"
        )
        server, why_not = self._server(item, reference)
        if why_not:
            draft = recorder.changed(
                draft,
                interleaved="no room",
                notes=[*draft.notes, f"not interleaved: {why_not}"],
            )
        record = self._attempt(item, draft, folder, reference, server)
        if server and record.status == "oom":
            # Alone it may fit: the reference's process holds memory for as long as it waits.
            server.close()
            note = "not interleaved: beside the reference's process it ran out of memory"
            draft = recorder.changed(draft, interleaved="no room", notes=[*draft.notes, note])
            record = self._attempt(item, draft, folder, reference, None)
        return record

    def _attempt(
        self,
        item: Planned,
        draft: Record,
        folder: Path,
        reference: Finished | None,
        server: ReferenceServer | None,
    ) -> Record:
        work = folders.work_folder(folder).resolve()
        job = self._job(
            item, draft, work, reference and reference[0], interleaved=server is not None
        )
        limits = Limits(draft.recipe, specs.find(draft.recipe.model).local)
        record = execution.execute(job, limits, self._watcher, server, self._interrupts)
        measure = draft.recipe.measure
        try:
            if record.status == "ok" and measure.timing and measure.warm_start and _builds(record):
                warm = execution.warm_first_call(job, limits, self._watcher, self._interrupts)
                if warm is not None:
                    record = recorder.changed(record, first_call_warm_s=warm)
                    execution.keep(record, work)
        finally:
            with self._interrupts.held():
                shutil.rmtree(work / execution.CACHE, ignore_errors=True)
                folders.settle(work, folder.resolve(), record)
        return record

    def _job(
        self,
        item: Planned,
        draft: Record,
        folder: Path,
        reference: Path | None,
        interleaved: bool = False,
    ) -> Job:
        return Job(
            draft=draft,
            folder=folder,
            cache=folder / execution.CACHE,
            prompts=item.prompts.prompts,
            reference=reference and reference.resolve(),
            interleaved=interleaved,
        )

    def _server(
        self, item: Planned, reference: Finished | None
    ) -> tuple[ReferenceServer | None, str]:
        """The reference's process for this run, and why there is none though one was asked for."""
        measure = item.recipe.measure
        asked = measure.interleave and measure.timing and not (item.implied and reference)
        if not asked or reference is None:
            return None, ""
        folder, record = reference
        known = self._servers.get(record.run)
        if known and known.failure and known.failure.out_of_memory:
            return None, "the reference's process ran out of memory beside another"
        if why_not := no_room_beside(record):
            return None, why_not
        if known is None or known.failure:
            job = self._job(item, record, folder.resolve(), None)
            job = job.model_copy(update={"cache": None})
            self._servers[record.run] = ReferenceServer(job)
        return self._servers[record.run], ""

    # Before and after a run ------------------------------------------------------------------

    def _draft(self, item: Planned, environment: Environment, reference: Finished | None) -> Record:
        recipe = item.recipe
        model = specs.find(recipe.model)
        now = datetime.now(UTC)
        fingerprints = Fingerprints(
            recipe=recipe.fingerprint(),
            settings=recipe.settings_fingerprint(),
            prompts=item.prompts.digest(),
            model=model.digest(recipe.weights),
            hardware=digest(environment.hardware()),
            software=digest(environment.software()),
            networks=_networks(recipe),
        )
        compared, notes = None, []
        if reference and reference[1].status == "ok":
            theirs = reference[1]
            if theirs.fingerprints.ranking() == fingerprints.ranking():
                compared = Reference(
                    recipe=theirs.recipe.name, run=theirs.run, outputs=theirs.outputs_sha256
                )
            else:
                notes.append(_incomparable(recipe, fingerprints, theirs))
        return Record(
            run=f"{recipe.plain_name}-{now:%Y%m%dT%H%M%S}-{os.getpid()}",
            recipe=recipe,
            overrides=item.overrides,
            started=now.isoformat(timespec="seconds"),
            environment=environment,
            fingerprints=fingerprints,
            reference=compared,
            notes=notes,
        )

    def _floors(self, item: Planned, reference: Record) -> list[Planned]:
        """The noise floors to measure before the verdicts that rest on them."""
        recipe, others = reference.recipe, [other.recipe for other in self._queue]
        if not floors.wanted(reference, others):
            return []
        missing = floors.missing(recipe, others, reference.environment.device)
        chosen, seconds = floors.affordable(missing, reference)
        if left := [floor.name for floor in missing if floor not in chosen]:
            self._watcher.note(
                f"noise floors not measured: {', '.join(left)}; all would take about "
                f"{seconds / 60:.0f} minutes: run floor for verdicts that rest on them"
            )
        return [Planned(floor, item.prompts, implied=True) for floor in chosen]

    def _tell_compared(self, folder: Path, earlier: Record, record: Record) -> None:
        """Runs that were compared with what is replaced: theirs again, or said to be not."""
        lost = []
        for path in sorted(folder.parent.glob(f"*/{store.FILE}")):
            try:
                other = store.read(path)
            except store.Unreadable:
                continue
            if other.reference is None or other.reference.run != earlier.run:
                continue
            same = other.reference.outputs and other.reference.outputs == record.outputs_sha256
            if not same:
                lost.append(other.recipe.name)
                continue
            renewed = other.reference.model_copy(update={"run": record.run})
            execution.keep(recorder.changed(other, reference=renewed), path.parent)
        named = {item.recipe.name for item in self._queue}
        if lost := [name for name in lost if name not in named]:
            self._watcher.note(
                f"{record.recipe.name} made other videos than before; compared with the earlier "
                f"ones, and to be run again for a verdict: {', '.join(lost)}"
            )


def _networks(recipe: Recipe) -> str:
    """A digest of the networks that the recipe's metrics are computed with; empty without any."""
    if recipe.weights == "random" or recipe.measure.unit == "step":
        return ""
    return networks.digest_of(recipe.quality, specs.find(recipe.model))


def _folder_name(draft: Record) -> str:
    """The recipe, and a digest of all that must be equal for its record to be used again."""
    recipe = draft.recipe
    parts = [draft.fingerprints.model_dump(), None if recipe.is_reference else recipe.reference]
    return f"{recipe.plain_name}-{digest(parts)[:8]}"


def _relabelled(old: Record, draft: Record) -> Record:
    """A complete record under the recipe as it is asked for now.

    Labels (about, noise_floor, expects ...) change nothing that was measured, and the reference may
    have been run again to the same videos.
    """
    return recorder.changed(
        old, recipe=draft.recipe, overrides=draft.overrides, reference=draft.reference
    )


def _readable(folder: Path) -> Record | None:
    try:
        return store.read(folder / store.FILE)
    except store.Unreadable:
        return None


def _builds(record: Record) -> bool:
    """Whether the first call had something to compile that a cache may keep."""
    return record.recipe.variant.compile is not None


def _incomparable(recipe: Recipe, ours: Fingerprints, theirs: Record) -> str:
    """Why a run is not compared with its reference: what differs beside the variant."""
    a, b = _settings(recipe), _settings(theirs.recipe)
    differing = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    if not differing:
        pairs = zip(ours.ranking(), theirs.fingerprints.ranking(), strict=True)
        names = ("settings", "prompts", "model", "hardware", "software", "networks")
        differing = [name for name, (x, y) in zip(names, pairs, strict=True) if x != y]
    return f"not compared with {theirs.recipe.name}, which differs in {', '.join(differing)}"


def _settings(recipe: Recipe) -> dict[str, object]:
    """The fields that runs must share to be compared, by their dotted names."""
    found: dict[str, object] = {}

    def walk(tree: dict[str, object], above: str) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                walk(value, f"{above}{name}.")
            else:
                found[above + name] = value

    walk(recipe.measured_settings(), "")
    return found
