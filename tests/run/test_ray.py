"""A sweep on a small Ray cluster leaves the records of one without, whatever is lost on the way."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import RECIPES, ROOT, SMALL

from qbench.errors import InputError
from qbench.pipelines import known
from qbench.recipe.schema import Recipe
from qbench.results import store
from qbench.results.record import Record
from qbench.run import (
    cluster,
    folders,
    loads,
    nodes,
    processes,
    reachable,
    recorder,
    spread,
    sweep,
)
from qbench.run.cluster import Asked
from qbench.run.events import StageEntered
from qbench.run.here import Task
from qbench.run.plan import plan

SECONDS = "seconds"  # what differs from run to run, and says nothing about what was computed
TIMES = (
    "run", "started", "ended", "first_call_s", "latency_s", "latency", "step_s", "step", "gauges",
    "ceilings", "stages", "facts", "notes", "reference",
)  # fmt: skip


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of one node with two CPUs."""
    if importlib.util.find_spec("ray") is None:  # its import would read the variables below
        pytest.skip("Ray is not installed: pip install 'qbench[ray]'")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32}
    from ray.cluster_utils import Cluster

    sizes = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=sizes)
    yield made.address
    made.shutdown()


# What is computed on the videos is not what these are about.
QUICK = {"measure.profile": "false", "quality.trajectories": "0", "quality.metrics": "[flicker]"}


def _planned(*names: str, **changes: str) -> list[sweep.Planned]:
    settings = dict(word.removeprefix("--set=").split("=", 1) for word in SMALL)
    paths = [RECIPES / f"{name}.yaml" for name in names]
    return plan(paths, settings | {"device": "cpu"} | changes)


def _measured(record: Record) -> dict[str, object]:
    """All of a record that is not a time."""
    return record.model_dump(exclude=set(TIMES))


def _records(out: Path) -> dict[str, Record]:
    found, unreadable = store.read_all(store.find([out]))
    assert not unreadable
    assert len({record.recipe.name for _, record in found}) == len(found)
    return {record.recipe.name: record for _, record in found}


def _left_behind() -> list[str]:
    """Processes and folders of runs, once they have had time to go."""
    for _ in range(50):
        own = f"qbench-{os.getpid()}-"
        folders = Path(os.environ["TMPDIR"]).glob("qbench-[0-9]*-*")
        found = [str(path) for path in folders if not path.name.startswith(own)]
        found += map(str, _seats())
        if not found:
            return []
        time.sleep(0.2)
    return found


class _Watcher(sweep.Silent):
    """Kills the process of every seat with a run once one, or a part of one, has come to a stage.

    Which of them has that one cannot be told from here. One that is idle is ready for the rest.
    """

    def __init__(self, name: str = "", stage: str = "") -> None:
        self.killed, self.notes = 0, list[str]()
        self._name, self._stage = name, stage

    def event(self, recipe: object, event: object) -> None:
        here = isinstance(event, StageEntered) and event.stage == self._stage
        if here and not self.killed and getattr(recipe, "name", "") == self._name:
            for seat in map(psutil.Process, _seats()):
                if any(map(_is_run, seat.children(recursive=True))):
                    seat.kill()
                    self.killed += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


def _seats() -> list[int]:
    """Processes of seats on this module's cluster, which is a child of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::Node"):
                found.append(process.pid)
    return found


@pytest.mark.slow
def test_records_are_those_of_a_sweep_without_ray_though_a_process_is_lost(
    address: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files travel to its node and from it, as if that had a file system of its own."""
    plain = cluster.listed
    monkeypatch.setattr(
        cluster,
        "listed",
        lambda *words: {name: (size, 0) for name, (size, _) in plain(*words).items()},
    )
    monkeypatch.setattr(cluster.Seat, "_is_near", lambda _: False)
    watcher = _Watcher("int8", "quantize")
    swept = spread.run(_planned("int8", "tensorrt"), tmp_path, watcher, Asked(address))
    assert not swept.interrupted
    assert not swept.stopped, swept.stopped
    assert watcher.killed
    ours, theirs = _records(tmp_path), _records(finished)
    assert any(note.startswith("run again: ") for note in ours["int8"].notes)
    assert {name: record.status for name, record in ours.items()} == {
        "fp32": "ok", "int8": "ok", "tensorrt": "skipped",
    }  # fmt: skip
    for name, record in ours.items():
        assert _measured(record) == _measured(theirs[name])
        assert sorted(record.stages) == sorted(theirs[name].stages)
    assert ours["int8"].reference is not None
    assert ours["int8"].reference.run == ours["fp32"].run
    names = [
        {p.relative_to(out).as_posix() for p in out.glob("*/*/**/*") if p.is_file()}
        for out in (tmp_path, finished)
    ]
    assert {n for n in names[0] if ".locks" not in n} == {n for n in names[1] if ".locks" not in n}
    again = sweep.run(_planned("int8", "tensorrt"), tmp_path, sweep.Silent())
    assert [r.run for _, r in again.finished][:2] == [ours["fp32"].run, ours["int8"].run]
    assert _left_behind() == []


class _Early(_Watcher):
    """Notes what begins and ends, and may interrupt once a part has been made ahead."""

    def __init__(self, *struck: str, interrupts: bool = False) -> None:
        super().__init__(*struck)
        self.heard, self.seats = list[str](), 0
        self._interrupts = interrupts

    def begin(self, recipe: Recipe, position: int, total: int) -> None:
        self.seats = self.seats or len(_seats())
        self.heard.append(f"begins {recipe.name}")

    def dropped(self, recipe: Recipe) -> None:
        if self._interrupts and recipe.name.startswith("int8, part"):
            raise KeyboardInterrupt

    def end(self, record: Record, path: Path, fresh: bool) -> None:
        self.heard.append(f"{record.recipe.name} {record.status}")

    def in_order(self, *told: str) -> bool:
        """Whether the first of what begins with each of these came in this order."""
        first = [next(i for i, one in enumerate(self.heard) if one.startswith(t)) for t in told]
        return first == sorted(first)


@pytest.mark.slow
def test_videos_made_in_parts_and_ahead_are_those_of_one_device_though_a_part_is_lost(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a reference, and of what waits for it meanwhile; after a sweep that is interrupted.

    Called from another folder than the cluster was started in, with paths relative to it.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loads, "FEWEST", 2)  # the two batches past the timed video are two parts
    Path("network").symlink_to(known.BUNDLED / "tiny-clip")
    many = QUICK | {"prompts.count": "5", "quality.batch": "2", "generation.frames": "9"}
    many |= {"quality.metrics": "[psnr, clip_score]", "quality.clip": "network"}
    planned, out = _planned("fp32", "int8", **many, **{"measure.timing": "false"}), Path("ray")
    interrupted = spread.run(planned, out, _Early(interrupts=True), Asked(address))
    assert interrupted.interrupted
    assert list(tmp_path.rglob("*.parts")) == []
    assert "int8" not in _records(out)
    assert _left_behind() == []
    watcher = _Early("fp32, part 2/2", "more videos")
    swept = spread.run(planned, out, watcher, Asked(address), fresh=True)
    assert [record.status for _, record in swept.finished] == ["ok", "ok"]
    assert watcher.seats == 2  # both import what runs need while the first tells what it is
    assert watcher.killed
    assert watcher.heard.count("begins fp32, part 2/2") == 2
    assert watcher.in_order("begins fp32", "begins int8, part", "fp32 ok", "int8 ok")
    assert list(tmp_path.rglob("*.parts")) == []
    sweep.run(planned, Path("plain"), sweep.Silent())
    ours, theirs = (_records(Path(name)) for name in ("ray", "plain"))
    for name, record in ours.items():
        assert record.videos == 5
        assert record.outputs_sha256 == theirs[name].outputs_sha256
        assert _measured(record) == _measured(theirs[name])
    assert ours["int8"].reference is not None
    assert ours["int8"].reference.run == ours["fp32"].run


@pytest.mark.slow
def test_cluster_of_a_killed_sweep_leaves_a_folder_that_the_next_one_removes(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, signal; from qbench.run.cluster import Asked, Cluster\n"
        "Cluster(Asked('local')); os.kill(os.getpid(), signal.SIGKILL)"
    )
    processes.prepare()  # this process has its own folder, or its first would lie in that one
    short = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))  # Ray's sockets lie in it
    variables = os.environ | {"TMPDIR": str(short)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables)
    assert done.returncode == -signal.SIGKILL
    assert list(short.glob("qbench-*"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    for _ in range(100):
        processes.prepare()
        if not (
            left := [one for one in short.glob("qbench-*") if str(os.getpid()) not in one.name]
        ):
            break
        time.sleep(0.2)  # what is left of the cluster still writes
    assert left == []
    shutil.rmtree(short)


@pytest.mark.slow
def test_part_whose_process_is_killed_says_so_and_not_what_a_library_said_last(
    finished: Path,
) -> None:
    (path,) = finished.glob("*/fp32-*/record.json")
    draft = recorder.changed(store.read(path), status="running", reason="")
    node = nodes.Node((), Path.cwd())
    killed, last = 0, None
    for last in node.part(Task(draft, ("a ball",) * 17), 0, 1):
        if isinstance(last, nodes.Heard) and not killed:
            stages = {event.stage for event in last.events if isinstance(event, StageEntered)}
            if "more videos" in stages:
                for process in filter(_is_run, psutil.Process().children(recursive=True)):
                    process.kill()
                    killed += 1
    assert killed
    assert isinstance(last, nodes.Done)
    assert last.failed.startswith("stage more videos: the process died of SIGKILL")


def test_folder_of_a_process_stays_when_it_takes_another_seat() -> None:
    code = (
        "import time; from pathlib import Path; from qbench.run import nodes\n"
        "first, second = (nodes.Node((), Path.cwd()) for _ in range(2))\n"
        "time.sleep(1)  # what removes folders of processes that are gone looks at once\n"
        "print(first._scratch.is_dir(), second._scratch.is_dir(), second._scratch)"
    )
    short = tempfile.mkdtemp(prefix="r-", dir="/tmp")  # multiprocessing's sockets lie in it
    variables = os.environ | {"TMPDIR": short}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    *there, folder = done.stdout.split() or [""]
    assert there == ["True", "True"], done.stderr
    for _ in range(50):
        if not Path(folder).exists():
            shutil.rmtree(short)
            return
        time.sleep(0.1)
    pytest.fail("a process that is gone has left its folder")


def _is_run(process: psutil.Process) -> bool:
    """Whether the process is one of a run, which writes to its log."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{process.pid}/fd/1").endswith(folders.LOG)
    return False


@pytest.mark.slow
def test_an_interrupt_leaves_a_record_and_nothing_else(address: str, tmp_path: Path) -> None:
    words = [
        "run",
        str(RECIPES / "fp32.yaml"),
        *SMALL,
        *(f"--set={name}={value}" for name, value in QUICK.items()),
        "--device=cpu",
        f"--out={tmp_path}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "qbench", *words, f"--ray={address}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "fp32 quantize" in line:
            process.send_signal(signal.SIGINT)
            break
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    record = _records(tmp_path)["fp32"]
    assert record.status == "interrupted"
    assert record.files == {}  # its log was the node's
    assert "log:" not in out
    assert "Traceback" not in out
    assert _left_behind() == []


def test_what_cannot_be_is_said_in_one_line(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = _planned("fp32")
    with socket.create_server(("127.0.0.1", 0)) as other, monkeypatch.context() as patched:
        patched.setattr(reachable, "BEGIN_S", 0.2)
        silent = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(InputError, match="no Ray cluster's head"):
            spread.run(planned, tmp_path, sweep.Silent(), Asked(silent))
    for asked, says in (
        (Asked(address, ("H1000",)), "no node has it"),
        (Asked("127.0.0.1:1"), "no cluster answers there"),
        (Asked("nowhere"), "HOST:PORT"),
        (Asked("ray://here:10001"), "on a machine of the cluster"),
    ):
        with pytest.raises(InputError, match=says):
            spread.run(planned, tmp_path, sweep.Silent(), asked)
    on_gpus = _planned("fp32", device="cuda")
    with pytest.raises(InputError, match="GPU"):
        spread.run(on_gpus, tmp_path, sweep.Silent(), Asked(address))
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() < 50


def test_without_its_token_a_cluster_refuses_in_one_line(address: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qbench", "run", "fp32", f"--ray={address}"]
    plain = {name: value for name, value in os.environ.items() if "RAY_AUTH" not in name}
    plain |= {"HOME": str(tmp_path), "RAY_NUM_REDIS_GET_RETRIES": "3"}
    for token in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "1" * 32}):
        done = subprocess.run(
            [*command, f"--out={tmp_path}/out"],
            cwd=ROOT,
            env=plain | token,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert "another token" in line
        assert "RAY_AUTH_TOKEN" in line


def test_without_ray_it_is_said_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('no ray')\n")
    command = [
        sys.executable,
        "-m",
        "qbench",
        "run",
        "fp32",
        "--ray=local",
        f"--out={tmp_path}/out",
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "qbench: --ray: Ray is not installed: pip install 'qbench[ray]'"
    ]
