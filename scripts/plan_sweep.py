"""How well the order of a sweep over many devices keeps them busy, by simulation.

    python -m scripts.plan_sweep [--seeds 5] [--out FILE]

1,000 recipes in 60 rankings on 100 GPUs of four kinds and 14 nodes. What starts next is the
product's own `qbench.run.order`, asked as `qbench run --ray` asks it; only the clock is made up.
How long a run really takes differs from what the order thinks, and kinds differ in speed, of which
it knows nothing before the first runs end; starts may take longer than it thinks at first. Nothing
can be faster than the bound: all work spread evenly over all GPUs, each kind at its speed.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.report import tables
from qbench.run.order import Order, Site
from qbench.run.parts import Load
from scripts import bench

RECIPES, RANKINGS = 1000, 60
NODES = {"H200": (3, 8), "H100": (6, 8), "A100": (2, 8), "L40S": (3, 4)}  # nodes, GPUs of each
SPEEDS = {"H200": 1.1, "H100": 1.0, "A100": 0.45, "L40S": 0.3}
SPREAD = 0.25  # of the logarithm of the time that a run takes over what the order thinks
START_S = 20.0  # of a run or a part of one, whatever its work: a process, and loading
SLOW_S = 6 * START_S  # where disks are slow, or libraries large


@dataclass(frozen=True)
class Case:
    """known: speeds and times are what the order thinks. together: runs in no parts.

    start_s, thought_s: what starts take, and what the order thinks before it has seen any.
    """

    label: str
    known: bool = False
    together: bool = False
    start_s: float = START_S
    thought_s: float = START_S


CASES = (
    Case("known", known=True),
    Case("unknown"),
    Case("unknown, slow starts", start_s=SLOW_S, thought_s=SLOW_S),
    Case("unknown, slow starts thought six times shorter", start_s=SLOW_S),
    Case("unknown, runs in no parts", together=True),
)


@dataclass(frozen=True)
class Outcome:
    """What a simulated sweep came to. Seconds."""

    took: float
    bound: float
    busy: float  # of all GPUs, until the end
    idle_share: float
    waited: int  # runs, not parts of them, that started before their reference had ended
    mixed: int  # rankings whose runs were on more than one kind
    most_at_once: int


def recipes(source: random.Random, start_s: float) -> list[Load]:
    """Rankings of very different sizes; runs of minutes to hours; some on 2 or 4 GPUs at once."""
    sizes = [1 + int(20 * source.paretovariate(1.5)) for _ in range(RANKINGS)]
    total = sum(sizes)
    sizes = [max(2, round(size * RECIPES / total)) for size in sizes]
    sizes[0] += RECIPES - sum(sizes)
    loads = []
    for ranking, size in enumerate(sizes):
        video = source.lognormvariate(2.0, 0.7)  # seconds on an H100
        videos = source.choice((16, 32, 64, 256))
        for number in range(size):
            each = video * (1 if number == 0 else source.uniform(0.35, 1.0))
            units = 1 if number == 0 else source.choices((1, 2, 4), (90, 7, 3))[0]
            loads.append(
                Load(
                    name=f"{ranking}/{number}",
                    group=str(ranking),
                    reference=number == 0,
                    device="cuda",
                    units=units,
                    fixed=each * (14 + 0.1 * videos) / units,
                    shared=each * videos / units,
                    least=each * 8 / units,
                    start=start_s,
                )
            )
    return loads


def simulate(seed: int, case: Case) -> Outcome:
    source, known = random.Random(seed), case.known
    loads, order = recipes(source, case.thought_s), Order()
    if case.together:
        loads = [
            Load(x.name, x.group, x.reference, x.device, x.units, x.fixed + x.shared) for x in loads
        ]
    real = {x.name: 1.0 if known else source.lognormvariate(0, SPREAD) for x in loads}
    thought = {
        kind: speed * (1 if known else source.lognormvariate(0, SPREAD))
        for kind, speed in SPEEDS.items()
    }
    kinds: dict[str, str] = {}
    for kind, (nodes, each) in NODES.items():
        for number in range(nodes):
            name = f"{kind}-{number}"
            kinds[name] = kind
            order.join(Site(name, kind, "cuda", each, each), thought[kind])
    order.add(*loads)
    gpus = sum(nodes * each for nodes, each in NODES.values())
    power = sum(nodes * each * SPEEDS[kind] for kind, (nodes, each) in NODES.items())
    bound = sum((x.work * real[x.name] + case.start_s) * x.units for x in loads) / power
    events: list[tuple[float, bool, str]] = []  # when each of what runs has started, and ended
    now = busy = 0.0
    most = running = waited = 0
    ended: set[str] = set()
    used: dict[str, set[str]] = {}
    started: dict[str, Load] = {}
    while order.left():
        while (start := order.start(now)) is not None:
            load, kind = start.load, kinds[start.site]
            early = not load.reference and f"{load.group}/0" not in ended
            waited += early and load.part is None
            used.setdefault(load.group, set()).add(kind)
            seconds = case.start_s + load.work * real[load.whole or load.name] / SPEEDS[kind]
            heapq.heappush(events, (now + case.start_s, False, load.name))
            heapq.heappush(events, (now + seconds, True, load.name))
            started[load.name] = load
            running += load.units
            busy += load.units * seconds
            most = max(most, running)
        now, over, name = heapq.heappop(events)
        if not over:
            order.working(name, now)
            continue
        running -= started[name].units
        order.ended(name, now)
        if started[name].part is None:
            ended.add(name)
    assert len(ended) == len(loads)
    mixed = sum(len(kinds_) > 1 for kinds_ in used.values())
    return Outcome(now, bound, busy, 1 - busy / (gpus * now), waited, mixed, most)


HEADS = ("times and speeds", "sweeps", "", "hours", "bound", "over it", "GPUs idle")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of each case the median sweep and the worst, by time over the bound."""
    lines = []
    for case in CASES:
        found = [row for row in rows if row["case"] == case.label]
        found.sort(key=lambda row: row["took"] / row["bound"])
        for name, row in (("median", found[len(found) // 2]), ("worst", found[-1])):
            lines.append(
                (
                    case.label,
                    str(len(found)),
                    name,
                    f"{row['took'] / 3600:.2f}",
                    f"{row['bound'] / 3600:.2f}",
                    f"{100 * (row['took'] / row['bound'] - 1):.0f} %",
                    f"{100 * row['idle_share']:.0f} %",
                )
            )
    return tables.grid(HEADS, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for every sweep.")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = [
        {"case": case.label, "seed": seed} | vars(simulate(seed, case))
        for case in CASES
        for seed in range(asked.seeds)
    ]
    print(table(rows))
    wrong = sum(row["waited"] + row["mixed"] for row in rows)
    print(f"before their reference, or on two kinds of device: {wrong}")
    if asked.out:
        bench.save(asked.out, {"rows": rows})


if __name__ == "__main__":
    main()
