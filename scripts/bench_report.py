"""Time and peak memory of commands over many records: copies of real records, varied.

python -m scripts.bench_report RECORDS [--n 10000] [--command report|power]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qbench.results import store
from qbench.results.record import Record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, help="folder with at least one finished run")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--command", choices=("report", "power"), default="report")
    arguments = parser.parse_args()
    found, _ = store.read_all(store.find([arguments.records]))
    sound = [record for _, record in found if record.status == "ok"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_copies(sound, arguments.n, folder)
        words = [str(folder)]
        if arguments.command == "report":
            words.append(f"--out={folder / 'out'}")
        command = [sys.executable, "-m", "qbench", arguments.command, *words]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{arguments.command} of {arguments.n} records: {seconds:.1f} s "
        f"({usage.ru_utime + usage.ru_stime:.1f} s of processor time), "
        f"{usage.ru_maxrss / 1024:.0f} MiB at the peak, start of the process included"
    )


def _write_copies(sound: list[Record], n: int, folder: Path) -> None:
    """The records in turn, each under a name of its own, with latencies and one seed varied.

    The first copy of each reference keeps its name, so that the others are compared with it.
    """
    rng = random.Random(0)
    texts = [record.model_dump_json() for record in sound]
    for i in range(n):
        facts = json.loads(texts[i % len(texts)])
        if i >= len(texts):
            scale = rng.uniform(0.5, 2.0)
            facts["run"] += f"-{i}"
            facts["recipe"]["name"] += f"-{i}"
            facts["recipe"]["variant"]["seed_offset"] = i
            facts["latency_s"] = [scale * value for value in facts["latency_s"]]
            _scale(facts["latency"], scale)
            _scale(facts["paired_speed_up"], 1 / scale)
        (folder / str(i)).mkdir()
        (folder / str(i) / store.FILE).write_text(json.dumps(facts), encoding="utf-8")


def _scale(figures: dict[str, float | None] | None, scale: float) -> None:
    """What is in seconds, or a ratio of seconds, in place; counts and p values stay."""
    for name in ("mean", "median", "p90", "sigma", "low", "high", "value"):
        if figures and figures.get(name) is not None:
            figures[name] = scale * float(figures[name] or 0)


if __name__ == "__main__":
    main()
