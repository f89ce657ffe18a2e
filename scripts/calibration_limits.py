"""What FP8 loses to outlier channels, whether scaling or rotation wins it back, by simulation.

    python -m scripts.calibration_limits OUT.json [--prompts 2]

The bundled model in FP32, its forced steps along trajectories, for several outlier factors: linears
with FP8 weights and activations (one scale a row, one scale a tensor) rounded plainly and after
SmoothQuant; and qbench's FP8 attention as its reference implementation computes it, with and
without a Hadamard rotation of queries and keys. Nothing here needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
from contextlib import ExitStack
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from qbench import prompts
from qbench.optimizations import calibration, quantization, schemes
from qbench.optimizations.calibration import Occasion, observe
from qbench.optimizations.kernels import fp8_attention
from qbench.pipelines import specs
from qbench.recipe.schema import Calibration, Generation, Outliers, Quantize
from qbench.search import sensitivity
from scripts import bench

FACTORS = (None, 100.0, 1000.0, 10_000.0)
EXCLUDE = ["time_embedding", "norm", "patch_embed", "proj_out"]


def hadamard(size: int) -> torch.Tensor:
    """The orthogonal matrix of Sylvester's construction; size is a power of two."""
    made = torch.ones(1, 1)
    while len(made) < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    return made / size**0.5


def rotated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    turn = hadamard(q.shape[-1])
    return fp8_attention.emulated(q.float() @ turn, k.float() @ turn, v)


def linears(video: Any, seen: Any, occasion: Occasion, scheme: str, smooth: bool) -> float:
    fit = Calibration(method="smoothquant", prompts=2, steps=5, samples=512) if smooth else None
    wanted = Quantize(backend="torchao", scheme=scheme, exclude=EXCLUDE, calibration=fit)
    names = list(quantization.chosen(video.denoiser, wanted))
    stored, inputs = schemes.numbers(wanted, torch.float32)
    if fit:  # folds scales into the layers before; the function stays
        numbers = dict.fromkeys(names, stored)
        calibration.fit(video, fit, occasion, numbers, inputs, scales_inputs=False)
    with ExitStack() as stack:
        for name in names:
            layer = video.denoiser.get_submodule(name)
            weight = stored.rounded(layer.weight.detach())
            stack.enter_context(sensitivity.rounded(layer, weight, inputs))
        return float(mean(seen.errors()) ** 0.5)


LABELS = {
    "int8_dynamic": "INT8 weights and activations, a scale a row",
    "int8_dynamic smoothed": "the same after SmoothQuant",
    "fp8_dynamic_row": "FP8, a scale a row",
    "fp8_dynamic_row smoothed": "the same after SmoothQuant",
    "fp8_dynamic_tensor": "FP8, a scale a tensor",
    "fp8_dynamic_tensor smoothed": "the same after SmoothQuant",
    "fp8 attention": "FP8 attention",
    "rotated": "the same with queries and keys rotated (Hadamard)",
}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a column a factor."""
    from qbench.report import tables

    def cell(value: float | None) -> str:
        return "NaN" if value is None else f"{value:.4f}" if value < 0.1 else f"{value:.3f}"

    heads = [f"factor {row['factor']:,.0f}" if row["factor"] else "no outliers" for row in rows]
    lines = [[words, *(cell(row[name]) for row in rows)] for name, words in LABELS.items()]
    return tables.grid(["", *heads], lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=2)
    args = parser.parse_args()
    model = specs.find("tiny-cogvideox")
    tests = prompts.load("world-v1", args.prompts).prompts
    rows = []
    for factor in FACTORS:
        outliers = Outliers(factor=factor) if factor else None

        def loaded(outliers: Outliers | None = outliers) -> Any:
            return specs.load(model, "fp32", "cpu", outliers=outliers)

        video = loaded()
        run = video.resolve(model, Generation())
        calls = observe.walk(video, run, tests, Calibration(method="gptq", steps=6, seed=0))
        occasion = Occasion(run, model, tests)
        row: dict[str, Any] = {"factor": factor}
        for scheme in ("fp8_dynamic_row", "fp8_dynamic_tensor", "int8_dynamic"):
            for smooth in (False, True):
                video = loaded()
                seen = sensitivity.Bench.of(video.denoiser, calls)
                name = f"{scheme}{' smoothed' if smooth else ''}"
                row[name] = linears(video, seen, occasion, scheme, smooth)
        for name, kernel in (("fp8 attention", fp8_attention.emulated), ("rotated", rotated)):
            video = loaded()
            seen = sensitivity.Bench.of(video.denoiser, calls)
            video.set_attention(lambda q, k, v, kernel=kernel: kernel(q, k, v).to(q.dtype))
            error = mean(seen.errors()) ** 0.5
            row[name] = error if math.isfinite(error) else None  # NaN is no JSON
        rows.append(row)
        print(json.dumps({k: v if v is None else round(v, 5) for k, v in row.items()}), flush=True)
    facts = {"model": model.name, "prompts": args.prompts, "torch": torch.__version__, "rows": rows}
    bench.save(args.out, facts)


if __name__ == "__main__":
    main()
