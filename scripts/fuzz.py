"""Mutated input of four kinds, and what the program makes of it: a result, or one line.

    python -m scripts.fuzz [--count 500] [--seed 0] [--kinds recipes overrides prompts records]

Recipes, `--set` values and prompt files go through everything up to the start of a sweep; records
go through `report`, `explain` and `power`. Each input is tried in a process of a pool that a
watchdog ends when it hangs. Counted are tracebacks (anything but an answer or an `InputError` of
one line), hangs and large growth of memory; any of these makes the exit code 1. What failed is
printed with its seed: `--seed N --count 1 --kinds KIND` tries it again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Queue

from qbench.errors import InputError

ROOT = Path(__file__).parent.parent
HANG_S = 30.0  # of processor time; ten times that where a process only waits
MEMORY_BYTES = 2**30  # that one input may add to its process
LONG = 2000  # characters of a message


@dataclass(frozen=True)
class Outcome:
    """What came of one input: 'ok', 'refused', or the fault."""

    kind: str
    seed: int
    word: str
    detail: str = ""
    grown: int = 0  # bytes that it added to its process

    @property
    def faulty(self) -> bool:
        return self.word not in ("ok", "refused")


# Mutations ---------------------------------------------------------------------------------------

PIECES = (
    "=", "<<", "~", "null", "0b_", "0x_", "._", "1e999", ".inf", "-.nan", "2020-13-45", "12:99:99",
    "!!python/object:os.system", "!!binary x", "&a [*a]", "*a", "{", "[", "- ", "? ", ": ", "|\n",
    "%YAML 9", "---\n", "...\n", "'", '"', "#", "\t", "\x00", "\x1b[31m", "\u2028", "\ufeff",
    "\ud7ff", "[/red]", "$\\frac$", "x" * 300, "x" * 70_000, "[" * 3000, "{a: " * 3000, "- " * 3000,
    "9" * 5000, "-1", "1e308", "../../etc/passwd", "/dev/zero", "qbench:", "qbench:base", "a.b.c",
    "true", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "\r\n", "\r", "💥", "%s%n", "{}",
)  # fmt: skip


def _mutated(text: str, dice: random.Random) -> str:
    """A few edits: pieces put in, lines or spans doubled, cut, moved or overwritten."""
    for _ in range(dice.choice((1, 1, 2, 3, 8))):
        start = dice.randrange(len(text) + 1)
        stop = min(len(text), start + dice.choice((0, 1, 5, 40)))
        lines = text.split("\n")
        edit = dice.randrange(6)
        if edit == 0:
            text = text[:start] + dice.choice(PIECES) + text[stop:]
        elif edit == 1:
            text = text[:start] + text[stop:]
        elif edit == 2:
            text = text[:start] + text[start:stop] * dice.choice((2, 50)) + text[stop:]
        elif edit == 3:
            dice.shuffle(lines)
            text = "\n".join(lines)
        elif edit == 4:  # a value in place of another
            i = dice.randrange(len(lines))
            name, colon, _ = lines[i].partition(":")
            lines[i] = f"{name}{colon or ':'} {dice.choice(PIECES)}"
            text = "\n".join(lines)
        else:
            text = text[:start] + chr(dice.randrange(0xD7FF)) + text[stop:]
    return text


def _bytes(text: str, dice: random.Random) -> bytes:
    data = bytearray(text.encode(errors="replace"))
    if dice.random() < 0.3:
        for _ in range(dice.choice((1, 4))):
            data[dice.randrange(len(data) + 1) : 0] = bytes([dice.randrange(256)])
    if dice.random() < 0.05:
        return text.encode("utf-16", errors="replace")
    return bytes(data)


def _value(dice: random.Random) -> object:
    """A value that a record's field was not made for."""
    return dice.choice(
        (
            None, True, -1, 0, 10**40, 1e308, -1e308, float("nan"), float("inf"), "NaN", "", [],
            {}, [[]], [None], ["NaN"], [1e308] * 8, {"seconds": [], "peak": {}}, "x" * 300,
            "x" * 100_000, "[/y]", "a $\\frac$ b", "../../../etc/passwd", "/dev/zero", "\x1b[31m",
            "| --- |", "=cmd|x", "\u2028", "\ud800", 0.0, 1, {"": {}}, "record.json",
        )
    )  # fmt: skip


def _other(value: object, dice: random.Random) -> object:
    """A value of the same type: a schema takes it, and what reads the record has to."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return dice.choice((0, 1, 2, value * 1000, value + 1))
    if isinstance(value, float):
        return value * dice.choice((0.0, 1e-12, 1e-3, 1e3, 1e12, -1.0))
    if isinstance(value, str):
        return dice.choice(
            ("", "[/y]", "a $\\frac$ b", "a|b`<i>", "=cmd|x", value * 40, "ü\u202eü")
        )
    if isinstance(value, list):
        return dice.choice(([], value[:1], value * 3, value[::-1]))
    return {} if isinstance(value, dict) else None


def _places(tree: object, above: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [above] if above else []
    items: list[tuple[str | int, object]] = []
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree[:3]))
    for key, value in items:
        found += _places(value, (*above, key))
    return found


def _edited(tree: dict[str, object], dice: random.Random) -> str:
    """A record with a few fields set to something else, taken out, or nested deeply."""
    places = _places(tree)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        *way, last = dice.choice(places)
        spot: object = tree
        try:
            for key in way:
                spot = spot[key]  # type: ignore[index]
            if dice.random() < 0.15:
                del spot[last]  # type: ignore[attr-defined]
            else:
                old = spot[last]  # type: ignore[index]
                new = _other(old, dice) if dice.random() < 0.6 else _value(dice)
                spot[last] = new  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier edit has taken the place away
    text = json.dumps(tree)
    if dice.random() < 0.05:
        text = text.replace("{", '{"a":' * 3000 + "1" + "}" * 3000 + ',"b":{', 1)
    return text if dice.random() < 0.9 else _mutated(text, dice)


# What is done with them --------------------------------------------------------------------------


def _recipe(dice: random.Random, folder: Path) -> None:
    from qbench.run.plan import plan

    there = sorted((ROOT / "recipes").rglob("*.yaml"))
    text = dice.choice(there).read_text().replace("../", "")
    (folder / "base.yaml").write_text((ROOT / "recipes" / "base.yaml").read_text())
    for name in ("fast", "int8", "fp8-dynamic", "fp32", "flash-3", "flash-3-compile"):
        (folder / f"{name}.yaml").write_text("extends: qbench:base\n")
    path = folder / f"{dice.choice(('mutated',) * 20 + ('x' * 200, 'a [b]', 'ü'))}.yaml"
    path.write_bytes(_bytes(_mutated(text, dice), dice))
    plan([path], {})


def _override(dice: random.Random, folder: Path) -> None:
    from qbench.recipe.files import overrides
    from qbench.recipe.mistakes import all_fields
    from qbench.run.plan import plan

    fields = [*all_fields(), "steps", "extends", "", "a.b", ".", "variant..dtype"]
    key = dice.choice(fields)
    key = key if dice.random() < 0.8 else _mutated(key, dice)
    values = ("bf16", "12", "null", "{mode: default}", "[psnr]", "0.5", "true", "a/b")
    value = dice.choice((*PIECES, *values))
    value = value if dice.random() < 0.5 else _mutated(value, dice)
    recipe = dice.choice(("int8", "fast", "onnx", "cache/pab", "floor/seed"))
    plan([ROOT / "recipes" / f"{recipe}.yaml"], overrides([f"{key}={value}"]))


def _prompts(dice: random.Random, folder: Path) -> None:
    from qbench import prompts

    texts = (
        "a red star moves left\n\na blue ring\n# a comment\n",
        '[{"prompt_en": "a star", "dimension": ["color"]}, {"prompt_en": "a ring"}]',
        '{"prompt_en": "a star"}\n{"prompt": "a ring"}\n',
        "一只熊猫\nΈνας σκύλος\nكلب\n",
    )
    path = folder / f"prompts{dice.choice(('.txt', '.json', '.jsonl', ''))}"
    if dice.random() < 0.05:
        path = dice.choice((Path("/dev/zero"), Path("/dev/null"), folder, Path("x" * 5000)))
    else:
        path.write_bytes(_bytes(_mutated(dice.choice(texts), dice), dice))
    prompts.load(str(path), dice.choice((None, 1, 3)))


def _record(dice: random.Random, folder: Path) -> None:
    """One of three good records edited; all that reads records, then, as the commands call it."""
    from qbench import power
    from qbench.explain import explain
    from qbench.report.writer import write
    from qbench.results import store
    from qbench.results.ranking import rankings

    base = Path(os.environ["QBENCH_FUZZ_RECORDS"])
    runs = sorted(path.parent for path in base.rglob(store.FILE))
    broken = dice.choice(runs)
    for run in runs:
        target = folder / run.name
        target.mkdir()
        for path in run.iterdir():
            if path.is_file():
                shutil.copy(path, target / path.name)
    text = _edited(json.loads((broken / store.FILE).read_text()), dice)
    (folder / broken.name / store.FILE).write_bytes(_bytes(text, dice))
    found, unreadable = store.read_all(store.find([folder]))
    if unreadable:  # named and left out: nothing further sees it
        raise InputError(unreadable[0])
    write(rankings(found), unreadable, folder / "report")
    with contextlib.suppress(InputError):  # too few samples, after an edit
        power.said(found, ["psnr=0.5"], 0.05, 0.8)
    for run in runs:
        explain(folder / run.name)


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    "recipes": _recipe,
    "overrides": _override,
    "prompts": _prompts,
    "records": _record,
}


def attempt(kind: str, seed: int) -> Outcome:
    """One mutated input, in this process."""
    dice = random.Random(f"{kind} {seed}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(prefix="qbench-fuzz-") as name:
        try:
            KINDS[kind](dice, Path(name))
            word, detail = "ok", ""
        except InputError as error:
            word, detail = "refused", str(error)
            if any("\n" in line or len(line) > LONG for line in error.lines):
                word = "long message"
        except Exception:
            word, detail = "traceback", traceback.format_exc()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > MEMORY_BYTES:
        word, detail = "memory", f"{grown:,} bytes"
    return Outcome(kind, seed, word, detail, grown)


# Processes and the watchdog ----------------------------------------------------------------------


def _work(connection: Connection) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    while (job := connection.recv()) is not None:
        connection.send(attempt(*job))


class Worker:
    """A process that tries one input after another, replaced when one of them hangs."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def attempt(self, kind: str, seed: int) -> Outcome:
        self._ours.send((kind, seed))
        try:
            if self._answers():
                outcome: Outcome = self._ours.recv()
                return outcome
            word = "hang"
        except EOFError:
            word = "death"
        self._process.kill()
        self._process.join()
        self._start()
        return Outcome(kind, seed, word)

    def _answers(self) -> bool:
        """Whether it answers within its processor time, or what waits for nothing, its time."""
        import psutil

        process = psutil.Process(self._process.pid)
        began, spent = time.monotonic(), sum(process.cpu_times()[:2])
        while not self._ours.poll(1):
            busy = sum(process.cpu_times()[:2]) - spent > HANG_S
            if busy or time.monotonic() - began > 10 * HANG_S:
                return False
        return True

    def close(self) -> None:
        self._ours.send(None)
        self._process.join(5)


def _all(workers: list[Worker], kind: str, seeds: range) -> Iterator[Outcome]:
    """Outcomes in order, each worker on the next input as soon as it is free."""
    free = Queue[Worker]()
    for worker in workers:
        free.put(worker)

    def one(seed: int) -> Outcome:
        worker = free.get()
        try:
            return worker.attempt(kind, seed)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        yield from pool.map(one, seeds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument(
        "--records",
        type=Path,
        default=ROOT / "results" / "published" / "amd-epyc-2t",
        help="folder of good records that are edited",
    )
    args = parser.parse_args()
    began = time.monotonic()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="qbench-fuzz-") as name:
        os.environ["QBENCH_FUZZ_RECORDS"] = name
        if "records" in args.kinds:
            few_records(args.records, Path(name))
        workers = [Worker() for _ in range(args.workers)]
        for kind in args.kinds:
            for outcome in _all(workers, kind, range(args.seed, args.seed + args.count)):
                outcomes.append(outcome)
                if outcome.faulty:
                    last = "\n  ".join(outcome.detail.strip().splitlines()[-6:])
                    print(f"{kind} {outcome.seed}: {outcome.word}\n  {last}")
            words = [outcome.word for outcome in outcomes if outcome.kind == kind]
            told = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))
            most = max((o.grown for o in outcomes if o.kind == kind), default=0) / 2**20
            print(f"{kind}: {told} of {len(words)}; at most {most:.0f} MiB for one", flush=True)
        for worker in workers:
            worker.close()
    faulty = sum(outcome.faulty for outcome in outcomes)
    print(f"{faulty} faults of {len(outcomes)} inputs, {time.monotonic() - began:.0f} s")
    raise SystemExit(1 if faulty else 0)


def few_records(source: Path, target: Path) -> None:
    """A reference and two variants: as much as a report needs to have everything in it."""
    from qbench.results import store

    found, _ = store.read_all(store.find([source]))
    sound = [(path, record) for path, record in found if record.status == "ok"]
    reference = next(item for item in sound if item[1].recipe.is_reference)
    others = [item for item in sound if item[1].paired_speed_up][:2]
    for path, record in (reference, *others):
        folder = target / f"{record.recipe.plain_name}-0"
        folder.mkdir()
        store.write(record, folder)
        for file in path.parent.iterdir() if path.parent.is_dir() else ():
            if file.is_file() and file.name != path.name:
                shutil.copy(file, folder / file.name)


if __name__ == "__main__":
    main()
