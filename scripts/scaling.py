"""How the cost of a denoise step grows with frames and resolution, against its FLOP.

    python -m scripts.scaling OUT_FOLDER [--chart]

Writes scaling.json: for each size and variant the FLOP of a step and its times. CogVideoX-2B at
true size with random weights; eager, since compiling for a dozen sizes would take longer than all
the measuring. Needs an NVIDIA GPU; sizes that do not fit are noted as such. `--chart` draws what
is in OUT_FOLDER already, beside the FLOP model fitted to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qbench.meters import clock, environment, flops
from qbench.optimizations import attention, quantization
from qbench.pipelines import cogvideox_layers, random_weights
from qbench.recipe.schema import Quantize, Variant
from scripts import bench

TEXT, WARMUP, REPEATS = 226, 1, 10
APART = 2000  # tokens between sizes that are named in the chart
SIZES = [(frames, 480, 720) for frames in (9, 17, 33, 49, 65, 81, 97)]
SIZES += [(49, 240, 368), (49, 320, 480), (49, 608, 960), (49, 720, 1280)]
VARIANTS = {
    "bf16": Variant(dtype="bf16"),
    "fp8": Variant(
        dtype="bf16",
        quantize=Quantize(backend="qbench", scheme="fp8_dynamic_row"),
        attention="fp8",
    ),
}


def build(frames: int, height: int, width: int) -> Any:
    """The denoiser with position tables of this size; for others it makes them at every call."""
    from diffusers import CogVideoXTransformer3DModel

    torch.manual_seed(0)
    sizes = {
        "sample_frames": frames,
        "sample_height": height // 8,
        "sample_width": width // 8,
    }
    return random_weights.module(
        lambda: CogVideoXTransformer3DModel.from_config(sizes), torch.bfloat16, "cuda"
    )


@torch.no_grad()
def measure(frames: int, height: int, width: int, name: str) -> dict[str, Any]:
    module = build(frames, height, width)
    size = (2, (frames - 1) // 4 + 1, 16, height // 8, width // 8)
    inputs = (
        torch.randn(size, device="cuda").bfloat16(),
        torch.randn(2, TEXT, 4096, device="cuda").bfloat16(),
        torch.full((2,), 500, device="cuda"),
    )
    names = ("hidden_states", "encoder_hidden_states", "timestep")
    counted = flops.count(module, [dict(zip(names, inputs, strict=True))], 2)
    variant = VARIANTS[name]
    if variant.quantize:
        quantization.apply(module, variant.quantize)
    if variant.attention != "auto":
        cogvideox_layers.set_attention(module, attention.load(variant.attention))
    torch.cuda.reset_peak_memory_stats()
    times = clock.sample(lambda: module(*inputs), "cuda", WARMUP, REPEATS)
    return {
        "frames": frames,
        "height": height,
        "width": width,
        "tokens": TEXT + size[1] * (height // 16) * (width // 16),
        "variant": name,
        "product_flop": counted.product_flop,
        "attention_flop": counted.attention_flop,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "step_s": times,
    }


def fit(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds a FLOP of GEMM and of attention (neither below 0), and each size's seconds.

    Pointwise work grows with the tokens as GEMM does, so it is in that rate.
    """
    from scipy.optimize import nnls

    taken = np.array([statistics.median(row["step_s"]) for row in rows])
    flop = np.array([[row["product_flop"], row["attention_flop"]] for row in rows])
    # Relative errors count, or the largest size alone would decide.
    rates, _ = nnls(flop / taken[:, None], np.ones(len(rows)))
    return rates, flop @ rates


def chart(folder: Path) -> None:
    """scaling.png beside scaling.json, which gets the fitted FLOP model and how well it fits."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    facts = json.loads((folder / "scaling.json").read_text())
    facts["fit"] = {}
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for name, colour in zip(VARIANTS, ("#0072B2", "#D55E00"), strict=True):
        rows = [r for r in facts["rows"] if r["variant"] == name and "step_s" in r]
        rows.sort(key=lambda row: row["tokens"])
        rates, model = fit(rows)
        tokens = [row["tokens"] for row in rows]
        taken = np.array([statistics.median(row["step_s"]) for row in rows])
        off = np.abs(model / taken - 1).max()
        facts["fit"][name] = {
            "gemm_flop_per_s": 1 / rates[0],
            "attention_flop_per_s": 1 / rates[1],
            "largest_error": off,
            "sizes": len(rows),
        }
        print(
            f"{name}: GEMM and what grows with it {1e-12 / rates[0]:.0f} TFLOP/s, "
            f"attention {1e-12 / rates[1]:.0f}; at most {off:.1%} off at {len(rows)} sizes"
        )
        axes.plot(tokens, taken * 1000, "o", color=colour, label=f"{name}, measured")
        axes.plot(tokens, model * 1000, color=colour, label=f"{name}, FLOP model")
        named = -APART
        for row, seconds in zip(rows, taken, strict=True):
            if name == "bf16" and row["tokens"] >= named + APART:
                named = row["tokens"]
                text = f"{row['frames']}x{row['height']}x{row['width']}"
                axes.annotate(text, (named, seconds * 1000), fontsize=7, ha="right", va="bottom")
    axes.set_xlabel("tokens")
    axes.set_ylabel("ms a denoise step (eager, batch 2)")
    axes.set_title(f"CogVideoX-2B on {facts['environment']['device_name']}", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    axes.set_ylim(bottom=0)
    figure.savefig(folder / "scaling.png", dpi=120)
    bench.save(folder / "scaling.json", facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--chart", action="store_true")
    args = parser.parse_args()
    if args.chart:
        chart(args.out)
        return
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    facts = {"environment": environment.read("cuda").model_dump(), "rows": rows}
    for frames, height, width in SIZES:
        for name in VARIANTS:
            try:
                rows.append(measure(frames, height, width, name))
            except torch.cuda.OutOfMemoryError as error:
                reason = str(error).split(".")[0]
                shape = {"frames": frames, "height": height, "width": width, "variant": name}
                rows.append(shape | {"error": reason})
            torch.cuda.empty_cache()
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "step_s"}), flush=True)
            bench.save(out / "scaling.json", facts)


if __name__ == "__main__":
    main()
