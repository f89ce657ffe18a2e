"""The VAE's decode by each way that qbench has, and qbench's convolutions beside cuDNN's.

    python -m scripts.bench_decode [--model cogvideox-2b] [--device auto] [--repeats 4]
        [--out results/published/MACHINE/decode.json]

Prints for each way the seconds of the first decode and of the others, the peak of what torch handed
out, and PSNR to the decode in FP32, of the same latents and random weights; with `--model
tiny-cogvideox` its own. On a Hopper GPU the decoder's main convolutions follow, n = 10.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from qbench.meters.clock import Clock, sample
from qbench.meters.memory import PeakMeter
from qbench.optimizations.kernels import vae_conv
from qbench.optimizations.vae import patch
from qbench.pipelines import base
from qbench.quality.metrics.fidelity import psnr
from qbench.recipe.schema import Decode
from qbench.report import tables
from scripts import bench

WAYS = {
    "plain": Decode(),
    "split_norms": Decode(split_norms=True),
    "strips": Decode(strips=True),
    "fused": Decode(fused=True),
}
# Channels in and out, frames, height, width of the output, taps in time
SHAPES = [
    (128, 128, 8, 480, 720, 3),
    (256, 128, 8, 480, 720, 3),
    (256, 256, 8, 240, 360, 3),
    (256, 256, 8, 480, 720, 1),
]


def _vae(model: str, device: str) -> tuple[Any, torch.Tensor]:
    """The VAE in FP32, and latents of the model's own size."""
    generator = torch.Generator().manual_seed(0)
    if model == "tiny-cogvideox":
        from qbench.pipelines import specs

        vae = specs.load(specs.find(model), "fp32", "cpu").pipe.vae.float()
        return vae.to(device), torch.randn(1, 16, 5, 8, 8, generator=generator).to(device)
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    large: Any = AutoencoderKLCogVideoX()
    large.eval().requires_grad_(False)
    return large.to(device), torch.randn(1, 16, 13, 60, 90, generator=generator).to(device)


def decodes(model: str, device: str, repeats: int) -> list[dict[str, Any]]:
    rows = []
    vae, latents = _vae(model, device)
    exact = base.frames_of(vae.decode(latents).sample).cpu()
    latents = latents.bfloat16()
    del vae
    for name, way in WAYS.items():
        vae = _vae(model, device)[0].bfloat16()
        patch.apply(SimpleNamespace(vae=vae), way)
        peaks, clock = PeakMeter(device), Clock(device)
        video = vae.decode(latents).sample
        first, allocated = clock.lap(), peaks.lap().allocated_bytes
        times = sample(partial(vae.decode, latents), device, warmup=0, repeats=repeats)
        line = f"{name:12s} first {first:.2f} s, then {statistics.median(times):.3f} s"
        line += f" [{min(times):.3f}, {max(times):.3f}]"
        if allocated:
            line += f", {tables.bytes_text(allocated)}"
        close = float(psnr(base.frames_of(video).cpu(), exact).mean())
        print(f"{line}, {close:.1f} dB to FP32", flush=True)
        row = {"way": name, "first_s": first, "decode_s": times, "peak_allocated_bytes": allocated}
        rows.append(row | {"psnr_to_fp32_db": close})
        del vae, video
    return rows


def convolution(
    inputs: int, outputs: int, frames: int, height: int, width: int, taps: int
) -> dict[str, Any]:
    conv = torch.nn.Conv3d(inputs, outputs, (taps, 3, 3)).to("cuda", torch.bfloat16)
    weights = vae_conv.Weights(conv)
    packed, bias, padding = weights.packed(conv.weight), conv.bias, (0, 1, 1)
    assert bias is not None
    x = torch.randn(1, inputs, frames + taps - 1, height, width, device="cuda").bfloat16()
    inner = vae_conv.to_planes(x[:, :, taps - 1 :])
    before = vae_conv.to_planes(x[:, :, : taps - 1]) if taps > 1 else None
    last = torch.channels_last_3d
    x_last, weight_last = (t.contiguous(memory_format=last) for t in (x, conv.weight))
    ways: dict[str, Callable[[], Any]] = {
        "planes": lambda: vae_conv.convolve(inner, weights, packed, bias, before),
        "cuDNN": lambda: functional.conv3d(x, conv.weight, bias, padding=padding),
        "channels-last": lambda: functional.conv3d(x_last, weight_last, bias, padding=padding),
    }
    flop = 2 * 9 * taps * inputs * outputs * frames * height * width
    print(f"{inputs} to {outputs}, {frames}x{height}x{width}, {taps}x3x3:", end=" ")
    row: dict[str, Any] = {
        "shape": f"{inputs}-{outputs}-{frames}x{height}x{width}-{taps}x3x3",
        "flop": flop,
    }
    for name, way in ways.items():
        times = sample(way, "cuda", warmup=1, repeats=10)
        seconds = statistics.median(times)
        row[name] = {"seconds": times, "flop_per_s": flop / seconds}
        print(f"{name} {seconds * 1e3:.2f} ms, {flop / seconds / 1e12:.0f} TFLOP/s", end="; ")
    print(flush=True)
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, from the JSON file's rows."""
    lines = [
        (
            row["way"],
            f"{row['first_s']:.2f} s",
            f"{statistics.median(row['decode_s']):.3g} s",
            tables.bytes_text(row["peak_allocated_bytes"] or None),
            f"{row['psnr_to_fp32_db']:.1f} dB",
        )
        for row in rows
    ]
    return tables.grid(("decode", "first", "then", "peak", "PSNR to FP32"), lines)


def convolutions_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, from the JSON file's convolutions: TFLOP/s by layout."""
    ways = [name for name in rows[0] if name not in ("shape", "flop")]
    heads = ["blocked by eight" if name == "planes" else name for name in ways]
    lines = []
    for row in rows:
        inputs, outputs, size, taps = row["shape"].split("-")
        rates = [f"{row[name]['flop_per_s'] / 1e12:.0f} TFLOP/s" for name in ways]
        lines.append([f"{inputs} to {outputs}, {taps}, {size}", *rates])
    return tables.grid(["convolution", *heads], lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="cogvideox-2b", choices=["cogvideox-2b", "tiny-cogvideox"]
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--out", type=Path, help="write the samples as JSON")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, convolutions = decodes(args.model, device, args.repeats), []
    if device == "cuda" and torch.cuda.get_device_capability() == (9, 0):
        convolutions = [convolution(*shape) for shape in SHAPES]
    if args.out:
        bench.write(args.out, device, model=args.model, rows=rows, convolutions=convolutions)


if __name__ == "__main__":
    main()
