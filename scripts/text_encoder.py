"""What CogVideoX's text encoder needs, T5-XXL at true size with random weights: memory and time.

    python -m scripts.text_encoder OUT.json [--device cuda]

Runs with `weights: random` have no text encoder, so its share of a card is measured here: in BF16,
and with INT8 weights (torchao), for a prompt and its negative prompt of 226 tokens.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from qbench.meters import clock
from qbench.meters.memory import PeakMeter, stored_bytes
from qbench.pipelines import random_weights
from scripts import bench

TOKENS, WARMUP, REPEATS = 226, 2, 10
XXL: dict[str, Any] = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24,
    "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def build(device: str) -> Any:
    from transformers import T5Config, T5EncoderModel

    return random_weights.module(lambda: T5EncoderModel(T5Config(**XXL)), torch.bfloat16, device)


@torch.no_grad()
def measure(scheme: str, device: str) -> dict[str, Any]:
    module = build(device)
    if scheme == "int8":
        import torchao.quantization as ao

        ao.quantize_(module, ao.Int8WeightOnlyConfig(set_inductor_config=False))
    tokens = torch.randint(0, XXL["vocab_size"], (2, TOKENS), device=device)
    peaks = PeakMeter(device)
    times = clock.sample(lambda: module(tokens), device, WARMUP, REPEATS)
    return {
        "scheme": scheme,
        "parameters": sum(p.numel() for p in module.parameters()),
        "weights_bytes": stored_bytes(module),
        "encode_s": times,
        "peak": peaks.lap().model_dump(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    rows = []
    for scheme in ("bf16", "int8"):
        rows.append(measure(scheme, args.device))
        row = rows[-1]
        held = row["peak"]["allocated_bytes"] or row["peak"]["resident_bytes"]
        taken = statistics.median(row["encode_s"])
        print(
            f"{scheme}: weights {row['weights_bytes'] / 2**30:.2f} GiB, "
            f"peak {held / 2**30:.2f} GiB, {taken * 1000:.1f} ms (n = {REPEATS})",
            flush=True,
        )
        if args.device == "cuda":
            torch.cuda.empty_cache()
    bench.write(args.out, args.device, rows=rows)


if __name__ == "__main__":
    main()
