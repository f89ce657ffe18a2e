"""What the benchmarks here share: taking turns, and files of what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from qbench.meters import environment
from qbench.meters.clock import sample


def in_turns(
    runs: Mapping[str, Callable[[], object]], device: str, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each, `repeats` times one after the other; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            (seconds,) = sample(run, device, warmup=0, repeats=1)
            if turn:
                times[name].append(seconds)
    return times


def write(out: Path, device: str, **facts: object) -> None:
    """The facts as JSON, below where they were measured."""
    save(out, {"environment": environment.read(device).model_dump()} | facts)


def save(out: Path, facts: object) -> None:
    """The facts as JSON without blanks, for what is published travels with every clone."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, separators=(",", ":")) + "\n")
