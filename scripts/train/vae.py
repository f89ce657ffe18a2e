"""Train tiny-cogvideox's VAE on rendered clips, or one that is trained on clips of more lengths."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qbench import world
from scripts.train.loop import fit, join, resumed_at
from scripts.train.metrics import random_clips
from scripts.train.mixture import Mixture, Share, share

SEEN_SEED, UNSEEN_SEED = 10, 20


def vae_model(widths: tuple[int, ...], layers: int) -> Any:
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=16,
        sample_height=world.SIDE,
        sample_width=world.SIDE,
        scaling_factor=1.0,
    )


def to_vae(clips: torch.Tensor) -> torch.Tensor:
    """(batch, frames, 3, h, w) in [0, 1] to (batch, 3, frames, h, w) in [-1, 1]."""
    return clips.transpose(1, 2) * 2 - 1


@torch.no_grad()
def reconstruction_psnr(
    vae: Any,
    device: str,
    batches: int,
    batch: int,
    length: tuple[int, int] = world.LENGTHS[0],
) -> torch.Tensor:
    """PSNR in dB of each clip over all its frames; the clips are drawn from an unseen seed."""
    generator = torch.Generator(device).manual_seed(UNSEEN_SEED)
    found = []
    for _ in range(batches):
        clips, _ = random_clips(batch, device, generator, length)
        latents = vae.encode(to_vae(clips)).latent_dist.mean
        back = ((vae.decode(latents).sample + 1) / 2).clamp(0, 1).transpose(1, 2)
        found.append(-10 * torch.log10((back - clips).square().flatten(1).mean(1)))
    return torch.cat(found).cpu()


@torch.no_grad()
def latent_scale(vae: Any, device: str) -> float:
    """1 / standard deviation of the latents, so that the denoiser sees unit variance."""
    generator = torch.Generator(device).manual_seed(SEEN_SEED + 1)
    clips, _ = random_clips(64, device, generator)
    return 1.0 / vae.encode(to_vae(clips)).latent_dist.mean.std().item()


def vae_loss(
    back: torch.Tensor, given: torch.Tensor, posterior: Any, kl_weight: float
) -> torch.Tensor:
    """Squared and a little absolute error, and the divergence of the latents from N(0, 1)."""
    error = back.float() - given
    mean, log_var = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
    return error.square().mean() + 0.05 * error.abs().mean() + kl_weight * kl


def losses(
    vae: Any, shares: list[Share], kl: float, generator: torch.Generator, channels_last: bool
) -> Mixture:
    """The loss of each length, on clips that are rendered for the step.

    The VAE codes eight frames at a time, and norms take each such part's moments: so windows of a
    long clip teach it what the clip would, and pictures must be whole.
    """
    device = generator.device.type

    def of(part: Share) -> Callable[[], torch.Tensor]:
        frames = part.window or part.length[0]
        starts = part.length[0] - frames + 1

        def loss() -> torch.Tensor:
            clips, _ = random_clips(part.batch, device, generator, part.length)
            start = int(torch.randint(starts, (1,)))
            video = to_vae(clips[:, start : start + frames])
            if channels_last:
                video = video.contiguous(memory_format=torch.channels_last_3d)
            with torch.autocast(device, torch.bfloat16):
                posterior = vae.encode(video).latent_dist
                back = vae.decode(posterior.sample()).sample
            return vae_loss(back, video, posterior, kl)

        return loss

    return Mixture({part: of(part) for part in shares})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the VAE to")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=3e-6)
    parser.add_argument("--widths", type=int, nargs=4, default=[32, 48, 64, 80])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--pretrained", type=Path, help="train this VAE on; its widths are kept")
    parser.add_argument("--stage", type=float, default=math.inf, help="seconds of this call")
    parser.add_argument(
        "--shares", type=share, nargs="+", help="such as 17x64:12 49x256:1:2:17; see mixture.py"
    )
    arguments = parser.parse_args()

    from diffusers import AutoencoderKLCogVideoX

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ranks = join(device)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.pretrained:
        vae: Any = AutoencoderKLCogVideoX.from_pretrained(
            arguments.pretrained, torch_dtype=torch.float32
        ).to(device)
        arguments.widths = vae.config.block_out_channels
        arguments.layers = vae.config.layers_per_block
    else:
        vae = vae_model(tuple(arguments.widths), arguments.layers).to(device)
    if arguments.channels_last:
        for module in vae.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if arguments.compile:
        vae.encoder.compile(dynamic=False)
        vae.decoder.compile(dynamic=False)
    if ranks.rank:  # the same weights, other draws of latents
        torch.manual_seed(ranks.rank)
    checkpoint = arguments.work / "vae.pt"
    seed = SEEN_SEED + 1000 * ranks.rank + resumed_at(checkpoint)[0]
    generator = torch.Generator(device).manual_seed(seed)
    shares = arguments.shares or [Share(world.LENGTHS[0], arguments.batch)]
    mixture = losses(vae, shares, arguments.kl, generator, arguments.channels_last)
    steps = fit(
        mixture,
        vae,
        seconds=arguments.seconds,
        peak_lr=arguments.lr,
        checkpoint=checkpoint,
        weight_decay=0.0,
        warmup=0.1 if arguments.pretrained else 0.02,
        label=f"vae {arguments.out.parent.name}",
        check=lambda _: print(mixture.told(), flush=True) if ranks.first else None,
        check_s=30.0,
        stage_s=arguments.stage,
        ranks=ranks,
    )
    if not ranks.first:
        return
    stored = vae_model(tuple(arguments.widths), arguments.layers).to(device)
    state = vae.state_dict()
    stored.load_state_dict({name: value.half().float() for name, value in state.items()})
    factor = vae.config.scaling_factor if arguments.pretrained else latent_scale(stored, device)
    stored.register_to_config(scaling_factor=factor)
    psnr = reconstruction_psnr(stored, device, batches=8, batch=64 if device == "cuda" else 2)
    figures = {
        "steps": steps,
        "seconds": arguments.seconds,
        "batch": arguments.batch,
        "lr": arguments.lr,
        "ranks": ranks.size,
        "shares": [part.name for part in shares],
        "parameters": sum(p.numel() for p in vae.parameters()),
        "psnr_db_mean": psnr.mean().item(),
        "psnr_db_p5": psnr.quantile(0.05).item(),
        "clips": len(psnr),
        "scaling_factor": stored.config.scaling_factor,
    }
    stored.half().save_pretrained(arguments.out)
    (arguments.out.parent / "vae.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
