"""Driving a CogVideoXPipeline in separate stages: text_encode, denoise, decode.

Each stage is a call of the pipeline itself, so what is timed is what users run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qbench.errors import InputError
from qbench.models import Model, Resolved, denoiser
from qbench.recipe import Generation


def resolve(pipeline: Any, model: Model, wanted: Generation) -> Resolved:
    config = denoiser(pipeline).config
    spatial, temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
    frames = wanted.frames or config.sample_frames
    height = wanted.height or config.sample_height * spatial
    width = wanted.width or config.sample_width * spatial
    check(wanted, spatial, temporal, config.patch_size)
    kind = wanted.scheduler or model.scheduler
    if kind:
        from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

        cls = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}[kind]
        pipeline.scheduler = cls.from_config(pipeline.scheduler.config)
    return Resolved(
        frames=frames,
        height=height,
        width=width,
        steps=wanted.steps or model.steps,
        guidance=model.guidance if wanted.guidance is None else wanted.guidance,
        scheduler=type(pipeline.scheduler).__name__,
        seed=wanted.seed,
        text_tokens=config.max_text_seq_length,
        surroundings=str(pipeline.vae.dtype).removeprefix("torch."),
    )


def check(wanted: Generation, spatial: int, temporal: int, patch: int) -> None:
    """Refuse sizes that the VAE and the patches cannot make. Raises InputError."""
    step = spatial * patch
    for name, value in (("height", wanted.height), ("width", wanted.width)):
        if value and value % step:
            near = max(step, round(value / step) * step)
            raise InputError(
                f"generation.{name}: {value} is not a multiple of {step}; the nearest is {near}"
            )
    frames = wanted.frames
    if frames and (frames - 1) % temporal:
        near = round((frames - 1) / temporal) * temporal + 1
        raise InputError(
            f"generation.frames: {frames} is not {temporal}k + 1; the nearest is {near}"
        )


def check_folder(folder: Path, wanted: Generation) -> None:
    """`check` from a folder's configuration alone, before anything is loaded."""
    vae = json.loads((folder / "vae" / "config.json").read_text())
    denoiser_config = json.loads((folder / "transformer" / "config.json").read_text())
    spatial = 2 ** (len(vae["block_out_channels"]) - 1)
    check(
        wanted,
        spatial,
        int(vae["temporal_compression_ratio"]),
        denoiser_config["patch_size"],
    )


def noise(pipeline: Any, run: Resolved, seed: int) -> torch.Tensor:
    """(1, latent frames, channels, height, width), float32, made on the CPU from one seed."""
    spatial, temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
    config = denoiser(pipeline).config
    frames = (run.frames - 1) // temporal + 1
    if config.patch_size_t:
        frames += -frames % config.patch_size_t
    shape = (1, frames, config.in_channels, run.height // spatial, run.width // spatial)
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


@torch.no_grad()
def encode(pipeline: Any, run: Resolved, prompts: list[str]) -> tuple[Any, Any]:
    """Prompt and negative-prompt embeddings in the denoiser's dtype."""
    guided = run.guidance > 1
    positive, negative = pipeline.encode_prompt(
        prompts,
        do_classifier_free_guidance=guided,
        max_sequence_length=run.text_tokens,
        device=pipeline._execution_device,
    )
    dtype = denoiser(pipeline).dtype
    return positive.to(dtype), negative.to(dtype) if guided else None


@torch.no_grad()
def denoise(
    pipeline: Any,
    run: Resolved,
    embeddings: tuple[Any, Any],
    latents: torch.Tensor,
    on_step: Callable[[int], None],
    steps: int | None = None,
) -> torch.Tensor:
    """Final latents of the pipeline's own loop; `on_step(i)` is called as each step ends."""

    def at_end(_: Any, step: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        on_step(step)
        return kwargs

    positive, negative = embeddings
    return pipeline(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        latents=latents.to(positive.device, positive.dtype),
        num_frames=run.frames,
        height=run.height,
        width=run.width,
        num_inference_steps=steps or run.steps,
        guidance_scale=run.guidance,
        callback_on_step_end=at_end,
        output_type="latent",
    ).frames


@torch.no_grad()
def decode(pipeline: Any, run: Resolved, latents: torch.Tensor) -> torch.Tensor:
    """(batch, frames, 3, height, width) in [0, 1], float32, on the pipeline's device."""
    padding = latents.shape[1] - ((run.frames - 1) // pipeline.vae_scale_factor_temporal + 1)
    video = pipeline.decode_latents(latents[:, padding:].to(pipeline.vae.dtype))
    return (video.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)


def repeated_blocks(module: Any) -> list[Any]:
    """The blocks that regional compilation compiles once for all."""
    return list(module.transformer_blocks)
