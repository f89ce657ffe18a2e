"""Many recipes, one after the other: the reference first, each in a process of its own.

A crash, an out-of-memory, a time-out or an error becomes a record with a status and a reason, and
the sweep goes on. What is already complete for the same fingerprints is not run again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
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
from qbench.run.execution import Stopped
from qbench.run.here import Finished, Here, Task, locked
from qbench.run.interrupts import Interrupts
from qbench.run.plan import Planned, differing_settings, settings_of


class Watcher(Protocol):
    """Who is told how the sweep gets on; see `progress`."""

    def begin(self, recipe: Recipe, position: int, total: int) -> None: ...
    def event(self, recipe: Recipe, event: Event) -> None: ...
    def note(self, text: str) -> None: ...
    def dropped(self, recipe: Recipe) -> None:
        """What has begun comes to no end of its own: a part of a run, or a run that is lost."""
        ...

    def end(self, record: Record, path: Path, fresh: bool) -> None: ...


class Silent:
    """A watcher that says nothing."""

    def begin(self, recipe: Recipe, position: int, total: int) -> None: ...
    def event(self, recipe: Recipe, event: Event) -> None: ...
    def note(self, text: str) -> None: ...
    def dropped(self, recipe: Recipe) -> None: ...
    def end(self, record: Record, path: Path, fresh: bool) -> None: ...


@dataclass(frozen=True)
class Swept:
    """Each recipe's record with its folder, in order, and whether the sweep came to its end."""

    finished: list[Finished]
    interrupted: bool = False
    stopped: str = ""  # why it could not go on


class Place(Protocol):
    """A device that runs happen on, of this machine or of another."""

    def environment(self, device: str) -> Environment: ...

    def run(self, task: Task, work: Path) -> Record:
        """Run, and leave all of the run in this folder, its record included."""
        ...


def run(
    planned: list[Planned],
    out: Path,
    watcher: Watcher,
    fresh: bool = False,
    floors_s: float = 0.0,
) -> Swept:
    """Run what is not complete.

    fresh: the recipes that were named run again; what was complete is replaced once they are.
    floors_s: where verdicts will be given, the floors that are missing are measured too, as many
        as take no more than these seconds together for each reference.
    """
    with Interrupts() as interrupts:
        sweep = Sweep(list(planned), out, watcher, fresh, floors_s, interrupts)
        here = Here(watcher, interrupts)

        def everything() -> bool:
            out.mkdir(parents=True, exist_ok=True)
            processes.prepare()
            return _one_by_one(sweep, here, watcher)

        return carry_out(sweep, interrupts, everything, here.close)


def carry_out(
    sweep: Sweep, interrupts: Interrupts, everything: Callable[[], bool], close: Callable[[], None]
) -> Swept:
    """Run the sweep, and say what came of it, however it ended.

    everything: runs it; returns whether the user interrupted it. close: ends what is left running.
    """
    interrupted, stopped = False, ""
    try:
        interrupted = everything()
    except KeyboardInterrupt:
        interrupted = True
    except Stopped as error:
        stopped = str(error)
    except OSError as error:
        if error.filename is None or not Path(error.filename).is_relative_to(sweep.out):
            raise
        stopped = f"{error.filename}: {error.strerror}"
    finally:
        with interrupts.held():
            close()
    order = {sweep.key(item.recipe): number for number, item in enumerate(sweep.queue)}
    finished = sorted(sweep.finished.items(), key=lambda one: order[one[0]])
    return Swept([one for _, one in finished], interrupted, stopped)


def _one_by_one(sweep: Sweep, place: Place, watcher: Watcher) -> bool:
    """Run the queue. Whether the user interrupted it."""
    position = 0
    while position < len(sweep.queue):
        item = sweep.queue[position]
        position += 1
        watcher.begin(item.recipe, position, len(sweep.queue))
        _, record = sweep.one(item, place)
        if record.status == "interrupted":
            return True
        sweep.queue[position:position] = sweep.floors(item, record)
    return False


class Sweep:
    """What the runs of a sweep share, wherever each of them happens."""

    def __init__(
        self,
        queue: list[Planned],
        out: Path,
        watcher: Watcher,
        fresh: bool,
        floors_s: float,
        interrupts: Interrupts,
    ) -> None:
        self.queue, self.out = queue, out
        self._watcher, self._interrupts = watcher, interrupts
        self._fresh, self._floors_s = fresh, floors_s
        self.finished: dict[str, Finished] = {}  # by their keys
        self._several = len({settings_of(item.recipe) for item in queue}) > 1

    def key(self, recipe: Recipe, name: str = "") -> str:
        """What tells a run from all others of the sweep: its name, where recipes share settings.

        Those of several models may each have a reference of one name, and floors of it.
        name: of another recipe that is measured as this one, such as its reference.
        """
        called = name or recipe.name
        return f"{called} ({recipe.model}, {settings_of(recipe)[:4]})" if self._several else called

    def _compared(self, recipe: Recipe) -> Finished | None:
        """The run of what a recipe is compared with; one of its name tells why there is none."""
        if recipe.is_reference or recipe.reference is None:
            return None
        if same := self.finished.get(self.key(recipe, recipe.reference)):
            return same
        named = [one for one in self.finished.values() if one[1].recipe.name == recipe.reference]
        return named[0] if named else None

    def one(self, item: Planned, place: Place) -> Finished:
        """The run of this item, complete already or run now in that place."""
        folder, record = self.finished[self.key(item.recipe)] = self._one(item, place)
        return folder, record

    def complete(self, item: Planned, environment: Environment) -> bool:
        """Whether there is a finished run of it from such a machine, be it of any reference."""
        return self._complete(self._draft(item, environment, None))

    def _complete(self, draft: Record) -> bool:
        record = _readable(self._folder(draft))
        return record is not None and record.status in folders.DONE

    def ahead(
        self, item: Planned, environment: Environment, held: ExitStack
    ) -> tuple[Task, Path] | None:
        """What videos can be made of before the reference of this item has ended, and where.

        They do not depend on it. None where the run is complete, or another sweep's. held: has the
        lock of the run's folder then, until which is let go nothing else may write there.
        """
        draft = self._draft(item, environment, None)
        if self._complete(draft) and (not self._fresh or item.implied):
            return None
        folder = self._folder(draft)
        try:
            lock, holder = locks.of_folder(folder), f"qbench run {item.recipe.name}"
            held.enter_context(locks.held(lock, holder, _refused))
        except BlockingIOError:
            return None
        made = folders.parts_folder(folder.resolve())
        shutil.rmtree(made, ignore_errors=True)
        return Task(draft, tuple(item.prompts.prompts)), made

    def _folder(self, draft: Record) -> Path:
        return self.out / draft.environment.machine() / _folder_name(draft)

    def _one(self, item: Planned, place: Place) -> Finished:
        recipe, watcher = item.recipe, self._watcher
        reference = self._compared(recipe)
        draft = self._draft(item, place.environment(recipe.device), reference)
        folder = self._folder(draft)
        with ExitStack() as held:
            held.enter_context(locked(locks.of_folder(folder), recipe, watcher))
            used = reference if draft.reference else None
            if used:
                held.enter_context(locked(locks.of_folder(used[0]), recipe, watcher, shared=True))
            old = folders.complete(folder, draft)
            if old is not None and (not self._fresh or item.implied):
                kept = _relabelled(old, draft)
                if kept != old:
                    execution.keep(kept, folder)
                watcher.end(kept, folder, fresh=False)
                return folder, kept
            earlier = _readable(folder)
            measure = recipe.measure
            paired = measure.interleave and measure.timing and not (item.implied and reference)
            task = Task(draft, tuple(item.prompts.prompts), used, paired and used is not None)
            record = self._settled(task, place, folder)
        watcher.end(record, folder, fresh=True)
        if recipe.is_reference and earlier and record.status in folders.DONE:
            self._tell_compared(folder, earlier, record)
        return folder, record

    def _settled(self, task: Task, place: Place, folder: Path) -> Record:
        """Run in a folder beside what is complete, and put in its place at the end."""
        work = folders.work_folder(folder).resolve()
        try:
            return place.run(task, work)
        finally:
            with self._interrupts.held():
                folders.settle(work, folder.resolve())

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
            run=f"{recipe.plain_name}-{now:%Y%m%dT%H%M%S.%f}-{os.getpid()}",
            recipe=recipe,
            overrides=item.overrides,
            started=now.isoformat(timespec="seconds"),
            environment=environment,
            fingerprints=fingerprints,
            reference=compared,
            notes=notes,
        )

    def floors(self, item: Planned, reference: Record) -> list[Planned]:
        """The noise floors to measure before the verdicts that rest on them."""
        if not (self._floors_s and item.recipe.is_reference and reference.status == "ok"):
            return []
        recipe, settings = reference.recipe, settings_of(item.recipe)
        others = [one.recipe for one in self.queue if settings_of(one.recipe) == settings]
        if not floors.wanted(reference, others):
            return []
        missing = floors.missing(recipe, others, reference.environment.device)
        chosen, seconds = floors.affordable(missing, reference, self._floors_s)
        if left := [floor.name for floor in missing if floor not in chosen]:
            self._watcher.note(
                f"noise floors not measured: {', '.join(left)}; all would take about "
                f"{seconds / 60:.0f} minutes: --floors measures them, for verdicts to rest on"
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
                lost.append(other.recipe)
                continue
            renewed = other.reference.model_copy(update={"run": record.run})
            execution.keep(recorder.changed(other, reference=renewed), path.parent)
        named = {self.key(item.recipe) for item in self.queue}
        if names := [other.name for other in lost if self.key(other) not in named]:
            self._watcher.note(
                f"{record.recipe.name} made other videos than before; compared with the earlier "
                f"ones, and to be run again for a verdict: {', '.join(names)}"
            )


def _refused(holder: str) -> None:
    raise BlockingIOError(holder)


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


def _incomparable(recipe: Recipe, ours: Fingerprints, theirs: Record) -> str:
    """Why a run is not compared with its reference: what differs beside the variant."""
    differing = differing_settings(recipe, theirs.recipe)
    if not differing:
        pairs = zip(ours.ranking(), theirs.fingerprints.ranking(), strict=True)
        names = ("settings", "prompts", "model", "hardware", "software", "networks")
        differing = ", ".join(name for name, (x, y) in zip(names, pairs, strict=True) if x != y)
    return f"not compared with {theirs.recipe.name}, which differs in {differing}"
