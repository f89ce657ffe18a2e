"""What the probe and a VAE make of rendered clips of every size, before anything is generated.

    python -m scripts.train.rendered [--vae FOLDER] [--probe FOLDER] [--out FILE]
        [--lengths 17x64 ...] [--probe-clips 1024] [--vae-clips 64]

A share of prompts followed means as much as the probe that says so is right; a clip is as sharp as
its VAE lets it be. The clips are of all combinations, drawn from a seed that no training used.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from qbench import world
from qbench.pipelines.known import BUNDLED
from qbench.quality.metrics.probe import Probe, load_probe
from scripts import bench
from scripts.train.metrics import random_clips
from scripts.train.mixture import Length, length
from scripts.train.vae import UNSEEN_SEED, reconstruction_psnr


def together(size: Length, most: int) -> int:
    """How many clips of this length hold no more pixels than `most` of the smallest."""
    return max(1, most * world.FRAMES * world.SIDE**2 // (size[0] * size[1] ** 2))


@torch.no_grad()
def accuracy(probe: Probe, size: Length, clips: int, most: int, device: str) -> dict[str, float]:
    """Share of rendered clips whose attributes the probe names, each and all."""
    generator = torch.Generator(device).manual_seed(UNSEEN_SEED)
    found = []
    for _ in range(-(-clips // together(size, most))):
        frames, index = random_clips(together(size, most), device, generator, size)
        answers = probe(world.shrunk(frames))
        named = torch.stack([logits.argmax(1) for logits in answers.values()], dim=1)
        found.append((named == index).float().cpu())
    right = torch.cat(found)
    each = dict(zip(world.ATTRIBUTES, right.mean(0).tolist(), strict=True))
    return {"clips": len(right), **each, "all": right.min(1).values.mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vae", type=Path, default=BUNDLED / "tiny-cogvideox" / "vae")
    parser.add_argument("--probe", type=Path, default=BUNDLED / "probe")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--lengths", type=length, nargs="+", default=list(world.LENGTHS))
    parser.add_argument("--probe-clips", type=int, default=1024)
    parser.add_argument("--vae-clips", type=int, default=64)
    arguments = parser.parse_args()

    from diffusers import AutoencoderKLCogVideoX

    device = "cuda" if torch.cuda.is_available() else "cpu"
    most = 256 if device == "cuda" else 32
    probe = load_probe(arguments.probe, device)
    vae: Any = AutoencoderKLCogVideoX.from_pretrained(arguments.vae, torch_dtype=torch.float32)
    vae = vae.to(device).eval()
    rows = []
    for size in arguments.lengths:
        row: dict[str, object] = {"frames": size[0], "side": size[1]}
        if arguments.probe_clips:
            row["probe"] = accuracy(probe, size, arguments.probe_clips, most, device)
            print(json.dumps(row), flush=True)
        if arguments.vae_clips:
            batch = min(together(size, most), arguments.vae_clips)
            batches = -(-arguments.vae_clips // batch)
            psnr = reconstruction_psnr(vae, device, batches, batch, size)
            low = psnr.quantile(0.05).item()
            row["vae"] = {"clips": len(psnr), "psnr_db_mean": psnr.mean().item(), "psnr_db_p5": low}
            print(json.dumps(row), flush=True)
        rows.append(row)
    if arguments.out:
        bench.save(arguments.out, rows)


if __name__ == "__main__":
    main()
