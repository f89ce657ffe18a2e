"""Time and peak memory of commands over many records: copies of real records, varied.

python -m scripts.bench_report RECORDS [--n 10000] [--command report] [--again] [--json FILE]

Copies are of recipes of their own, the longest table that so many records can make; with `--again`,
and for `history` and `compare`, they are later runs of the same recipes, as they gather over the
years. Each command runs twice: cold, with nothing kept of the records, and warm. What `--json`
names gets a row for each, beside those that it has. Copies are made in `TMPDIR`, which a slow disk
should not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from qbench.results import store
from qbench.results.record import Record
from qbench.run import machines
from scripts import bench

SERIES = ("history", "compare")
EACH = 10  # sweeps between two states of the source tree


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, help="folder with at least one finished run")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--command", choices=("report", "power", *SERIES), default="report")
    parser.add_argument("--again", action="store_true", help="later runs of the same recipes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found, _ = store.read_all(store.find([arguments.records]))
    sound = [record for _, record in found if record.status == "ok"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vary = again if arguments.again or arguments.command in SERIES else apart
        halves = arguments.command == "compare"
        write_copies(sound, arguments.n, folder / "runs", vary, halves)
        places = [folder / "runs" / half for half in ("before", "after")]
        words = [str(place) for place in places] if halves else [str(folder / "runs")]
        if arguments.command == "report":
            words.append(f"--out={folder / 'out'}")
        (folder / "cache").mkdir()
        kind = "runs of the same recipes" if vary is again else "recipes"
        print(f"{arguments.command} of {arguments.n} {kind}, start of the process included:")
        for state in ("cold", "warm"):
            took = _timed([arguments.command, *words], folder / "cache")
            print(
                f"  {state}: {took['seconds']:.1f} s ({took['processor_s']:.1f} s of processor "
                f"time), {took['peak_bytes'] / 2**20:.0f} MiB at the peak",
                flush=True,
            )
            if arguments.json:
                same = "-again" if vary is again else ""
                case = f"{arguments.command}{same}-{arguments.n}-{state}"
                _keep({"case": case, **took}, arguments.json)


def _keep(row: dict[str, object], path: Path) -> None:
    """Add the row to the file, in place of one of the same case."""
    cpu = machines.read_environment("cpu")
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [*(one for one in rows if one["case"] != row["case"]), row]
    made = {"machine": cpu.device_name, "cores": os.cpu_count(), "python": cpu.python, "rows": rows}
    bench.save(path, made)


def _timed(words: list[str], cache: Path) -> dict[str, float]:
    """The command's time and peak memory, of the largest of its processes."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "qbench", *words],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}")
    return {
        "seconds": seconds,
        "processor_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


Facts = dict[str, object]
Vary = Callable[[Facts, int, int, random.Random], None]


def write_copies(sound: list[Record], n: int, folder: Path, vary: Vary, halves: bool) -> None:
    """The records in turn, each in a folder of its own. halves: the first half below `before`, the
    others below `after`.
    """
    rng = random.Random(0)
    texts = [record.model_dump_json() for record in sound]
    for i in range(n):
        facts = json.loads(texts[i % len(texts)])
        if i >= len(texts):
            vary(facts, i, i // len(texts), rng)
        half = ("before", "after")[2 * i >= n] if halves else ""
        (folder / half / str(i)).mkdir(parents=True)
        (folder / half / str(i) / store.FILE).write_text(json.dumps(facts), encoding="utf-8")


def apart(facts: Facts, i: int, sweep: int, rng: random.Random) -> None:
    """A recipe of its own, by its name and one seed, with other latencies.

    The first copy of each reference keeps its name, so that the others are compared with it.
    """
    facts["run"] = f"{facts['run']}-{i}"
    recipe = _inner(facts, "recipe")
    recipe["name"] = f"{recipe['name']}-{i}"
    _inner(recipe, "variant")["seed_offset"] = i
    _slowed(facts, rng.uniform(0.5, 2.0))


def again(facts: Facts, i: int, sweep: int, rng: random.Random) -> None:
    """The same recipe in a later sweep, compared with the reference of that sweep."""
    facts["run"] = f"{facts['run']}-{sweep}"
    if facts["reference"]:
        reference = _inner(facts, "reference")
        reference["run"] = f"{reference['run']}-{sweep}"
    days = 365 + sweep
    facts["started"] = f"{2027 + days // 336}-{days // 28 % 12 + 1:02d}-{days % 28 + 1:02d}"
    _inner(facts, "environment")["commit"] = f"{sweep // EACH:012x}"
    _slowed(facts, rng.uniform(0.98, 1.02))


def _inner(facts: Facts, name: str) -> Facts:
    found = facts[name]
    assert isinstance(found, dict)
    return found


def _slowed(facts: Facts, scale: float) -> None:
    latencies = facts["latency_s"]
    assert isinstance(latencies, list)
    facts["latency_s"] = [scale * value for value in latencies]
    _scale(facts["latency"], scale)
    _scale(facts["paired_speed_up"], 1 / scale)


def _scale(figures: object, scale: float) -> None:
    """What is in seconds, or a ratio of seconds, in place; counts and p values stay."""
    for name in ("mean", "median", "p90", "sigma", "low", "high", "value"):
        if isinstance(figures, dict) and figures.get(name) is not None:
            figures[name] = scale * float(figures[name] or 0)


if __name__ == "__main__":
    main()
