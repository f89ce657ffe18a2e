"""What a sweep on Ray gains by a second GPU: the same runs over all GPUs and over one.

    python -m scripts.bench_ray --out FILE [--gpus 0,1] [--beside 2] [--videos 256] [--turns 1]
        [--limit 1500] [--work FOLDER] [--device cuda] [--set FIELD=VALUE]

Twelve runs of the bundled model whose quality is measured and whose latency is not, each sweep in a
folder of its own and on a cluster that `--ray local` starts for it. Before the first, a sweep of
few videos fills what compilers and the disk's cache keep, so that neither order of the two is
favoured; in every second turn it is the other way round. With --beside both happen at the same
time, the one on a GPU of its own: long sweeps, whose starts and ends count for less, are done
sooner. What one of them disturbs in the other is then in their times. What is timed is the whole
command, Ray's start included. The file says of each run how it ended and what its videos' digest
is; if a run is not ok, or its videos are not bit for bit those of the first sweep, the script ends
with 1. A sweep that takes longer than --limit is interrupted, and its row has what was done.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qbench.report import tables
from qbench.results import store
from scripts import bench
from scripts.matrix import CALIBRATED_QUALITY, RECIPES

SWEEP = (
    "fp32", "bf16", "fp16", "int8", "fp8", "int8-dynamic", "fp8-dynamic", "fp8-tensor", "fast",
    "attention/fp8", "ladder/int4", "cache/half-steps",
)  # fmt: skip
HEADS = ("GPUs", "runs", "videos of each", "seconds", "speed-up", "a run on its own, seconds")


def swept(
    out: Path, gpus: str, device: str, settings: Sequence[str], limit: float | None
) -> dict[str, Any]:
    """One sweep: its seconds, and of each run when it started, and those from then to its end."""
    words = [f"--set={setting}" for setting in settings]
    words += [f"--out={out}", f"--device={device}", "--no-floors", "--ray=local"]
    paths = [str(RECIPES / f"{name}.yaml") for name in SWEEP]
    visible = {"CUDA_VISIBLE_DEVICES": gpus} if gpus else {}
    began, began_at = time.monotonic(), datetime.now(UTC)
    command, cut = [sys.executable, "-m", "qbench", "run", *paths, *words], False
    with subprocess.Popen(command, env=os.environ | visible) as process:
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            cut = True
    seconds = time.monotonic() - began
    found, _ = store.read_all(store.find([out]))
    runs = {}
    for _, record in found:
        ended, started = map(datetime.fromisoformat, (record.ended, record.started))
        runs[record.recipe.name] = {
            "at": (started - began_at).total_seconds(),
            "s": (ended - started).total_seconds(),
            "status": record.status,
            "videos_sha256": record.outputs_sha256,
        }
    return {"gpus": gpus.count(",") + 1, "s": seconds, "cut_off": cut, "runs": runs}


def faults(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is not as it must be for the sweeps' times to mean something, in words."""
    said = []
    for number, row in enumerate(rows):
        for name in SWEEP:
            run, first = row["runs"].get(name), rows[0]["runs"].get(name)
            if run is None or run["status"] != "ok":
                said.append(f"sweep {number}: {name} {run['status'] if run else 'has no record'}")
            elif first is not None and run["videos_sha256"] != first["videos_sha256"]:
                said.append(f"sweep {number}: {name}'s videos are not the first sweep's")
    return said


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each sweep; the speed-up over the one of the same turn on one GPU."""
    whole = [row for row in rows if not row.get("cut_off")]
    alone = {row["turn"]: row["s"] for row in whole if row["gpus"] == 1}
    lines = []
    for row in rows:
        gain = "cut off"
        if row in whole:
            gain = "reference" if row["gpus"] == 1 else ""
            if row["gpus"] > 1 and row["turn"] in alone:
                gain = f"{alone[row['turn']] / row['s']:.2f}x"
        own = sorted(run["s"] for run in row["runs"].values())
        spread = f"{own[0]:.0f} to {own[-1]:.0f}" if own else ""
        shown = (row["gpus"], len(own), row["videos"], f"{row['s']:.0f}", gain, spread)
        lines.append([*map(str, shown)])
    return tables.grid(HEADS, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--gpus", default="0,1", help="all of them; the first is the one alone")
    parser.add_argument("--beside", metavar="GPU", help="the one alone, at the same time")
    parser.add_argument("--videos", type=int, default=256, help="of each run")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--limit", type=float, help="seconds that a sweep may take")
    parser.add_argument("--work", type=Path, help="folder for the runs; else a temporary one")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--set", action="append", default=[], help="besides the sweep's own")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="bench-ray-"))
    # Of a field that is set twice the last one counts.
    settings = [*CALIBRATED_QUALITY, "measure.warmup=0", *args.set]
    swept(work / "warm", args.gpus, args.device, [*settings, "prompts.count=8"], args.limit)
    shutil.rmtree(work / "warm", ignore_errors=True)
    rows: list[dict[str, Any]] = []
    settings.append(f"prompts.count={args.videos}")

    def measured(turn: int, gpus: str) -> None:
        folder = work / f"{turn}-{gpus.replace(',', '-') or 'none'}"
        row = swept(folder, gpus, args.device, settings, args.limit)
        rows.append({"turn": turn, "videos": args.videos, "beside": args.beside is not None, **row})
        bench.write(args.out, args.device, rows=rows)
        shutil.rmtree(folder)
        print(f"{row['gpus']} GPUs: {row['s']:.1f} s", flush=True)

    alone = args.gpus.split(",")[0] if args.beside is None else args.beside
    for turn in range(args.turns):
        both = [args.gpus, alone] if turn % 2 == 0 else [alone, args.gpus]
        with ThreadPoolExecutor(1 if args.beside is None else 2) as pool:
            list(pool.map(measured, (turn, turn), both))
    rows.sort(key=lambda row: (row["turn"], -row["gpus"]))
    bench.write(args.out, args.device, rows=rows)
    print(table(rows))
    if found := faults(rows):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
