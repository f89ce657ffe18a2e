"""Train tiny-zeroscope's VAE, which knows single frames, on frames of rendered clips."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from qbench import world
from scripts.train.loop import fit
from scripts.train.metrics import random_clips
from scripts.train.vae import vae_loss

SEEN_SEED, UNSEEN_SEED = 30, 40
LATENT_CHANNELS = 8


def vae_model(widths: tuple[int, ...]) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=world.SIDE,
        scaling_factor=1.0,
    )


def frame_bank(clips: int, device: str) -> torch.Tensor:
    """(frames, 3, h, w) in [-1, 1], float16: what is rendered once need not be rendered again."""
    generator = torch.Generator(device).manual_seed(SEEN_SEED)
    chunk = min(clips, 256)
    bank = [random_clips(chunk, device, generator)[0] for _ in range(clips // chunk)]
    return torch.cat([(part * 2 - 1).half().flatten(0, 1) for part in bank])


@torch.no_grad()
def reconstruction_psnr(vae: Any, device: str, batches: int, batch: int) -> torch.Tensor:
    """PSNR in dB of each clip over all its frames; the clips are drawn from an unseen seed."""
    generator = torch.Generator(device).manual_seed(UNSEEN_SEED)
    found = []
    for _ in range(batches):
        clips, _ = random_clips(batch, device, generator)
        latents = vae.encode(clips.flatten(0, 1) * 2 - 1).latent_dist.mean
        back = ((vae.decode(latents).sample + 1) / 2).clamp(0, 1).view_as(clips)
        found.append(-10 * torch.log10((back - clips).square().flatten(1).mean(1)))
    return torch.cat(found).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the VAE to")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--seconds", type=float, default=165)
    parser.add_argument("--batch", type=int, default=512, help="frames")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--kl", type=float, default=3e-6)
    parser.add_argument("--widths", type=int, nargs=4, default=[32, 48, 48, 48])
    parser.add_argument("--clips", type=int, default=24576, help="rendered once, for training")
    parser.add_argument("--start", type=Path, help="train this VAE's decoder on, its latents kept")
    arguments = parser.parse_args()

    from diffusers import AutoencoderKL

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    arguments.work.mkdir(parents=True, exist_ok=True)
    widths = tuple(arguments.widths)
    if arguments.start:
        vae = AutoencoderKL.from_pretrained(arguments.start, torch_dtype=torch.float32)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        trained = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])
    else:
        vae = trained = vae_model(widths)
    vae.to(device, memory_format=torch.channels_last)
    bank = frame_bank(arguments.clips, device)
    generator = torch.Generator(device).manual_seed(SEEN_SEED + 1)

    def loss_of_batch() -> torch.Tensor:
        pick = torch.randint(len(bank), (arguments.batch,), device=device, generator=generator)
        frames = bank[pick].float().contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            with torch.set_grad_enabled(arguments.start is None):
                posterior = vae.encode(frames).latent_dist
            back = vae.decode(posterior.sample()).sample
        return vae_loss(back, frames, posterior, arguments.kl)

    steps = fit(
        loss_of_batch,
        trained,
        seconds=arguments.seconds,
        peak_lr=arguments.lr,
        checkpoint=arguments.work / ("decoder.pt" if arguments.start else "frame-vae.pt"),
        weight_decay=0.0,
        label="frame vae",
    )
    rounded = {name: value.half().float() for name, value in vae.state_dict().items()}
    vae.load_state_dict(rounded)
    if not arguments.start:
        with torch.no_grad():
            latents = vae.encode(bank[: 64 * world.FRAMES].float()).latent_dist.mean
        vae.register_to_config(scaling_factor=1.0 / latents.std().item())
    psnr = reconstruction_psnr(vae, device, batches=8, batch=64 if device == "cuda" else 2)
    figures = {
        "steps": steps,
        "seconds": arguments.seconds,
        "batch": arguments.batch,
        "lr": arguments.lr,
        "decoder_only": bool(arguments.start),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "psnr_db_mean": psnr.mean().item(),
        "psnr_db_p5": psnr.quantile(0.05).item(),
        "clips": len(psnr),
        "scaling_factor": vae.config.scaling_factor,
    }
    vae.half().save_pretrained(arguments.out)
    (arguments.out.parent / f"{arguments.out.name}.json").write_text(
        json.dumps(figures, indent=2) + "\n"
    )
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
