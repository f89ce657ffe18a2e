"""What a video would take on numbers of GPUs that were not measured, from what two were.

    python -m scripts.ranks_costs results/published/h200x2/ranks-in-a-row.json
        --step 0.255 --decode 0.575
        [--steps 50] [--gpus 2 4 8] [--json]

--step and --decode are seconds on one GPU. The model, for CogVideoX-2B at 49x480x720 unless told:

- what a step computes is divided by the number of GPUs, which leaves out that smaller pieces fill a
  GPU less well;
- exchanges take what `bench_ranks` measured for as many bytes, a GPU's links being its own, so that
  what goes to several others takes as long as if it went to one;
- of Ulysses' pieces the first one's way there and the last one's back are in the open, all others
  hidden where attention takes longer;
- packing what is sent takes, for each byte, what it took on two;
- a ring's exchanges are hidden where attention on a part takes longer;
- what is left of the decode on two GPUs beyond half of one's is its exchanges, and stays.

So it is a bound from below on time, to be held against the measured line for two.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qbench.optimizations.parallel.tokens import PIECES
from qbench.report import tables

BYTES = 2  # of an element, in half precision


@dataclass(frozen=True)
class Shape:
    """What is denoised: by default CogVideoX-2B's 49 frames of 480x720, guided."""

    tokens: int = 17776
    heads: int = 30
    channels: int = 64
    blocks: int = 30
    latents: int = 13 * 16 * 60 * 90


@dataclass(frozen=True)
class Split:
    """One way to use cfg x ulysses x ring GPUs."""

    cfg: int
    ulysses: int
    ring: int

    @property
    def gpus(self) -> int:
        return self.cfg * self.ulysses * self.ring


@dataclass(frozen=True)
class Cost:
    """Seconds of a step, of them in exchanges and packing, and of a video."""

    split: Split
    step_s: float
    exchange_s: float
    video_s: float
    speed_up: float


class Model:
    """Costs from what was measured on two GPUs."""

    def __init__(self, measured: dict[str, Any], shape: Shape, step_s: float, decode_s: float):
        self._shape, self._step_s, self._decode_s = shape, step_s, decode_s
        self._trades = [(one["bytes"], one["trade_s"]) for one in measured["exchange"]]
        found = measured["attention"]
        self._attention_s = found["one_s"]
        # Around one attention of both halves, shared by two: packing is what trades do not explain.
        over = found["shared_s"] - found["one_s"] / 2
        self._packing_s = max(0.0, over - self._around(2, Split(1, 2, 1)))
        decode = measured["decode"]
        self._decode_over_s = max(0.0, decode["shared_s"] - decode["one_s"] / 2)

    def trade(self, size: float) -> float:
        """Seconds to send so many bytes, between what was measured by straight lines."""
        below = [pair for pair in self._trades if pair[0] <= size] or self._trades[:1]
        above = [pair for pair in self._trades if pair[0] > size]
        (a, s), (b, t) = (below[-1], above[0]) if above else self._trades[-2:]
        return float(s + (size - a) * (t - s) / (b - a))

    def _around(self, batch: int, split: Split) -> float:
        """What of Ulysses' trades around one attention is not hidden behind it."""
        if split.ulysses == 1:
            return 0.0
        shape, own = self._shape, self._shape.tokens / (split.ulysses * split.ring)
        width = shape.heads * shape.channels
        sent = batch * own * width * BYTES * (split.ulysses - 1) / split.ulysses
        there_and_back = self.trade(3 * sent / PIECES) + self.trade(sent / PIECES)
        rest = (PIECES - 1) * (there_and_back - self._attention_s / split.gpus / PIECES)
        return there_and_back + max(0.0, rest)

    def cost(self, split: Split, steps: int) -> Cost:
        shape, batch = self._shape, 2 // split.cfg
        own = shape.tokens / (split.ulysses * split.ring)
        attention = self._around(batch, split)
        if split.ulysses > 1:
            attention += self._packing_s * (batch * own) / (2 * shape.tokens / 2)
        if split.ring > 1:
            sent = 2 * batch * own * split.ulysses * (shape.heads / split.ulysses)
            each = self.trade(sent * shape.channels * BYTES)
            part = self._attention_s / split.gpus / split.ring
            attention += (split.ring - 1) * max(0.0, each - part)
        exchange = shape.blocks * attention
        if split.cfg > 1:
            exchange += self.trade(shape.latents * BYTES)
        if split.ulysses * split.ring > 1:
            exchange += self.trade(batch * shape.latents * BYTES)  # proj_out's tokens
        step = self._step_s / split.gpus + exchange
        decode = self._decode_s / split.gpus + (self._decode_over_s if split.gpus > 1 else 0.0)
        video = steps * step + decode
        one = steps * self._step_s + self._decode_s
        return Cost(split, step, exchange, video, one / video)


def splits(gpus: int, heads: int) -> Iterator[Split]:
    """Every way to use so many GPUs that the heads allow."""
    for cfg in (1, 2):
        if gpus % cfg:
            continue
        rest = gpus // cfg
        for ulysses in range(1, rest + 1):
            if rest % ulysses == 0 and heads % ulysses == 0:
                yield Split(cfg, ulysses, rest // ulysses)


def table(costs: Sequence[Cost]) -> str:
    lines = [
        (
            str(one.split.gpus),
            f"{one.split.cfg} x {one.split.ulysses} x {one.split.ring}",
            f"{one.step_s * 1000:.0f} ms",
            f"{one.exchange_s / one.step_s:.0%}",
            f"{one.video_s:.1f} s",
            f"{one.speed_up:.2f}x",
        )
        for one in costs
    ]
    return tables.grid(
        ("GPUs", "cfg x ulysses x ring", "step", "in exchanges", "video", "speed-up"), lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measured", type=Path, help="what bench_ranks wrote")
    parser.add_argument("--step", type=float, required=True, help="seconds, on one GPU")
    parser.add_argument("--decode", type=float, required=True, help="seconds, on one GPU")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--gpus", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    shape = Shape()
    model = Model(json.loads(args.measured.read_text()), shape, args.step, args.decode)
    costs = [
        model.cost(split, args.steps) for gpus in args.gpus for split in splits(gpus, shape.heads)
    ]
    if args.json:
        print(json.dumps([asdict(one) for one in costs], indent=1))
    else:
        print(table(costs))


if __name__ == "__main__":
    main()
