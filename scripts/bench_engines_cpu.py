"""Every format that runs on a CPU: exported, verified, and measured beside the variants in Python.

    python -m scripts.bench_engines_cpu FOLDER [--steps N] [--videos N] [--only NAME ...]

On two quiet cores it takes about a quarter of an hour. What lies in FOLDER and verifies is not
exported again, and finished runs are not made again, so that it can be stopped and gone on with.
The last thing printed is the table of all rows; before it, one of the exports. What cannot be
exported is a line with its reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PYTHON = ("bf16", "int8", "int8-dynamic", "int8-quanto", "compile")
# What a CPU can run of qbench's kernels: FP8 linears in plain operations.
PLAIN = ("variant.attention=auto", "variant.compile=null", "variant.decode={}")
# Recipe, format and overrides by the name of the folder.
EXPORTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "int8": ("int8", "diffusers", ()),
    "int8-dynamic": ("int8-dynamic", "diffusers", ()),
    "int8-quanto": ("int8-quanto", "diffusers", ()),
    "onnx": ("onnx", "onnx", ()),
    "onnx-int8": ("onnx-int8", "onnx", ()),
    "onnx-int8-static": ("onnx-int8-static", "onnx", ()),
    "aoti": ("aoti", "aoti", ()),
    "aoti-blocks": ("engine/aoti-blocks", "aoti", ()),
    "aoti-int8": ("int8", "aoti", ()),
    "fast": ("fast", "qbench", PLAIN),
}


@dataclass(frozen=True)
class Row:
    """What became of one export. `said` is the reason where there is none."""

    name: str
    seconds: float
    verified: bool
    said: str


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, help="of a video; the model's own")
    parser.add_argument("--videos", type=int, default=12, help="of every row")
    parser.add_argument("--only", nargs="*", default=list(EXPORTS), choices=list(EXPORTS))
    parser.add_argument("--python", nargs="*", default=list(PYTHON), help="recipes beside them")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    steps = () if args.steps is None else (f"generation.steps={args.steps}",)
    rows = [_exported(name, args.folder / "engines" / name, steps) for name in args.only]
    made = [str(args.folder / "engines" / row.name) for row in rows if row.verified]
    settings = [*steps, f"prompts.count={args.videos}", f"measure.repeats={args.videos}"]
    settings += ["measure.interleave=true", "device=cpu"]
    line = ["run", "fp32", *args.python, *made, "--out", str(args.folder / "runs"), "--quiet"]
    done = subprocess.run(_qbench(*line, *_set(settings)), capture_output=True, text=True)
    print(f"\n| {'format':<18} | {'export':>7} | verified |")
    print(f"| {'-' * 18} | {'-' * 6}: | --- |")
    for row in rows:
        print(f"| {row.name:<18} | {row.seconds:>5.0f} s | {row.said} |")
    print(f"\n{done.stdout}", flush=True)
    sys.stderr.write(done.stderr if done.returncode else "")
    sys.exit(done.returncode or not all(row.verified for row in rows))


def _exported(name: str, place: Path, steps: tuple[str, ...]) -> Row:
    """Export what is not there yet, and verify it."""
    recipe, form, more = EXPORTS[name]
    began = time.perf_counter()
    if (found := _verified(place)) is None:
        line = ["export", recipe, "--format", form, "--out", str(place), "--force"]
        settings = [*steps, *more, "device=cpu"]  # of the table are the videos that judge it
        done = subprocess.run(
            _qbench(*line, "--videos", "0", *_set(settings)), capture_output=True, text=True
        )
        if done.returncode:
            said = (done.stderr.strip() or "died").splitlines()[-1]
            print(f"{name}: {said}", flush=True)
            return Row(name, time.perf_counter() - began, False, said)
        found = _verified(place)
    seconds = time.perf_counter() - began
    said = found or "written, and does not verify"
    print(f"{name}: {seconds:.0f} s: {said}", flush=True)
    return Row(name, seconds, found is not None, said)


def _verified(place: Path) -> str | None:
    """What `qbench verify` says of the folder's parity and latency; None where it is not good."""
    if not place.is_dir():
        return None
    done = subprocess.run(_qbench("verify", str(place), "--json"), capture_output=True, text=True)
    if done.returncode:
        return None
    said = {check["name"]: check["said"] for check in json.loads(done.stdout)["checks"]}
    return f"{said['parity']}; {said['latency']}"


def _qbench(*words: str) -> list[str]:
    return [sys.executable, "-m", "qbench", *words]


def _set(settings: list[str]) -> list[str]:
    return [f"--set={one}" for one in settings]


if __name__ == "__main__":
    main()
