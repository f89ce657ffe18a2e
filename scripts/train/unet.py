"""Train tiny-zeroscope's UNet, and its text encoder with it, on latents of rendered clips."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qbench import world
from qbench.pipelines.known import BUNDLED
from qbench.quality.metrics.probe import load_probe
from scripts.train.denoising import caption_ids, training_scenes, v_loss
from scripts.train.evaluate import following, generate, test_scenes
from scripts.train.frame_vae import LATENT_CHANNELS
from scripts.train.loop import fit
from scripts.train.short_attention import ShortAttention, agrees
from scripts.train.text import TEXT_TOKENS, clip_tokenizer

TEXT_WIDTH = 64
SIDE = world.SIDE // 8


def unet_model() -> Any:
    from diffusers import UNet3DConditionModel

    return UNet3DConditionModel(
        sample_size=SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        # One level: a second would cost as many parameters again, and 8x8 leaves little to gain.
        # Every width is a multiple of 64, so that weights in groups fit.
        block_out_channels=(64,),
        down_block_types=("CrossAttnDownBlock3D",),
        up_block_types=("CrossAttnUpBlock3D",),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )


def text_model(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def scheduler_model() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


class FrameConv(nn.Conv3d):
    """A convolution over time alone as one in two dimensions, for which libraries are faster."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = nn.functional.conv2d(
            x.flatten(3), self.weight.squeeze(-1), self.bias, padding=(1, 0)
        )
        return flat.unflatten(3, x.shape[3:])


def for_training(unet: nn.Module) -> nn.Module:
    """The UNet without its dropout, and with faster convolutions over time; weights as they are."""
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.Conv3d) and module.kernel_size == (3, 1, 1):
            module.__class__ = FrameConv
    return unet


@torch.no_grad()
def latent_bank(vae: Any, rows: torch.Tensor, seed: int, device: str) -> torch.Tensor:
    """Scaled posterior means of a fresh clip for each row of scene indices, bfloat16."""
    generator = torch.Generator(device).manual_seed(seed)
    chunk = 256 if device == "cuda" else 8
    shape = (len(rows), LATENT_CHANNELS, world.FRAMES, SIDE, SIDE)
    bank = torch.empty(shape, dtype=torch.bfloat16, device=device)
    for start in range(0, len(rows), chunk):
        index = rows[start : start + chunk].to(device)
        jitters = torch.rand(len(index), world.JITTERS, device=device, generator=generator)
        frames = world.render(index, jitters).flatten(0, 1) * 2 - 1
        with torch.autocast(device, torch.bfloat16):
            mean = vae.encode(frames.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        clips = mean.unflatten(0, (len(index), world.FRAMES)).transpose(1, 2)
        bank[start : start + chunk] = clips * vae.config.scaling_factor
    return bank


def assembled(unet: Any, text: Any, tokenizer: Any, vae: Any, scheduler: Any) -> Any:
    from diffusers import TextToVideoSDPipeline

    pipeline: Any = TextToVideoSDPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def step_ms(step: Callable[[], torch.Tensor], module: nn.Module, device: str, count: int) -> float:
    """Milliseconds of a forward and a backward pass, the first not counted."""

    def once() -> None:
        module.zero_grad()
        step().backward()
        if device == "cuda":
            torch.cuda.synchronize()

    once()
    started = time.monotonic()
    for _ in range(count):
        once()
    module.zero_grad()
    return (time.monotonic() - started) / count * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pipeline")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--clips-a-scene", type=int, default=8)
    parser.add_argument("--scenes", type=int, default=0, help="use the first N scenes (a trial)")
    parser.add_argument("--start", type=Path, help="weights that an earlier call kept")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--check-s", type=float, default=60)
    parser.add_argument("--check-videos", type=int, default=64)
    arguments = parser.parse_args()

    from diffusers import AutoencoderKL

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    arguments.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    scenes = training_scenes(arguments.scenes)
    rows = torch.tensor([scene.indices() for scene in scenes])
    rows = rows.repeat_interleave(arguments.clips_a_scene, 0)
    vae = AutoencoderKL.from_pretrained(arguments.vae, torch_dtype=torch.float32)
    vae = vae.to(device).eval().requires_grad_(False)
    bank = latent_bank(vae, rows, 100, device)
    print(f"{len(bank)} latents in {time.monotonic() - started:.0f} s", flush=True)

    tokenizer = clip_tokenizer()
    ids = caption_ids(tokenizer, scenes, device)

    unet: Any = for_training(unet_model()).to(device)
    text = text_model(tokenizer).to(device)
    if agrees(device):
        unet.set_attn_processor(ShortAttention())
    both = nn.ModuleList([unet, text])
    if arguments.start:
        both.load_state_dict(load_file(arguments.start, device=device))
    scheduler = scheduler_model()
    signal = scheduler.alphas_cumprod.float().to(device)
    generator = torch.Generator(device).manual_seed(5 + bool(arguments.start))

    def predict(noised: torch.Tensor, t: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return unet(noised, t, text(ids)[0], return_dict=False)[0]

    owners = torch.arange(len(bank), device=device) // arguments.clips_a_scene
    loss_of_batch = v_loss(predict, bank, ids, signal, owners, arguments.batch, generator)

    if arguments.compile:
        before = time.monotonic()
        unet.compile()
        milliseconds = step_ms(loss_of_batch, both, device, 3)
        print(f"compiled in {time.monotonic() - before:.0f} s, {milliseconds:.1f} ms", flush=True)

    plain = nn.ModuleList([unet_model(), text_model(tokenizer)]).to(device).eval()
    pipeline = assembled(plain[0], plain[1], tokenizer, vae, scheduler)
    probe = load_probe(BUNDLED / "probe", device)
    watched = test_scenes(arguments.check_videos, held_out=True)

    @torch.no_grad()
    def check(weights: list[torch.Tensor]) -> None:
        for target, source in zip(plain.parameters(), weights, strict=True):
            target.copy_(source)
        videos = generate(pipeline, watched, 1.5, 20, arguments.check_videos)
        share = following(probe, videos, watched)
        found = ", ".join(f"{name} {value:.1%}" for name, value in share.items())
        print(f"held out, {time.monotonic() - started:.0f} s: {found}", flush=True)
        keep(both, "raw")
        keep(plain, "average")

    def keep(weights: nn.ModuleList, name: str) -> None:
        partial = arguments.work / f"{name}.partial"
        save_file({n: v.contiguous() for n, v in weights.state_dict().items()}, partial)
        partial.replace(arguments.work / f"{name}.safetensors")

    steps = fit(
        loss_of_batch,
        both,
        seconds=arguments.seconds,
        peak_lr=arguments.lr,
        checkpoint=arguments.work / "unet.pt",
        ema=arguments.ema,
        label=f"unet {arguments.out.name}",
        check=check,
        check_s=arguments.check_s,
    )
    check(list(both.parameters()))
    pipeline.to("cpu", torch.float16).save_pretrained(arguments.out)
    figures = {
        "steps": steps,
        "seconds": arguments.seconds,
        "batch": arguments.batch,
        "lr": arguments.lr,
        "compiled": arguments.compile,
        "latents": len(bank),
        "unet_parameters": sum(p.numel() for p in unet.parameters()),
        "text_parameters": sum(p.numel() for p in text.parameters()),
    }
    report = arguments.out.parent / f"{arguments.out.name}-unet.json"
    report.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
