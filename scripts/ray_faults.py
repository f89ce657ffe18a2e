"""What becomes of the runs of a sweep on Ray when its parts fail, on a real cluster of three nodes.

    python -m scripts.ray_faults [--trials 3] [--only NAME ...] [--out FILE]

As root on Linux: each node has a network namespace and a memory cgroup of its own, so that a cable
can be cut and memory can run out. Every trial starts a sweep of three runs, has the fault happen
once a run has come to its timed videos, and counts: what ended as a record, what was run again,
what is lost, what is there twice, whether the videos are those of a sweep without a fault, and what
the sweep left behind on nodes that live.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from qbench.report import tables
from qbench.results import store
from qbench.results.record import Record
from scripts import bench

NODES = ("n1", "n2", "n3")
NETWORK, PORT = "10.77.0", 6391
RECIPES = ("fp32", "int8", "fp16")
SETTINGS = [
    f"--set={one}"
    for one in (
        "generation.steps=2", "generation.frames=9", "prompts.count=2", "measure.repeats=2",
        "measure.warmup=0", "measure.interleave=false", "measure.timing=false",
        "measure.profile=false", "quality.metrics=[psnr]", "quality.trajectories=0",
    )
]  # fmt: skip
MEMORY = Path("/sys/fs/cgroup/memory")  # version 1; version 2 has its files elsewhere
ROOM_BYTES = 30_000_000  # that a node has left once something else has taken its memory
DISKS: list[Path] = []  # that were mounted
SWEEPS: list[subprocess.Popen[str]] = []  # that were started, to be ended if this program is
TRIGGER = re.compile(r"(\S+) steady.* on (\S+)$")


def shell(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Cluster:
    """A head without devices, and three nodes of one CPU each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"{NETWORK}.1:{PORT}"
        self._head: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        shell("ip", "link", "add", "qbbr", "type", "bridge")
        shell("ip", "addr", "add", f"{NETWORK}.1/24", "dev", "qbbr")
        shell("ip", "link", "set", "qbbr", "up")
        for number, name in enumerate(NODES, 2):
            shell("ip", "netns", "add", f"qb-{name}")
            shell(
                "ip",
                "link",
                "add",
                f"v-{name}",
                "type",
                "veth",
                "peer",
                "eth0",
                "netns",
                f"qb-{name}",
            )
            shell("ip", "link", "set", f"v-{name}", "master", "qbbr", "up")
            inside = ("ip", "-n", f"qb-{name}")
            shell(*inside, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            shell(*inside, "link", "set", "eth0", "up")
            shell(*inside, "link", "set", "lo", "up")
        self._head = self._ray(
            [], ["--head", f"--port={PORT}", f"--node-ip-address={NETWORK}.1", "--num-cpus=0",
                 "--include-dashboard=false"], self.folder / "head",
        )  # fmt: skip
        self.ready(0)
        for count, name in enumerate(NODES, 1):  # Ray names their files by what there is already
            self.start_node(name)
            self.ready(count)

    def start_node(self, name: str) -> None:
        group = MEMORY / f"qb-{name}"
        group.mkdir(exist_ok=True)
        number = NODES.index(name) + 2
        # Into the cgroup first: in a network namespace /sys is another.
        into = ["sh", "-c", 'echo $$ > "$0"; exec "$@"', str(group / "tasks")]
        self._ray(
            [*into, "ip", "netns", "exec", f"qb-{name}"],
            [f"--address={self.address}", f"--node-ip-address={NETWORK}.{number}", "--num-cpus=1",
             f"--node-name={name}"], self.folder / name,
        )  # fmt: skip

    def limit(self, name: str, room: int | None) -> None:
        """Let all of the node's processes together take so much more memory; null is no limit."""
        group = MEMORY / f"qb-{name}"
        most = -1
        if room is not None:
            found = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            most = int(found["total_rss"]) + int(found["total_mapped_file"]) + room
        (group / "memory.limit_in_bytes").write_text(str(most))

    def _ray(self, before: list[str], words: list[str], folder: Path) -> subprocess.Popen[bytes]:
        folder.mkdir(exist_ok=True)
        command = [*before, sys.executable, "-m", "ray.scripts.scripts", "start", *words]
        return subprocess.Popen(
            [*command, "--object-store-memory=80000000", "--disable-usage-stats", "--block"],
            env=os.environ | {"TMPDIR": str(folder)},
            stdout=(folder / "ray.log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ready(self, count: int = len(NODES), seconds: float = 90) -> None:
        """Wait until so many nodes are there."""
        code = (
            "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR', "
            "log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        )
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            done = subprocess.run(
                [sys.executable, "-c", code, self.address], capture_output=True, text=True
            )
            if done.stdout.strip() == str(count + 1):
                return
            time.sleep(1)
        logs = [path.read_text()[-800:] for path in self.folder.glob("*/ray.log")]
        raise RuntimeError("\n".join([f"nodes: {done.stdout}{done.stderr[-500:]}", *logs]))

    def processes(self, name: str) -> list[psutil.Process]:
        found = []
        for pid in shell("ip", "netns", "pids", f"qb-{name}", check=False).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def kill_node(self, name: str) -> None:
        """As when the machine loses power: everything at once."""
        for _ in range(3):
            for process in self.processes(name):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        shutil.rmtree(self.folder / name, ignore_errors=True)  # its disk is gone with it

    def cut(self, name: str, whole: bool = False) -> None:
        shell("ip", "link", "set", f"v-{name}", "up" if whole else "down")

    def left_behind(self) -> list[str]:
        """Processes of runs, and their folders, on all nodes, once they have had time to go."""
        for _ in range(40):
            found = []
            for name in NODES:
                found += [f"{name}/{p.name}" for p in (self.folder / name).glob("qbench-[0-9]*-*")]
                for process in self.processes(name):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        words = " ".join(process.cmdline())
                        if words.startswith("ray::Node") or "forkserver" in words:
                            found.append(f"{name}: {words[:60]}")
            if not found:
                return []
            time.sleep(0.25)
        return found

    def stop(self) -> None:
        for name in NODES:
            self.kill_node(name)
            shell("ip", "netns", "del", f"qb-{name}", check=False)
            shell("ip", "link", "del", f"v-{name}", check=False)
            with contextlib.suppress(OSError):
                (MEMORY / f"qb-{name}").rmdir()
        if self._head is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(self._head.pid).children(recursive=True):
                    process.kill()
            self._head.kill()
            self._head.wait()
        shell("ip", "link", "del", "qbbr", check=False)


@dataclass
class Sweep:
    """A sweep that runs: its output so far."""

    cluster: Cluster
    out: Path
    more: tuple[str, ...] = ()
    lines: list[str] = field(default_factory=list)

    def start(self) -> None:
        words = ["run", *RECIPES, *SETTINGS, *self.more, "--device=cpu", "--no-floors"]
        words += [f"--out={self.out}", f"--ray={self.cluster.address}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qbench", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        SWEEPS.append(self.process)

    def until(self, recipe: str) -> str:
        """Read on until this run has come to its timed videos; the node that it is on."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            found = TRIGGER.search(line.rstrip())
            if found and found[1] == recipe:
                return found[2]
        raise RuntimeError("the sweep ended before the fault:\n" + "\n".join(self.lines[-20:]))

    def end(self) -> int:
        assert self.process.stdout is not None
        self.lines += [line.rstrip() for line in self.process.stdout]
        return self.process.wait(timeout=400)

    def starts(self) -> Counter[str]:
        """How often a process was started for each run."""
        found = [re.search(r"(\S+) start on \S+$", line) for line in self.lines]
        return Counter(one[1] for one in found if one)


def records(out: Path) -> list[Record]:
    found, unreadable = store.read_all(store.find([out]))
    assert not unreadable, unreadable
    return [record for _, record in found]


@dataclass
class Counted:
    """The runs of a fault's trials."""

    trials: int = 0
    runs: int = 0
    at_once: int = 0  # ended as they would have without the fault
    again: int = 0  # ran twice, and then ended so
    otherwise: Counter[str] = field(default_factory=Counter)  # with a record that says why not
    later: int = 0  # by the next call of the same command
    lost: int = 0
    twice: int = 0
    other_videos: int = 0
    left: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # from the fault to the sweep's end

    def count(self, sweep: Sweep, clean: dict[str, str], later: bool = False) -> None:
        found = records(sweep.out)
        starts = sweep.starts()
        for name in RECIPES:
            mine = [record for record in found if record.recipe.name == name]
            self.runs += 1
            self.lost += not mine
            self.twice += len(mine) > 1 or starts[name] > 2
            for record in mine[:1]:
                if record.status != "ok":
                    self.otherwise[record.status] += 1
                    continue
                self.other_videos += bool(clean) and record.outputs_sha256 != clean[name]
                self.later += later
                self.again += not later and starts[name] > 1
                self.at_once += not later and starts[name] < 2


HEADS = (
    "fault", "trials", "runs", "ok at once", "run again, then ok", "another record",
    "ok by the next call", "lost", "twice", "other videos", "left behind",
)  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        others = ", ".join(f"{n} {status}" for status, n in row["otherwise"].items()) or "0"
        shown = [row[name] for name in ("fault", "trials", "runs", "at_once", "again")]
        shown += [others, *(row[name] for name in ("later", "lost", "twice", "other_videos"))]
        lines.append([*map(str, shown), str(len(row["left"]))])
    return tables.grid(HEADS, lines)


Fault = Callable[[Cluster, Sweep, str], None]


def worker_killed(cluster: Cluster, sweep: Sweep, node: str) -> None:
    """Ray's process on the node."""
    for process in cluster.processes(node):
        if process.name().startswith("ray::Node"):
            process.kill()


def run_killed(cluster: Cluster, sweep: Sweep, node: str) -> None:
    """The run's own process: what a crash in a kernel is."""
    for process in cluster.processes(node):
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = process.parent()
            if parent is not None and "forkserver" in " ".join(parent.cmdline()):
                process.kill()


def node_killed(cluster: Cluster, sweep: Sweep, node: str) -> None:
    cluster.kill_node(node)


def network_cut(cluster: Cluster, sweep: Sweep, node: str) -> None:
    cluster.cut(node)


def disk_full(cluster: Cluster, sweep: Sweep, node: str) -> None:
    """The head's: whatever it has left is taken."""
    with contextlib.suppress(OSError), (sweep.out / "filler").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


def out_of_memory(cluster: Cluster, sweep: Sweep, node: str) -> None:
    """The node's: as when another program takes it."""
    cluster.limit(node, ROOM_BYTES)


def interrupted(cluster: Cluster, sweep: Sweep, node: str) -> None:
    sweep.process.send_signal(signal.SIGINT)


def head_killed(cluster: Cluster, sweep: Sweep, node: str) -> None:
    """The sweep's own process, by a signal that nothing can hear."""
    sweep.process.kill()


def no_fault(cluster: Cluster, sweep: Sweep, node: str) -> None:
    pass


@dataclass(frozen=True)
class Kind:
    fault: Fault
    large: bool = False  # videos whose decode takes more memory than the node then has
    small_disk: bool = False
    finish: bool = False  # the same command is to complete it


FAULTS = {
    "none": Kind(no_fault),
    "worker killed": Kind(worker_killed),
    "run's process killed": Kind(run_killed),
    "node killed": Kind(node_killed),
    "network cut": Kind(network_cut),
    "out of memory": Kind(out_of_memory, large=True),
    "head's disk full": Kind(disk_full, small_disk=True, finish=True),
    "interrupted": Kind(interrupted, finish=True),
    "head killed": Kind(head_killed, finish=True),
}


def trial(
    cluster: Cluster,
    kind: Kind,
    number: int,
    scratch: Path,
    counted: Counted,
    clean: dict[str, str],
) -> None:
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if kind.small_disk:
        DISKS.append(out)
        shell("mount", "-t", "tmpfs", "-o", "size=6m", "none", str(out))
    more: tuple[str, ...] = ()
    if kind.large:
        more = ("--set=generation.height=256", "--set=generation.width=256")
    sweep = Sweep(cluster, out, more)
    sweep.start()
    recipe = RECIPES[number % len(RECIPES)]
    node = ""
    began = time.monotonic()
    if kind.fault is not no_fault:
        node = sweep.until(recipe)
        began = time.monotonic()
        kind.fault(cluster, sweep, node)
    code = sweep.end()
    counted.trials += 1
    counted.seconds.append(time.monotonic() - began)
    if kind.fault is network_cut:
        cluster.cut(node, whole=True)
        time.sleep(15)  # the node hears that it is thought dead, and ends
    if kind.fault is out_of_memory:
        cluster.limit(node, None)
    counted.left += cluster.left_behind()
    print(f"  {recipe} on {node}: exit code {code}, {counted.seconds[-1]:.0f} s", flush=True)
    for line in sweep.lines:
        if line.startswith(("note:", "qbench:")) or "Traceback" in line:
            print(f"    {line[:200]}", flush=True)
    if kind.finish:
        (out / "filler").unlink(missing_ok=True)
        first = records(out)
        print("    before:", ", ".join(f"{r.recipe.name} {r.status}" for r in first), flush=True)
        if kind.small_disk:
            shell("mount", "-o", "remount,size=64m", str(out))
        sweep = Sweep(cluster, out)
        sweep.start()
        sweep.end()
    counted.count(sweep, {} if kind.large else clean, later=kind.finish)
    if kind.small_disk:
        shell("umount", str(out))
    if kind.fault in (node_killed, network_cut):
        cluster.kill_node(node)
        cluster.start_node(node)
        cluster.ready()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(FAULTS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if os.geteuid():
        raise SystemExit("as root: network namespaces, a cgroup and a small disk are made")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32, "OMP_NUM_THREADS": "1"}
    scratch = Path(tempfile.mkdtemp(prefix="ray-faults-"))
    os.environ["TMPDIR"] = str(scratch)
    cluster = Cluster(scratch)
    rows: list[dict[str, Any]] = []
    # What a time limit sends cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cluster.start()
        clean: dict[str, str] = {}
        for name in ["none", *(name for name in asked.only or FAULTS if name != "none")]:
            print(name, flush=True)
            kind, counted = FAULTS[name], Counted()
            for number in range(asked.trials if name != "none" else 1):
                if name == "none":
                    trial(cluster, kind, number, scratch, counted, dict.fromkeys(RECIPES, ""))
                    clean = {r.recipe.name: r.outputs_sha256 for r in records(scratch / "out")}
                    assert set(clean) == set(RECIPES)
                    assert all(clean.values())
                    counted.other_videos = 0
                else:
                    trial(cluster, kind, number, scratch, counted, clean)
            rows.append({"fault": name} | vars(counted) | {"otherwise": dict(counted.otherwise)})
            print(table(rows), flush=True)
            if asked.out:
                bench.write(asked.out, "cpu", rows=rows)
    finally:
        for sweep in SWEEPS:
            sweep.kill()  # unless it has ended
        cluster.stop()
        for disk in DISKS:
            shell("umount", str(disk), check=False)
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
