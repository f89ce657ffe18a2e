"""How the cost of a denoise step grows with frames and resolution, against its FLOP.

    python scripts/scaling.py OUT_FOLDER

Writes scaling.json: for each size and variant the FLOP of a step and its times. CogVideoX-2B at
true size with random weights; eager, since compiling for a dozen sizes would take longer than all
the measuring. Needs an NVIDIA GPU; sizes that do not fit are noted as such.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from qbench.meters import environment, work
from qbench.meters.latency import UnitTimer
from qbench.models import cogvideox, untrained
from qbench.recipe import Quantize, Variant
from qbench.variants import attention, quantization

TEXT, WARMUP, REPEATS = 226, 2, 10
SIZES = [(frames, 480, 720) for frames in (9, 17, 25, 33, 49, 65, 81, 97)]
SIZES += [(49, 240, 360), (49, 320, 480), (49, 600, 960), (49, 720, 1280)]
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
    return untrained.module(CogVideoXTransformer3DModel, sizes, torch.bfloat16, "cuda")


@torch.no_grad()
def measure(frames: int, height: int, width: int, name: str) -> dict[str, Any]:
    module = build(frames, height, width)
    size = (2, (frames - 1) // 4 + 1, 16, height // 8, width // 8)
    inputs = (
        torch.randn(size, device="cuda").bfloat16(),
        torch.randn(2, TEXT, 4096, device="cuda").bfloat16(),
        torch.full((2,), 500, device="cuda"),
    )
    counted = work.count(module, inputs, 2)
    variant = VARIANTS[name]
    if variant.quantize:
        quantization.apply(module, variant.quantize)
    if variant.attention != "auto":
        cogvideox.set_attention(module, attention.load(variant.attention))
    timer, times = UnitTimer("cuda"), []
    torch.cuda.reset_peak_memory_stats()
    for turn in range(WARMUP + REPEATS):
        timer.begin()
        module(*inputs)
        seconds, _ = timer.end()
        if turn >= WARMUP:
            times.append(seconds)
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


def main() -> None:
    out = Path(sys.argv[1])
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
            (out / "scaling.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
