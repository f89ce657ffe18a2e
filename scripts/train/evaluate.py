"""Measure a trained pipeline: prompt following by the probe, seen and held-out scenes apart."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch

from qbench import world
from qbench.quality.metrics.probe import Probe, load_probe
from scripts.train.text import TEXT_TOKENS


def test_scenes(count: int, held_out: bool) -> list[world.Scene]:
    """Scenes drawn with a fixed seed, without repetition."""
    every = [scene for scene in world.scenes() if world.held_out(scene) == held_out]
    return random.Random(7).sample(every, count)


def call_of(pipeline: Any) -> dict[str, int]:
    """What this kind of pipeline must be told to make a clip of the world."""
    if type(pipeline).__name__ == "CogVideoXPipeline":
        return {"max_sequence_length": TEXT_TOKENS}
    return {"num_frames": world.FRAMES, "height": world.SIDE, "width": world.SIDE}


@torch.no_grad()
def generate(
    pipeline: Any, scenes: list[world.Scene], guidance: float, steps: int, batch: int
) -> torch.Tensor:
    """(n, frames, 3, h, w) in [0, 1] on the CPU; each video's noise has its own seed."""
    videos = []
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        noise = [torch.Generator().manual_seed(1000 + start + i) for i in range(len(part))]
        out = pipeline(
            prompt=[scene.caption(i % 2) for i, scene in enumerate(part)],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=noise,
            output_type="pt",
            **call_of(pipeline),
        ).frames
        videos.append(out.float().clamp(0, 1).cpu())
    return torch.cat(videos)


@torch.no_grad()
def following(probe: Probe, videos: torch.Tensor, scenes: list[world.Scene]) -> dict[str, float]:
    """Share of videos in which the probe finds what the caption says, by attribute."""
    device = next(probe.parameters()).device
    logits = [probe(part.to(device)) for part in videos.split(64)]
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
    arguments = parser.parse_args()

    from diffusers import DiffusionPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = DiffusionPipeline.from_pretrained(str(arguments.pipeline), torch_dtype=torch.float32)
    pipeline.to(device).set_progress_bar_config(disable=True)
    probe = load_probe(arguments.probe, device)
    rows = []
    for guidance in arguments.guidance:
        for steps in arguments.steps:
            for held_out in (False, True):
                scenes = test_scenes(arguments.count, held_out)
                videos = generate(pipeline, scenes, guidance, steps, arguments.batch)
                share = following(probe, videos, scenes)
                row = {"guidance": guidance, "steps": steps, "held_out": held_out}
                rows.append(row | {"videos": len(videos)} | share)
                print(json.dumps(rows[-1]), flush=True)
                if arguments.sheet:
                    kind = "held-out" if held_out else "seen"
                    name = f"{arguments.sheet.stem}-{kind}-g{guidance:g}.webp"
                    contact_sheet(videos[:24], arguments.sheet.with_name(name))
    arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
