"""Train the two metric models of the rendered world: the probe and tiny-clip."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from qbench import world
from qbench.quality.metrics.probe import Probe, load_probe
from scripts.train.loop import fit
from scripts.train.text import TEXT_TOKENS, clip_tokenizer

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]  # those of OpenAI's CLIP
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def random_clips(
    count: int,
    device: str,
    generator: torch.Generator,
    length: tuple[int, int] = world.LENGTHS[0],
) -> tuple[Any, Any]:
    """Rendered clips of scenes drawn evenly, held-out ones too: a judge should know them all.

    length: frames and pixels a side.
    """
    sizes = [len(values) for values in world.ATTRIBUTES.values()]
    index = torch.stack(
        [torch.randint(n, (count,), device=device, generator=generator) for n in sizes], dim=1
    )
    jitters = torch.rand(count, world.JITTERS, device=device, generator=generator)
    return world.render(index, jitters, *length), index


def worn(clips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Clips as a generator might return them: softened, noisy, a little off in brightness."""
    batch = len(clips)
    device = clips.device

    def uniform() -> torch.Tensor:
        return torch.rand(batch, 1, 1, 1, 1, device=device, generator=generator)

    soft = nn.functional.avg_pool2d(clips.flatten(0, 1), 3, 1, 1).view_as(clips)
    clips = torch.lerp(clips, soft, uniform())
    noise = torch.randn(clips.shape, device=device, generator=generator)
    clips = clips * (0.92 + 0.16 * uniform()) + (uniform() - 0.5) * 0.06
    return (clips + 0.06 * uniform() * noise).clamp(0, 1)


def train_probe(out: Path, work: Path, seconds: float, batch: int, device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    probe = Probe().to(device)
    generator = torch.Generator(device).manual_seed(1)

    def loss_of_batch() -> torch.Tensor:
        clips, index = random_clips(batch, device, generator)
        with torch.autocast(device, torch.bfloat16):
            logits = probe(worn(clips, generator))
        losses = [
            nn.functional.cross_entropy(value.float(), index[:, i], label_smoothing=0.02)
            for i, value in enumerate(logits.values())
        ]
        return torch.stack(losses).sum()

    steps = fit(
        loss_of_batch,
        probe,
        seconds=seconds,
        peak_lr=1e-3,
        checkpoint=work / "probe.pt",
        label="probe",
    )
    folder = out / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in probe.state_dict().items()}
    save_file(state, folder / "model.safetensors")

    probe = load_probe(folder, device)
    generator.manual_seed(2)
    right = dict.fromkeys(world.ATTRIBUTES, 0)
    total, chunk = 0, 256
    with torch.no_grad():
        for _ in range(16):
            clips, index = random_clips(chunk, device, generator)
            for i, (name, logits) in enumerate(probe(clips).items()):
                right[name] += int((logits.argmax(1) == index[:, i]).sum())
            total += chunk
    accuracy = {name: count / total for name, count in right.items()}
    return {"steps": steps, "seconds": seconds, "clips": total, "accuracy": accuracy}


def clip_model() -> Any:
    from transformers import CLIPConfig, CLIPModel

    tokenizer = clip_tokenizer()
    shared = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    text = {
        **shared,
        "num_hidden_layers": 3,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TEXT_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shared, "num_hidden_layers": 5, "image_size": world.SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    return CLIPModel(config), tokenizer


def train_clip(out: Path, work: Path, seconds: float, device: str) -> dict[str, Any]:
    """Contrastive on single frames; a batch never holds two captions that a frame cannot tell."""
    torch.manual_seed(0)
    model, tokenizer = clip_model()
    model = model.to(device)
    generator = torch.Generator(device).manual_seed(3)
    sizes = [len(values) for values in world.ATTRIBUTES.values()]
    every = [scene.caption(t) for scene in world.scenes() for t in (0, 1)]
    ids = tokenizer(every, padding="max_length", max_length=TEXT_TOKENS, return_tensors="pt")
    ids = ids["input_ids"].to(device)
    mean = torch.tensor(CLIP_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=device).view(1, 3, 1, 1)
    distinct = sizes[0] * sizes[1] * sizes[2]

    def frames_and_captions() -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.randperm(distinct, device=device, generator=generator)
        shape, rest = order // (sizes[1] * sizes[2]), order % (sizes[1] * sizes[2])
        columns = [shape, rest // sizes[2], rest % sizes[2]]
        for n in sizes[3:]:
            columns.append(torch.randint(n, (distinct,), device=device, generator=generator))
        index = torch.stack(columns, 1)
        jitters = torch.rand(distinct, world.JITTERS, device=device, generator=generator)
        clips = world.render(index, jitters)
        pick = torch.randint(world.FRAMES, (distinct,), device=device, generator=generator)
        frames = clips[torch.arange(distinct, device=device), pick]
        number = torch.zeros(distinct, dtype=torch.long, device=device)
        for i, n in enumerate(sizes):
            number = number * n + index[:, i]
        which = torch.randint(2, (distinct,), device=device, generator=generator)
        return frames, ids[number * 2 + which]

    def logits() -> torch.Tensor:
        frames, text = frames_and_captions()
        if model.training:
            frames = worn(frames.unsqueeze(1), generator).squeeze(1)
        with torch.autocast(device, torch.bfloat16, enabled=model.training):
            return model(input_ids=text, pixel_values=(frames - mean) / std).logits_per_image

    def loss_of_batch() -> torch.Tensor:
        scores = logits().float()
        target = torch.arange(distinct, device=device)
        cross = nn.functional.cross_entropy
        return (cross(scores, target) + cross(scores.T, target)) / 2

    steps = fit(
        loss_of_batch,
        model,
        seconds=seconds,
        peak_lr=1e-3,
        checkpoint=work / "clip.pt",
        weight_decay=0.05,
        label="clip",
    )
    folder = out / "tiny-clip"
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": world.SIDE},
        "crop_size": {"height": world.SIDE, "width": world.SIDE},
        "resample": 3,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")
    model.float()
    generator.manual_seed(4)
    with torch.no_grad():
        scores = torch.stack([logits() for _ in range(8)])
    target = torch.arange(distinct, device=device)
    to_text = (scores.argmax(2) == target).float().mean().item()
    to_image = (scores.argmax(1) == target).float().mean().item()
    return {
        "steps": steps,
        "seconds": seconds,
        "captions": distinct,
        "frame_to_caption_top1": to_text,
        "caption_to_frame_top1": to_image,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the bundled models")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--probe-seconds", type=float, default=150)
    parser.add_argument("--clip-seconds", type=float, default=150)
    parser.add_argument("--batch", type=int, default=256)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments.work.mkdir(parents=True, exist_ok=True)
    figures = {
        "probe": train_probe(
            arguments.out, arguments.work, arguments.probe_seconds, arguments.batch, device
        ),
        "tiny-clip": train_clip(arguments.out, arguments.work, arguments.clip_seconds, device),
    }
    (arguments.out / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
