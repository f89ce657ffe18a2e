"""Run parts of `scripts.matrix` whose latency nobody reads, many recipes at once on each GPU.

    python -m scripts.side_by_side PART... --out FOLDER [--jobs 16] [--gpus 0,1] [--limit 400]
        [--only RECIPE...] [--set FIELD=VALUE] [--device cuda] [--drop]

The videos of a small model leave most of a GPU idle, and the start of a program more. Each part's
reference is run once; each other recipe then runs in a folder of its own, `FOLDER/PART/RECIPE`,
with a copy of it (its videos linked), for in one folder they would wait for each other. All
programs get the same threads and variables, or the copy would not be taken for theirs. Long videos
fill a disk: `--drop` removes a recipe's own once it has its figures. What is complete is not run
again.
After `--limit` seconds what still runs is interrupted as by Ctrl-C. Then

    python -m scripts.publish FOLDER/PART results/published/NAME
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from queue import SimpleQueue

from scripts.matrix import PARTS, command

UNTIMED = "measure.timing=false"
GRACE = 20.0  # seconds in which an interrupted run writes its record
VIDEOS = ".safetensors"  # raw, as metrics read them
REFERENCE = "reference"  # the folder of the run that all others are compared with


class Jobs:
    """Programs that share the GPUs until the time is up."""

    def __init__(self, gpus: list[str], limit: float) -> None:
        self._end = time.monotonic() + limit if limit else float("inf")
        self._began = time.monotonic()
        self._printing = threading.Lock()
        self._gpus: SimpleQueue[str] = SimpleQueue()
        for gpu in gpus:
            self._gpus.put(gpu)

    def left(self) -> float:
        return self._end - time.monotonic()

    def run(self, name: str, words: list[str], log: Path) -> bool:
        """Whether the program came to a good end in time."""
        gpu = self._gpus.get()
        try:
            if self.left() <= 0:
                return False
            visible = {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
            with log.open("w") as printed:
                process = subprocess.Popen(
                    words, env=os.environ | visible, stdout=printed, stderr=subprocess.STDOUT
                )
                code = self._wait(process)
            said = "" if code == 0 else f", exit code {code}, see {log}"
            with self._printing:
                print(f"{time.monotonic() - self._began:5.0f} s: {name}{said}", flush=True)
            return code == 0
        finally:
            self._gpus.put(gpu)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(None if self.left() == float("inf") else max(self.left(), 0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def chain(names: list[str]) -> Iterator[tuple[str, str]]:
    """Each part, those that are run after it too, with the part in whose folder it goes."""
    for name in names:
        folder = name
        while name:
            part = PARTS[name]
            if UNTIMED not in part.settings:
                raise SystemExit(f"{name} is timed: python -m scripts.matrix {name}")
            yield name, folder
            name = part.then
            folder = folder if part.beside else name


def linked(source: str, target: str) -> None:
    """A copy; of videos a second name, for a run writes them once and never changes them."""
    if source.endswith(VIDEOS):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def drop_own_videos(folder: Path) -> None:
    """Remove the videos that only this folder has."""
    for path in folder.rglob(f"*{VIDEOS}"):
        if path.stat().st_nlink == 1:
            path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=8, help="programs at once, over all GPUs")
    parser.add_argument("--gpus", default="", help="such as 0,1; else those that are visible")
    parser.add_argument("--limit", type=float, default=0.0, help="seconds; 0 is none")
    parser.add_argument("--only", nargs="+", default=[], metavar="RECIPE", help="of the parts'")
    parser.add_argument("--set", action="append", default=[], help="besides the parts' own")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--drop", action="store_true", help="keep no raw videos but the reference's"
    )
    args = parser.parse_args()
    # Shells have what runs in the background ignore it, and programs inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    gpus = [gpu for gpu in args.gpus.split(",") if gpu] or [""]
    jobs = Jobs([gpus[n % len(gpus)] for n in range(args.jobs)], args.limit)

    def run(folder: Path, part: str, recipe: str) -> bool:
        """In a folder of its own, beside the reference that was run before."""
        first = PARTS[part].recipes[0]
        own = folder / (REFERENCE if recipe == first else recipe.replace("/", "-"))
        if recipe != first and not own.exists():
            shutil.copytree(folder / REFERENCE, own, copy_function=linked)
        recipes = list(dict.fromkeys([first, recipe]))
        words = command(PARTS[part], own, args.device, recipes, args.set, floors=False)
        good = jobs.run(f"{part} {recipe}", words, own.with_name(f"{own.name}.log"))
        if good and args.drop and recipe != first:
            drop_own_videos(own)
        return good

    asked = {
        name: [recipe for recipe in part.recipes[1:] if not args.only or recipe in args.only]
        for name, part in PARTS.items()
    }
    parts = [(name, args.out / at) for name, at in dict(chain(args.parts)).items() if asked[name]]
    with ThreadPoolExecutor(args.jobs) as pool:
        references = {}
        for name, folder in parts:
            folder.mkdir(parents=True, exist_ok=True)
            if folder not in references:
                references[folder] = pool.submit(run, folder, name, PARTS[name].recipes[0])
        wanted = [
            [(folder, name, recipe) for recipe in asked[name]]
            for name, folder in parts
            if references[folder].result()
        ]
        runs = [pool.submit(run, *one) for row in zip_longest(*wanted) for one in row if one]
    good = all(run.result() for run in [*references.values(), *runs])
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
