"""Attention alone, at the shape that a model gives it: every kernel that this machine has.

    python -m scripts.bench_attention [--tokens 17776] [--keys 512] [--heads 30] [--channels 64]
        [--repeats 10] [--out results/published/MACHINE/attention.json]

Kernels take turns, so that drift of the clock hits all alike. Prints for each the median, FLOP/s
(quantizing the inputs included), and its relative error to attention in FP32 over the first
queries; then its error to attention in FP64 on inputs like those of trained models. The defaults
are CogVideoX-2B's 49 frames of 480x720, with guidance. A kernel that cannot run here is a line with
the reason.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from qbench.errors import Unsupported
from qbench.optimizations import attention
from qbench.report import tables
from scripts import attention_inputs, bench

TORCH = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
PACKAGES = ("fp8", "flash-3", "flash-3-fp8", "torchao-fp8", "flash-4", "sage", "xformers")
# Of attention_inputs: what trained models have, and what is hard for eight bits.
HARD = (
    "random",
    "keys with a common part of 6",
    "three channels of q and k times 30",
    "one channel of v times 300",
    "a sink of half the weight",
    "scores of sigma 30",
)
HARD_TOKENS, HARD_HEADS = 2222, 4
CHECKED = 512  # queries: the scores of all would take tens of gigabytes in FP32

Run = Callable[[], torch.Tensor]


def _torch(name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(TORCH[name]):
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The first queries' attention in FP32, (batch, queries, heads, channels)."""
    q, k, v = (x.float().transpose(1, 2) for x in (q[:, :CHECKED], k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).transpose(1, 2)


def runs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Run]:
    """Every kernel by its name; each computes (batch, tokens, heads, channels)."""
    found: dict[str, Run] = {name: partial(_torch, name, q, k, v) for name in TORCH}
    for name in PACKAGES if q.is_cuda else ():

        def run(name: str = name) -> torch.Tensor:
            return attention.load(name)(q, k, v)

        found[name] = run
    return found


def errors_of(names: Sequence[str], channels: int, device: str) -> list[dict[str, Any]]:
    """Each kernel's relative error to attention in FP64 on inputs like those of trained models."""
    found = []
    for name in HARD:
        given = attention_inputs.made(name, HARD_TOKENS, HARD_TOKENS, channels, HARD_HEADS)
        true = attention_inputs.exact(*(x.to(device) for x in given))
        q, k, v = (x.bfloat16().to(device) for x in given)
        for kernel, run in runs(q, k, v).items():
            if kernel in names:
                got = run()[:, : attention_inputs.CHECKED].double()
                error = float((got - true).norm() / true.norm())
                found.append({"kernel": kernel, "input": name, "relative_error": error})
    return found


def inputs_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, from the JSON file's inputs: a column a kernel."""
    kernels = list(dict.fromkeys(str(row["kernel"]) for row in rows))
    by_input: dict[str, dict[str, float]] = {}
    for row in rows:
        by_input.setdefault(row["input"], {})[row["kernel"]] = row["relative_error"]
    lines = [
        [name, *(f"{found[kernel]:.2g}" if kernel in found else "-" for kernel in kernels)]
        for name, found in by_input.items()
    ]
    return tables.grid(["inputs", *kernels], lines)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, from the JSON file's rows."""
    lines = [
        (
            row["kernel"],
            f"{statistics.median(row['seconds']) * 1e3:.3g} ms",
            f"{row['flop_per_s'] / 1e12:.0f}",
            f"{row['relative_error']:.2g}",
        )
        for row in sorted(rows, key=lambda row: statistics.median(row["seconds"]))
    ]
    return tables.grid(("kernel", "time", "TFLOP/s", "relative error"), lines)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("batch", 2), ("tokens", 17776), ("heads", 30), ("channels", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--keys", type=int, help="where there are not as many as queries")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="write the samples as JSON")
    args = parser.parse_args()
    shape = (args.batch, args.tokens, args.heads, args.channels)
    generator = torch.Generator().manual_seed(0)
    keys = (args.batch, args.keys or args.tokens, args.heads, args.channels)
    q, k, v = (
        torch.randn(size, generator=generator).bfloat16().to(args.device)
        for size in (shape, keys, keys)
    )
    exact, errors, failed, kept = _exact(q, k, v), {}, [], {}
    for name, run in runs(q, k, v).items():
        try:
            got = run()[:, :CHECKED].float()
        except (Unsupported, RuntimeError, ValueError, OSError) as error:
            failed.append({"kernel": name, "reason": " ".join(str(error).split())})
            print(f"{name}: cannot run here: {failed[-1]['reason'][:120]}")
            continue
        kept[name], errors[name] = run, float((got - exact).norm() / exact.norm())
    times = bench.in_turns(kept, args.device, args.repeats)
    flop = 4 * args.batch * args.heads * args.tokens * keys[1] * args.channels
    rows = []
    for name, taken in sorted(times.items(), key=lambda item: statistics.median(item[1])):
        rate = flop / statistics.median(taken)
        row = {"kernel": name, "seconds": taken, "flop_per_s": rate, "relative_error": errors[name]}
        rows.append(row)
        print(
            f"{name}: {statistics.median(taken) * 1e3:.3g} ms, {rate / 1e12:.3g} TFLOP/s, "
            f"relative error {errors[name]:.2g}"
        )
    inputs = errors_of(list(kept), args.channels, args.device)
    print(inputs_table(inputs))
    if args.out:
        sizes = dict(zip(("batch", "tokens", "heads", "channels"), shape, strict=True))
        bench.write(
            args.out,
            args.device,
            shape=sizes | {"keys": keys[1]},
            rows=rows,
            inputs=inputs,
            failed=failed,
        )


if __name__ == "__main__":
    main()
