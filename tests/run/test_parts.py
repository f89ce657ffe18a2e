"""The parts of a run and of a sweep that need no model: records, folders, locks, limits, floors."""

from __future__ import annotations

import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import RECIPES, ROOT
from pydantic import ValidationError
from rich.console import Console

from qbench import cache
from qbench.errors import InputError, Unsupported
from qbench.meters import environment
from qbench.progress import Progress
from qbench.recipe import files
from qbench.results import store
from qbench.results.record import Record
from qbench.run import (
    events,
    failures,
    floors,
    folders,
    here,
    locks,
    machines,
    processes,
    recorder,
    samples,
    sweep,
    there,
)
from qbench.run.execution import Limits
from qbench.run.interrupts import SIGNALS, Interrupts
from qbench.run.messages import Message, Working
from qbench.run.timing import Turns


@pytest.fixture
def record(finished: Path) -> Record:
    (path,) = finished.glob("*/fp32-*/record.json")
    return store.read(path)


def test_without_a_codec_a_run_goes_on_and_has_no_videos_to_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = torch.rand(2, 3, 3, 16, 16)
    assert samples.save_videos(frames, tmp_path / "videos")
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 2
    monkeypatch.setitem(sys.modules, "av", None)
    assert not samples.save_videos(frames, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_unknown_field_and_wrong_status_are_errors_where_they_are_made(record: Record) -> None:
    recording = recorder.Recorder(record)
    with pytest.raises(TypeError, match="no field latency_ms"):
        recording.put(latency_ms=[1.0])
    with pytest.raises(ValidationError, match="status"):
        recorder.changed(record, status="done")
    recording.note("said")
    assert recording.record.notes == [*record.notes, "said"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unsupported("needs a GPU"), "skipped"),
        (InputError("model x: no such file"), "failed"),
        (OSError("model.safetensors is truncated"), "failed"),
        (MemoryError(), "oom"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "oom"),
    ],
)
def test_only_what_the_machine_cannot_do_is_skipped(error: Exception, status: str) -> None:
    assert failures.understood(error).status == status


def test_progress_shows_what_every_event_says(record: Record, tmp_path: Path) -> None:
    shown = Progress(Console(file=(tmp_path / "out").open("w"), width=200))
    shown.begin(record.recipe, 1, 1)
    for event in (
        events.WorkPlanned(8, 3 * 2**30),
        events.StageEntered("steady", 2, 3, "step"),
        events.StepsDone(4),
    ):
        shown.event(record.recipe, pickle.loads(pickle.dumps(event)))
    shown.note("waiting for [red] (process 7)")
    text = (tmp_path / "out").read_text()
    assert "3 GiB on disk" in text
    assert "steady: step 2/3" in text
    assert "step 4/8" in text
    assert "waiting for [red] (process 7)" in text


class _Head:
    """Who is told, in place of a sweep."""

    def __init__(self) -> None:
        self.watcher, self.stopping = sweep.Silent(), False
        self.told: list[Message] = []

    def tell(self, message: Message) -> None:
        self.told.append(message)

    def lost_before(self, name: str) -> str | None:
        return None


def test_a_run_has_started_once_a_step_is_behind_it(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it loads, builds or compiles first would else count as its work, and each part's."""
    head, times = _Head(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[-1])
    relay = there.Relay(head, "int8")
    planned = [
        events.Placed("a node"),
        events.StageEntered("load"),
        events.WorkPlanned(8),
        events.StageEntered("first call"),
    ]
    for event in planned:
        times.append(times[-1] + 4.0)
        relay.event(record.recipe, event)
    assert not head.told
    for _ in range(2):
        times.append(times[-1] + 1.0)
        relay.event(record.recipe, events.StepsDone())
    assert head.told == [Working("int8", took=9.0)]  # since the first word of its own process


# Folders -----------------------------------------------------------------------------------------


def test_complete_run_stays_until_another_complete_one_replaces_it(
    record: Record, tmp_path: Path
) -> None:
    folder = tmp_path / "fp32-1"
    store.write(record, folder)
    work = folders.work_folder(folder)
    assert work != folder
    (work / folders.LOG).write_text("what went wrong")
    failed = recorder.changed(record, run="second", status="failed", reason="no")
    store.write(failed, work)
    folders.settle(work, folder)
    assert store.read(folder / store.FILE).run == record.run
    assert (folder / folders.FAILED_LOG).read_text() == "what went wrong"
    work = folders.work_folder(folder)
    third = recorder.changed(record, run="third")
    store.write(third, work)
    folders.settle(work, folder)
    assert store.read(folder / store.FILE).run == "third"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["fp32-1"]


def test_replacement_in_the_middle_of_which_the_machine_went_down_is_finished(
    record: Record, tmp_path: Path
) -> None:
    folder = tmp_path / "fp32-1"
    store.write(record, tmp_path / ".fp32-1.old")
    store.write(recorder.changed(record, run="newer"), tmp_path / ".fp32-1.new")
    found = folders.complete(folder, recorder.changed(record, videos=0, status="running"))
    assert found is None  # its videos are not there
    assert store.read(folder / store.FILE).run == "newer"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["fp32-1"]


def test_reference_whose_videos_are_not_its_own_is_made_anew(
    finished: Path, tmp_path: Path
) -> None:
    (source,) = finished.glob("*/fp32-*")
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    whole = store.read(folder / store.FILE)
    assert whole.outputs_sha256
    assert folders.complete(folder, whole) == whole
    other, kept = sorted((folder / "outputs").glob("*.safetensors"))
    shutil.copy(kept, other)  # another video under its name
    assert "not those" in folders.damage(folder, whole)
    assert folders.complete(folder, whole) is None
    other.unlink()
    assert "missing" in folders.damage(folder, whole)


def test_run_whose_reference_died_is_not_complete(record: Record, tmp_path: Path) -> None:
    store.write(recorder.changed(record, interleaved="reference died", videos=0), tmp_path)
    assert folders.complete(tmp_path, record) is None


def test_digest_is_of_the_whole_file_and_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"\0" * 100_000_000)  # larger than what was once sampled
    before = cache.file_digest(path)
    with path.open("r+b") as file:
        file.seek(70_000_001)
        file.write(b"\1")
    assert cache.file_digest(path) != before


# Locks, interrupts, limits -----------------------------------------------------------------------


def test_second_waits_for_a_lock_and_says_who_holds_it(tmp_path: Path) -> None:
    path, told, entered = tmp_path / "locks" / "a", [], threading.Event()

    def second() -> None:
        with locks.held(path, "the second", told.append):
            entered.set()

    with locks.held(path, "qbench run fp32", lambda _: None):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(3 * locks.EVERY_S)
        assert not entered.is_set()
    thread.join(30)
    assert entered.is_set()
    assert told == [f"qbench run fp32 (process {os.getpid()})"]
    with (
        locks.held(path, "one", lambda _: None, shared=True),
        locks.held(path, "two", lambda _: None, shared=True),
    ):
        pass


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals that are not ignored, as they would be where the tests run under nohup."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_interrupt_waits_for_what_is_being_written_and_comes_once(heard: None) -> None:
    written: list[bool] = []
    before = signal.getsignal(signal.SIGHUP)
    with Interrupts() as interrupts:

        def write() -> None:
            with interrupts.held():
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
                written.append(True)

        with pytest.raises(KeyboardInterrupt):
            write()
        assert written
        assert interrupts.hurry
        os.kill(os.getpid(), signal.SIGTERM)  # nothing more than haste
        time.sleep(0.01)
    assert signal.getsignal(signal.SIGHUP) == before


@pytest.mark.parametrize("seconds", ["30000000.0", "0.001"])
def test_time_limits_of_any_size_are_waited_for(seconds: str) -> None:
    recipe = files.load(RECIPES / "fp32.yaml", {"measure.timeout_s": seconds})
    limits = Limits(recipe, local=True)
    time.sleep(0.002)
    assert (limits.deadline() < time.monotonic()) == (seconds == "0.001")
    with pytest.raises(InputError, match="timeout_s"):
        files.load(RECIPES / "fp32.yaml", {"measure.timeout_s": ".inf"})


def test_loading_has_a_limit_of_its_own_for_models_in_folders() -> None:
    recipe = files.load(RECIPES / "fp32.yaml", {"measure.load_timeout_s": "0.001"})
    for local in (True, False):
        limits = Limits(recipe, local)
        limits.enter("load")
        time.sleep(0.002)
        assert (limits.deadline() < time.monotonic()) == local
        limits.enter("quantize")
        assert limits.deadline() > time.monotonic()


def test_current_folder_is_no_place_to_import_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert processes.safe_path(["", str(tmp_path), "/usr/lib"]) == ["/usr/lib"]


def test_what_is_forked_from_finds_a_qbench_that_is_not_installed(tmp_path: Path) -> None:
    """Run from a checkout by `python -m qbench`: without it every run imports all anew."""
    (tmp_path / "qbench").symlink_to(ROOT / "qbench")
    code = (
        "import os, subprocess, sys\n"
        "from qbench.run.processes import _as_program\n"
        "ask = [sys.executable, '-S', '-c', 'import qbench.run; print(qbench.__file__)']\n"
        "with _as_program():\n"
        "    print(subprocess.run(ask, capture_output=True, text=True).stdout.strip())\n"
        "print(os.environ.get('PYTHONPATH'), os.environ.get('PYTHONSAFEPATH'))\n"
    )
    packages = sysconfig.get_path("purelib")  # but not what its .pth files add
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": packages},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        str(tmp_path / "qbench" / "__init__.py"), f"{packages} None",
    ], done.stderr  # fmt: skip


def test_environment_that_the_sweep_has_read_is_not_read_by_each_of_its_seats(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(device: str) -> environment.Environment:
        raise AssertionError(device)

    (path,) = finished.glob("*/tensorrt-*/record.json")
    draft = recorder.changed(store.read(path), status="running", reason="")
    monkeypatch.setattr(machines, "read_environment", refuse)
    place = here.Here(sweep.Silent(), Interrupts())
    assert place.run(here.Task(draft, ("a cat",)), tmp_path).status == "skipped"


# What is compared with what ----------------------------------------------------------------------


def test_who_goes_first_alternates_so_that_a_steady_drift_cancels(record: Record) -> None:
    """Each unit takes 1 % longer than the one before it, whosever it is: the truth is 1.0."""
    taken: list[str] = []

    class Machine:
        def emit(self, event: events.Event) -> None: ...
        def next_turn(self) -> int:
            raise AssertionError

        def reference_turn(self, number: int) -> float:
            return unit("reference")

    def unit(who: str) -> float:
        taken.append(who)
        return 1.01 ** len(taken)

    class Session:
        link = Machine()
        recorder = recorder.Recorder(record)
        recipe = record.recipe

        class job:
            interleaved = True

    turns = Turns(Session())  # type: ignore[arg-type]
    own = []
    for i in range(10):
        turns.before(i, 0)
        own.append(unit("own"))
        turns.after(i, 0)
    assert taken[:4] == ["reference", "own", "own", "reference"]
    pairs = turns.pairs(own)
    assert pairs.speed_up is not None
    assert math.isclose(pairs.speed_up.value, 1.0, abs_tol=1e-3)


def test_missing_floors_are_another_seed_another_kernel_and_compiled(record: Record) -> None:
    reference, variant = (files.load(RECIPES / f"{name}.yaml") for name in ("fp32", "int8"))
    seed = files.load(RECIPES / "floor" / "seed.yaml")
    many = record.model_copy(update={"recipe": reference, "videos": 12})
    assert floors.wanted(many, [reference, variant])
    assert not floors.wanted(many, [reference, seed])
    assert not floors.wanted(record, [variant])  # of two videos
    made = floors.missing(reference, [variant, seed], "cuda")
    shipped = [files.load(RECIPES / "floor" / f"{name}.yaml") for name in ("kernel", "compiled")]
    assert [f.fingerprint() for f in made] == [f.fingerprint() for f in shipped]
    assert [f.name for f in made] == [f.name for f in shipped]


def test_floors_that_would_take_long_are_not_run_unasked(record: Record) -> None:
    missing = floors.missing(record.recipe, [], "cuda")
    assert floors.affordable(missing, record)[0] == missing
    assert record.latency is not None
    slow = record.latency.model_copy(update={"median": 120.0})
    chosen, seconds = floors.affordable(missing, record.model_copy(update={"latency": slow}))
    assert [floor.name for floor in chosen] == [missing[0].name]
    assert seconds > floors.LIMIT_S
    slower = record.model_copy(update={"latency": slow})
    assert floors.affordable(missing, slower, math.inf) == (missing, seconds)  # asked for


def test_reference_runs_beside_a_variant_where_memory_has_room_for_two(record: Record) -> None:
    assert machines.no_room_beside(record) == ""
    huge = {
        name: stage.model_copy(
            update={"peak": stage.peak.model_copy(update={"resident_bytes": 2**60})}
        )
        for name, stage in record.stages.items()
    }
    assert "are more than" in machines.no_room_beside(record.model_copy(update={"stages": huge}))


def test_software_is_other_where_instructions_threads_or_code_are(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    read = environment.read("cpu")
    assert read.variables["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert "TORCHINDUCTOR_CACHE_DIR" not in read.variables
    assert read.code == record.environment.code
    plain = read.model_copy(update={"variables": {}})
    assert read.software() != plain.software()
    assert plain.software() != plain.model_copy(update={"code": "other"}).software()


def test_results_that_a_full_disk_does_not_take_name_that_disk(tmp_path: Path) -> None:
    """Of a move from a node's disk to the head's it was the node's file that was named."""
    published = ROOT / "results" / "published" / "amd-epyc-2t"
    draft = store.read_all(store.find([published]))[0][0][1]
    source, target = tmp_path / "video.safetensors", tmp_path / "head.part"
    source.write_bytes(bytes(8192))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as full:
            shutil.copyfile(source, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    work = tmp_path / "run"
    record = there._not_kept(here.Task(draft, ()), work, "quality", full.value)
    assert record.reason == f"its results could not be kept: {target}: File too large"
    assert [path.name for path in work.iterdir()] == [store.FILE]
