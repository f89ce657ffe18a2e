"""Measure a trained pipeline: prompt following by the probe, seen and held-out scenes apart.

Of clips larger than the smallest, the probe and the contact sheets see what `world.shrunk` makes of
them; a few of each length are drawn at their own size besides, two frames of each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import torch

from qbench import world
from qbench.quality.metrics.probe import Probe, load_probe
from scripts import bench
from scripts.train.mixture import Length, length
from scripts.train.rendered import together
from scripts.train.text import TEXT_TOKENS


def test_scenes(count: int, held_out: bool) -> list[world.Scene]:
    """Scenes drawn with a fixed seed, without repetition."""
    every = [scene for scene in world.scenes() if world.held_out(scene) == held_out]
    return random.Random(7).sample(every, count)


def call_of(pipeline: Any, size: Length) -> dict[str, int]:
    """What this kind of pipeline must be told to make a clip of the world."""
    told = {"num_frames": size[0], "height": size[1], "width": size[1]}
    if type(pipeline).__name__ == "CogVideoXPipeline":
        told["max_sequence_length"] = TEXT_TOKENS
    return told


@torch.no_grad()
def generate(
    pipeline: Any,
    scenes: list[world.Scene],
    guidance: float,
    steps: int,
    batch: int,
    size: Length = world.LENGTHS[0],
) -> torch.Tensor:
    """(n, frames, 3, h, w) in [0, 1] on the CPU; each video's noise has its own seed.

    batch: of the smallest clips; of larger ones, as many as have no more pixels.
    """
    videos, batch = [], together(size, batch)
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        noise = [torch.Generator().manual_seed(1000 + start + i) for i in range(len(part))]
        out = pipeline(
            prompt=[scene.caption(i % 2) for i, scene in enumerate(part)],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=noise,
            output_type="pt",
            **call_of(pipeline, size),
        ).frames
        videos.append(out.float().clamp(0, 1).cpu())
    return torch.cat(videos)


@torch.no_grad()
def following(probe: Probe, videos: torch.Tensor, scenes: list[world.Scene]) -> dict[str, float]:
    """Share of videos in which the probe finds what the caption says, by attribute."""
    device = next(probe.parameters()).device
    part = together((videos.shape[1], videos.shape[-1]), 64)
    logits = [probe(world.shrunk(some.to(device))) for some in videos.split(part)]
    truth = torch.tensor([scene.indices() for scene in scenes])
    right = {
        name: torch.cat([part[name] for part in logits]).argmax(1).cpu() == truth[:, i]
        for i, name in enumerate(world.ATTRIBUTES)
    }
    share = {name: value.float().mean().item() for name, value in right.items()}
    return share | {"all": torch.stack(list(right.values())).all(0).float().mean().item()}


def contact_sheet(videos: torch.Tensor, path: Path, columns: int = 6) -> None:
    from PIL import Image

    times = torch.linspace(0, videos.shape[1] - 1, columns).round().long()
    strips = [torch.cat(list(video[times]), dim=2) for video in videos]
    half = (len(strips) + 1) // 2
    strips += [torch.zeros_like(strips[0])] * (2 * half - len(strips))
    sheet = torch.cat([torch.cat(strips[:half], 1), torch.cat(strips[half:], 1)], dim=2)
    pixels = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, required=True)
    parser.add_argument("--probe", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs="+", default=[30])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5, 3.0, 5.0])
    parser.add_argument("--lengths", type=length, nargs="+", default=[world.LENGTHS[0]])
    parser.add_argument("--scenes", choices=("seen", "held-out", "both"), default="both")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tf32", action="store_true", help="matrix products of FP32 in TF32")
    arguments = parser.parse_args()

    from diffusers import DiffusionPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.tf32:
        torch.set_float32_matmul_precision("high")
    dtype = getattr(torch, arguments.dtype)
    pipeline = DiffusionPipeline.from_pretrained(str(arguments.pipeline), torch_dtype=dtype)
    pipeline.to(device).set_progress_bar_config(disable=True)
    probe = load_probe(arguments.probe, device)
    kinds = {"seen": [False], "held-out": [True], "both": [False, True]}[arguments.scenes]
    rows = []
    for size, guidance, steps, held_out in itertools.product(
        arguments.lengths, arguments.guidance, arguments.steps, kinds
    ):
        scenes, began = test_scenes(arguments.count, held_out), time.monotonic()
        videos = generate(pipeline, scenes, guidance, steps, arguments.batch, size)
        share = following(probe, videos, scenes)
        row = {"frames": size[0], "side": size[1], "guidance": guidance, "steps": steps}
        row |= {"held_out": held_out, "dtype": arguments.dtype, "tf32": arguments.tf32}
        row["seconds"] = round(time.monotonic() - began, 1)
        rows.append(row | {"videos": len(videos)} | share)
        print(json.dumps(rows[-1]), flush=True)
        bench.save(arguments.out, rows)
        if arguments.sheet:
            kind = "held-out" if held_out else "seen"
            stem = f"{arguments.sheet.stem}-{size[0]}x{size[1]}-{kind}-g{guidance:g}"
            contact_sheet(world.shrunk(videos[:24]), arguments.sheet.with_name(f"{stem}.webp"))
            if size != world.LENGTHS[0]:
                whole = arguments.sheet.with_name(f"{stem}-whole.webp")
                contact_sheet(videos[:6], whole, columns=2)


if __name__ == "__main__":
    main()
