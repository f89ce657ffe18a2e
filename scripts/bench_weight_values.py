"""Does latency depend on the values of weights? One denoise step, with several, in turns.

    python -m scripts.bench_weight_values [--model cogvideox-2b] [--dtype bf16] [--repeats 20]
        [--out results/published/MACHINE/weight-values.json]

The arithmetic is the same whatever the weights are, but the power that a GPU draws depends on how
many bits flip, and a card at its power cap lowers its clock. Steps take turns with weights as
qbench makes them for `weights: random`, with each matrix at the scale of a trained one (normal,
standard deviation 1 / sqrt(inputs)), and with zeros. Prints medians and the paired ratios to the
first, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qbench.meters.clock import sample
from qbench.pipelines import random_weights
from qbench.quality.ratios import paired_speed_up
from qbench.report import tables
from scripts import bench

WAYS = ("random", "trained scale", "zeros")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _denoiser(
    size: str, dtype: torch.dtype, device: str
) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """A denoiser with random weights, and the shape of its latents with guidance."""
    from diffusers import CogVideoXTransformer3DModel

    def build() -> Any:
        if size == "cogvideox-2b":
            return CogVideoXTransformer3DModel()
        return CogVideoXTransformer3DModel(num_layers=2, num_attention_heads=4)

    shape = (2, 13, 16, 60, 90) if size == "cogvideox-2b" else (2, 3, 16, 16, 24)
    return random_weights.module(build, dtype, device), shape


@torch.no_grad()
def filled(module: torch.nn.Module, way: str) -> None:
    """Weights of matrices in place; norms and biases stay as they are."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim < 2:
            continue
        if way == "zeros":
            parameter.zero_()
        elif way == "trained scale":
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            raise ValueError(f"no such weights: {way}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, from the JSON file's rows."""
    lines = []
    for row in rows:
        ratio, step = row["speed_up"], statistics.median(row["step_s"])
        said = "-" if row["weights"] == WAYS[0] else "{value:.3f}x [{low:.3f}, {high:.3f}]"
        lines.append((row["weights"], f"{step * 1e3:.1f} ms", said.format(**ratio)))
    return tables.grid(("weights", "step", "speed-up over random ones"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="cogvideox-2b", choices=["cogvideox-2b", "small"])
    parser.add_argument("--dtype", default="bf16", choices=list(DTYPES))
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the samples as JSON")
    args = parser.parse_args()
    dtype, modules = DTYPES[args.dtype], {}
    for way in WAYS:
        module, shape = _denoiser(args.model, dtype, args.device)
        if way != "random":
            filled(module, way)
        modules[way] = module
    inputs = (
        torch.randn(shape, device=args.device).to(dtype),
        torch.randn(2, 226, 4096, device=args.device).to(dtype),
        torch.full((2,), 500, device=args.device),
    )
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(args.repeats + 2):
        # Who goes first changes every turn.
        for way in WAYS if turn % 2 else reversed(WAYS):
            (seconds,) = sample(partial(modules[way], *inputs), args.device, 0, 1)
            if turn >= 2:
                times[way].append(seconds)
    rows = []
    for way in WAYS:
        ratio = paired_speed_up(times["random"], times[way])
        rows.append({"weights": way, "step_s": times[way], "speed_up": ratio.model_dump()})
        print(
            f"{way}: {statistics.median(times[way]) * 1e3:.4g} ms, {ratio.value:.3f}x "
            f"[{ratio.low:.3f}, {ratio.high:.3f}] as fast as random weights"
        )
    if args.out:
        bench.write(args.out, args.device, model=args.model, dtype=args.dtype, rows=rows)


if __name__ == "__main__":
    main()
