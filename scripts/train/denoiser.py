"""Train tiny-cogvideox's denoiser, and its text encoder with it, on latents of rendered clips."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qbench import world
from scripts.train.denoising import caption_ids, training_scenes, v_loss
from scripts.train.loop import fit
from scripts.train.mixture import Length
from scripts.train.rendered import together
from scripts.train.text import TEXT_TOKENS, t5_tokenizer
from scripts.train.vae import to_vae

TEXT_WIDTH = 128
LATENT = (5, 16, 8, 8)  # frames, channels, height, width


def denoiser_model() -> Any:
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        num_layers=8,
        time_embed_dim=128,
        text_embed_dim=TEXT_WIDTH,
        sample_width=LATENT[3],
        sample_height=LATENT[2],
        sample_frames=world.FRAMES,
        max_text_seq_length=TEXT_TOKENS,
        spatial_interpolation_scale=1.0,
    )


def text_model(vocabulary: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=32,
        num_heads=4,
        d_ff=256,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def scheduler_model(snr_shift: float) -> Any:
    from diffusers import CogVideoXDDIMScheduler

    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=snr_shift,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


@torch.no_grad()
def latent_bank(
    vae: Any,
    rows: torch.Tensor,
    seed: int,
    device: str,
    size: Length = world.LENGTHS[0],
) -> torch.Tensor:
    """Scaled posterior means of a fresh clip for each row of scene indices, bfloat16."""
    generator = torch.Generator(device).manual_seed(seed)
    chunk = together(size, 256 if device == "cuda" else 8)
    shape = (size[0] // 4 + 1, LATENT[1], size[1] // 8, size[1] // 8)
    bank = torch.empty(len(rows), *shape, dtype=torch.bfloat16, device=device)
    for start in range(0, len(rows), chunk):
        index = rows[start : start + chunk].to(device)
        jitters = torch.rand(len(index), world.JITTERS, device=device, generator=generator)
        with torch.autocast(device, torch.bfloat16):
            mean = vae.encode(to_vae(world.render(index, jitters, *size))).latent_dist.mean
        bank[start : start + chunk] = mean.transpose(1, 2) * vae.config.scaling_factor
    return bank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--snr-shift", type=float, default=1.0)
    parser.add_argument("--clips-a-scene", type=int, default=48)
    parser.add_argument("--scenes", type=int, default=0, help="use the first N scenes (a trial)")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()

    from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.manual_seed(0)
    arguments.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    vae = AutoencoderKLCogVideoX.from_pretrained(arguments.vae, torch_dtype=torch.float32)
    vae = vae.to(device).eval().requires_grad_(False)
    scenes = training_scenes(arguments.scenes)
    rows = torch.tensor([scene.indices() for scene in scenes])
    bank = latent_bank(vae, rows.repeat_interleave(arguments.clips_a_scene, 0), 100, device)
    print(f"{len(bank)} latents in {time.monotonic() - started:.0f} s", flush=True)

    tokenizer = t5_tokenizer()
    ids = caption_ids(tokenizer, scenes, device)

    denoiser, text = denoiser_model().to(device), text_model(len(tokenizer)).to(device)
    both = nn.ModuleList([denoiser, text])
    scheduler = scheduler_model(arguments.snr_shift)
    signal = scheduler.alphas_cumprod.float().to(device)
    generator = torch.Generator(device).manual_seed(5)
    if arguments.compile:
        denoiser.compile()

    def predict(noised: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return denoiser(noised, text(ids)[0], t, return_dict=False)[0]

    owners = torch.arange(len(bank), device=device) // arguments.clips_a_scene
    loss_of_batch = v_loss(predict, bank, ids, signal, owners, arguments.batch, generator)

    steps = fit(
        loss_of_batch,
        both,
        seconds=arguments.seconds,
        peak_lr=arguments.lr,
        checkpoint=arguments.work / "denoiser.pt",
        ema=0.9995,
        label=f"denoiser {arguments.out.name}",
    )
    plain = denoiser_model()
    state = {name: value.cpu() for name, value in denoiser.state_dict().items()}
    plain.load_state_dict(state)
    pipeline: Any = CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=text.cpu(),
        vae=vae.cpu(),
        transformer=plain,
        scheduler=scheduler,
    )
    pipeline.to(torch.float16).save_pretrained(arguments.out)
    figures = {
        "steps": steps,
        "seconds": arguments.seconds,
        "batch": arguments.batch,
        "lr": arguments.lr,
        "snr_shift_scale": arguments.snr_shift,
        "latents": len(bank),
        "denoiser_parameters": sum(p.numel() for p in plain.parameters()),
        "text_parameters": sum(p.numel() for p in text.parameters()),
    }
    report = arguments.out.parent / f"{arguments.out.name}-denoiser.json"
    report.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
