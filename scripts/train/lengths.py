"""Train tiny-cogvideox's denoiser on at several lengths, with the same weights for all.

    python -m torch.distributed.run --standalone --nproc-per-node 2 -m scripts.train.lengths
        --vae FOLDER --out FOLDER --work FOLDER [--seconds 300] [--until UNIX_TIME] [--compile]
        [--capture] [--shares 17x64:240 33x128:64 49x192:20 49x256:14] [--clips 8 4 1 1]

The text encoder stays as it is, so each caption is encoded once. Latents of rendered clips are made
first, each process its own part, and kept in `--work` for the stages after this one. Positions are
coded as CogVideoX-2B's are: by diffusers, for the size at hand, from the same configuration. The
schedule is the same at every length, too: its shift of 3 is CogVideoX-2B's for 17,550 video tokens,
and the longest clip here has 3,328. Without a launcher one process does it all. With --capture each
length's forward and backward pass is one CUDA graph, for a step is thousands of small kernels.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from qbench import cache, world
from qbench.pipelines.known import BUNDLED
from scripts.train.denoiser import latent_bank
from scripts.train.denoising import caption_ids, training_scenes, v_loss
from scripts.train.loop import Ranks, fit, join, resumed_at
from scripts.train.mixture import Length, Mixture, Share, share

SEED = 300
SHARES = ("17x64:240", "33x128:64", "49x192:20", "49x256:14")


def bank_of(
    vae: Any, size: Length, scenes: list[world.Scene], clips: int, kept: Path, ranks: Ranks
) -> tuple[torch.Tensor, torch.Tensor]:
    """This process's latents, and the scene of each: of all clips, every n-th of n processes.

    kept: a file that holds them afterwards, or already.
    """
    device = vae.device.type
    owners = torch.arange(len(scenes)).repeat_interleave(clips)[ranks.rank :: ranks.size]
    if not kept.exists():
        rows = torch.tensor([scene.indices() for scene in scenes])[owners]
        bank = latent_bank(vae, rows, SEED + ranks.rank, device, size)
        partial = kept.with_suffix(".partial")
        torch.save(bank.cpu(), partial)
        partial.replace(kept)
    bank = torch.load(kept, weights_only=True, map_location=device)
    return bank, owners.to(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pretrained", type=Path, default=BUNDLED / "tiny-cogvideox")
    parser.add_argument("--vae", type=Path, help="another VAE than the one that it starts with")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument(
        "--seconds", type=float, default=300, help="of training, all stages; 0 ends with this call"
    )
    parser.add_argument(
        "--until", type=float, default=math.inf, help="when this call stops to train, in Unix time"
    )
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--shares", type=share, nargs="+", default=[share(one) for one in SHARES])
    parser.add_argument("--clips", type=int, nargs="+", default=[8, 4, 1, 1], help="a scene")
    parser.add_argument("--scenes", type=int, default=0, help="use the first N scenes (a trial)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--capture", action="store_true", help="CUDA graphs; needs a GPU")
    parser.add_argument("--bank-only", action="store_true", help="stop when latents are made")
    arguments = parser.parse_args()
    began, shares = time.monotonic(), list[Share](arguments.shares)
    if len(arguments.clips) != len(shares):
        parser.error("--clips has one number for each of --shares")

    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ranks = join(device)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    arguments.work.mkdir(parents=True, exist_ok=True)
    pipeline: Any = CogVideoXPipeline.from_pretrained(
        arguments.pretrained, torch_dtype=torch.float32
    )
    source = arguments.vae or arguments.pretrained / "vae"
    if arguments.vae:
        pipeline.vae = AutoencoderKLCogVideoX.from_pretrained(source, torch_dtype=torch.float32)
    pipeline.to(device)
    vae, denoiser = pipeline.vae.requires_grad_(False), pipeline.transformer
    scenes = training_scenes(arguments.scenes)
    digest = cache.folder_digest(source)[:12]
    banks = {}
    for part, clips in zip(shares, arguments.clips, strict=True):
        name = f"latents-{part.name}-{len(scenes) * clips}-{digest}-{ranks.rank}of{ranks.size}.pt"
        banks[part] = bank_of(vae, part.length, scenes, clips, arguments.work / name, ranks)
        spent, count = time.monotonic() - began, len(banks[part][0])
        print(f"rank {ranks.rank}: {count} latents of {part.name} after {spent:.0f} s", flush=True)
    ranks.wait()
    if arguments.bank_only:
        return

    ids = caption_ids(pipeline.tokenizer, scenes, device)
    with torch.no_grad():
        captions = torch.cat([pipeline.text_encoder(some)[0] for some in ids.split(512)])
    signal = pipeline.scheduler.alphas_cumprod.float().to(device)
    checkpoint = arguments.work / "lengths.pt"
    before, spent = resumed_at(checkpoint)
    seed = SEED + 1000 * ranks.rank + before
    generator = torch.Generator(device).manual_seed(seed)
    if arguments.compile:
        torch._dynamo.config.recompile_limit = 4 * len(shares)
        for block in denoiser.transformer_blocks:
            block.compile(fullgraph=True, dynamic=False)

    embed = denoiser.patch_embed  # computes the positions of any size but one at every call
    embed._get_positional_embeddings = functools.cache(embed._get_positional_embeddings)

    def predict(noised: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        guess: torch.Tensor = denoiser(noised, text, t, return_dict=False)[0]
        return guess

    mixture = Mixture(
        {
            part: v_loss(predict, bank, captions, signal, owners, part.batch, generator, even=True)
            for part, (bank, owners) in banks.items()
        }
    )
    denoiser.train()  # as `fit` has it, or all would be compiled once more
    for part, loss_of_batch in mixture.losses.items():  # before the clock starts
        loss_of_batch().backward()
        if ranks.first:
            print(f"{part.name} ready after {time.monotonic() - began:.0f} s", flush=True)
    if arguments.capture:
        mixture.capture(generator)
    left = max(0.0, arguments.until - time.time())
    stage = ranks.agreed(left, denoiser.device)
    seconds = arguments.seconds or spent + stage
    steps = fit(
        mixture,
        denoiser,
        seconds=seconds,
        peak_lr=arguments.lr,
        checkpoint=checkpoint,
        ema=arguments.ema,
        warmup=0.05,
        label=f"lengths {arguments.out.name}",
        check=lambda _: print(mixture.told(), flush=True) if ranks.first else None,
        check_s=min(20.0, seconds / 4),
        stage_s=stage,
        ranks=ranks,
    )
    if not ranks.first:
        return
    plain = type(denoiser).from_config(dict(denoiser.config))
    plain.load_state_dict({name: value.cpu() for name, value in denoiser.state_dict().items()})
    pipeline.to("cpu").transformer = plain
    pipeline.to(torch.float16).save_pretrained(arguments.out)
    figures = {
        "steps": steps,
        "seconds": resumed_at(checkpoint)[1],
        "of_seconds": seconds,
        "lr": arguments.lr,
        "ranks": ranks.size,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "batches_a_process": {part.name: part.batch for part in shares},
        "every_nth_step": {part.name: part.every for part in shares},
        "latents": {
            part.name: len(scenes) * n for part, n in zip(shares, arguments.clips, strict=True)
        },
        "losses": mixture.told(),
    }
    report = arguments.out.parent / f"{arguments.out.name}-lengths.json"
    report.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
