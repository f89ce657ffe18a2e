"""Speed of attention that leaves out blocks, against the share that it computes.

    python -m scripts.bench_sparse_attention [--tokens 17776] [--heads 30] [--channels 64]
        [--shares 1 0.75 0.5 0.25 0.1 0] [--repeats 10]
        [--out results/published/MACHINE/sparse-attention.json]

Random weights have no pattern, so one is planted in the inputs: which blocks matter is known, the
kernel has to find them, and what it leaves out has codes of zero, so its result must equal the
dense kernel's to the bit. `own` gives each 64 queries blocks of their own, `common` the same to
all: a multiprocessor works on several, and what one of them needs the others wait for. The dense
kernel, on the same inputs, takes its turn beside each. The inputs named `random` have no pattern:
every block is looked at and computed, which is what looking costs. Without a GPU the reference
implementation is run, for its densities alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbench.optimizations.kernels import fp8_attention
from qbench.optimizations.kernels.fp8_attention import Skip
from qbench.report import tables
from scripts import attention_inputs, bench

THRESHOLD = 1e-4
SHARES = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)  # 0 leaves the first block of each row


def measured(
    inputs: Sequence[Tensor], pattern: str, planted: float, repeats: int
) -> dict[str, object]:
    """One row: the share of blocks computed, as planted and as counted, and both kernels' times."""
    q, k, v = inputs
    device = q.device.type
    skip = Skip(THRESHOLD, torch.zeros(1, dtype=torch.int64, device=device))
    sparse = fp8_attention.attend_skipping if q.is_cuda else fp8_attention.reference
    dense = fp8_attention.attend if q.is_cuda else fp8_attention.reference
    found, expected = sparse(q, k, v, skip), dense(q, k, v)
    density = skip.computed.item() / fp8_attention.blocks(q, k)
    runs = {"sparse": partial(sparse, q, k, v, skip), "dense": partial(dense, q, k, v)}
    seconds = bench.in_turns(runs, device, repeats)
    return {
        "pattern": pattern,
        "planted": planted,
        "density": density,
        "equal": torch.equal(found, expected),
        "seconds": seconds["sparse"],
        "dense_seconds": seconds["dense"],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, from the JSON file's rows."""
    lines = []
    for row in rows:
        sparse, dense = (statistics.median(row[of]) for of in ("seconds", "dense_seconds"))
        lines.append(
            (
                row["pattern"],
                f"{row['density']:.1%}",
                f"{sparse * 1e3:.3g} ms",
                f"{dense * 1e3:.3g} ms",
                f"{dense / sparse:.2f}x",
                "yes" if row["equal"] else "no",
            )
        )
    return tables.grid(
        ("blocks", "computed", "time", "dense kernel", "speed-up", "equal to the bit"), lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("batch", 2), ("tokens", 17776), ("heads", 30), ("channels", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="write the samples as JSON")
    args = parser.parse_args()
    shape = (args.batch, args.tokens, args.heads, args.channels)
    rows = []
    generator = torch.Generator(args.device).manual_seed(0)
    like = {"generator": generator, "device": args.device, "dtype": torch.bfloat16}
    plain = [torch.randn(shape, **like) for _ in range(3)]
    rows.append(measured(plain, "random", 1.0, args.repeats))
    del plain
    for pattern in ("own", "common"):
        for share in args.shares:
            one = (1, args.tokens, 1, args.channels)  # all heads the same: they take as long
            made, wanted = attention_inputs.planted(one, share, own=pattern == "own")
            inputs = [x.bfloat16().to(args.device).expand(shape).contiguous() for x in made]
            rows.append(measured(inputs, pattern, float(wanted.float().mean()), args.repeats))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if args.out:
        sizes = dict(zip(("batch", "tokens", "heads", "channels"), shape, strict=True))
        bench.write(args.out, args.device, shape=sizes, threshold=THRESHOLD, rows=rows)


if __name__ == "__main__":
    main()
