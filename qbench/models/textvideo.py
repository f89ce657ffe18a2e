"""Driving a TextToVideoSDPipeline (ModelScope, Zeroscope) in stages, as `cogvideox` does its own.

The denoiser is a UNet over (batch, channels, frames, height, width), with attention over space,
over time and over the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qbench.errors import InputError, Unsupported
from qbench.models import Model, Resolved, denoiser
from qbench.recipe import Generation

FRAMES, TOKENS = 16, 77
EXPORTS = False  # no engine is built of a UNet yet


def resolve(pipeline: Any, model: Model, wanted: Generation) -> Resolved:
    scale = pipeline.vae_scale_factor
    side = denoiser(pipeline).config.sample_size * scale
    check(wanted, scale)
    frames, height, width = (
        asked or default
        for asked, default in zip(
            (wanted.frames, wanted.height, wanted.width),
            model.size or (FRAMES, side, side),
            strict=True,
        )
    )
    if wanted.scheduler:
        from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

        cls = {"ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler}[wanted.scheduler]
        pipeline.scheduler = cls.from_config(pipeline.scheduler.config)
    return Resolved(
        frames=frames,
        height=height,
        width=width,
        steps=wanted.steps or model.steps,
        guidance=model.guidance if wanted.guidance is None else wanted.guidance,
        scheduler=type(pipeline.scheduler).__name__,
        seed=wanted.seed,
        text_tokens=TOKENS,
        surroundings=str(pipeline.vae.dtype).removeprefix("torch."),
    )


def check(wanted: Generation, scale: int) -> None:
    """Refuse sizes that the VAE cannot make. Raises InputError."""
    for name, value in (("height", wanted.height), ("width", wanted.width)):
        if value and value % scale:
            near = max(scale, round(value / scale) * scale)
            raise InputError(
                f"generation.{name}: {value} is not a multiple of {scale}; the nearest is {near}"
            )


def check_folder(folder: Path, wanted: Generation) -> None:
    """`check` from a folder's configuration alone, before anything is loaded."""
    vae = json.loads((folder / "vae" / "config.json").read_text())
    check(wanted, 2 ** (len(vae["block_out_channels"]) - 1))


def noise(pipeline: Any, run: Resolved, seed: int) -> torch.Tensor:
    """(1, channels, frames, height, width), float32, made on the CPU from one seed."""
    scale = pipeline.vae_scale_factor
    channels = denoiser(pipeline).config.in_channels
    shape = (1, channels, run.frames, run.height // scale, run.width // scale)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


@torch.no_grad()
def encode(pipeline: Any, run: Resolved, prompts: list[str]) -> tuple[Any, Any]:
    """Prompt and negative-prompt embeddings in the denoiser's dtype.

    A pipeline with no text encoder (`weights: random`) gets noise of the right shape.
    """
    guided, module = run.guidance > 1, denoiser(pipeline)
    device = pipeline._execution_device
    if pipeline.text_encoder is None:
        shape = (len(prompts), run.text_tokens, module.config.cross_attention_dim)
        made = [torch.randn(shape, device=device).to(module.dtype) for _ in range(2)]
        return made[0], made[1] if guided else None
    positive, negative = pipeline.encode_prompt(prompts, device, 1, guided)
    return positive.to(module.dtype), negative.to(module.dtype) if guided else None


def arguments(latents: Any, embeddings: Any, timestep: Any) -> tuple[Any, ...]:
    """The denoiser's inputs in the order in which it takes them."""
    return latents, timestep, embeddings


@torch.no_grad()
def denoise(
    pipeline: Any,
    run: Resolved,
    embeddings: tuple[Any, Any],
    latents: torch.Tensor,
    on_step: Callable[[int], None],
    steps: int | None = None,
    exchange: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Final latents of the pipeline's own loop; `on_step(i)` is called as each step ends.

    `exchange(i, latents)` sees the latents after step i and says which the loop goes on with.
    """

    def at_end(step: int, _: Any, current: torch.Tensor) -> None:
        on_step(step)
        if exchange is not None:  # this pipeline's callback can only change them in place
            current.copy_(exchange(step, current))

    positive, negative = embeddings
    # The pipeline casts embeddings to the dtype of its text encoder, if it sees one, though the
    # denoiser may have another.
    encoder, pipeline.text_encoder = pipeline.text_encoder, None
    try:
        return _loop(pipeline, run, positive, negative, latents, at_end, steps)
    finally:
        pipeline.text_encoder = encoder


def _loop(
    pipeline: Any,
    run: Resolved,
    positive: Any,
    negative: Any,
    latents: torch.Tensor,
    at_end: Callable[..., None],
    steps: int | None,
) -> torch.Tensor:
    return pipeline(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        latents=latents.to(positive.device, positive.dtype),
        num_frames=run.frames,
        height=run.height,
        width=run.width,
        num_inference_steps=steps or run.steps,
        guidance_scale=run.guidance,
        callback=at_end,
        output_type="latent",
    ).frames


@torch.no_grad()
def decode(pipeline: Any, run: Resolved, latents: torch.Tensor) -> torch.Tensor:
    """(batch, frames, 3, height, width) in [0, 1], float32, on the pipeline's device.

    The pipeline decodes every frame of every video in one batch; `memory.vae_slicing` takes them
    one by one, which is what makes 24 frames of 576x1024 fit a small card.
    """
    video = pipeline.decode_latents(latents.to(pipeline.vae.dtype))
    return (video.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)


def repeated_blocks(module: Any) -> list[Any]:
    """The attention blocks, of several widths: what regional compilation compiles."""
    from diffusers.models.attention import BasicTransformerBlock

    return [layer for layer in module.modules() if isinstance(layer, BasicTransformerBlock)]


def pass_through(hidden_states: Any, *_: Any, **__: Any) -> Any:
    """What a block returns that does nothing."""
    return hidden_states


def set_attention(module: Any, kernel: Callable[[Any, Any, Any], Any]) -> None:
    raise Unsupported(
        "attention: kernels from outside torch are put into CogVideoX's joint attention only; "
        "for a UNet choose auto, math, flash, efficient or cudnn"
    )
