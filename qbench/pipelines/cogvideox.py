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
from qbench.pipelines import base
from qbench.pipelines.specs import Model, Resolved, denoiser
from qbench.recipe.schema import Generation

EXPORTS = True  # to ONNX, for engines


def resolve(pipeline: Any, model: Model, wanted: Generation) -> Resolved:
    config = denoiser(pipeline).config
    spatial, temporal = pipeline.vae_scale_factor_spatial, pipeline.vae_scale_factor_temporal
    own = (config.sample_frames, config.sample_height * spatial, config.sample_width * spatial)
    from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler

    check(wanted, spatial, temporal, config.patch_size)
    schedulers = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
    return base.resolved(pipeline, model, wanted, own, schedulers, config.max_text_seq_length)


def check(wanted: Generation, spatial: int, temporal: int, patch: int) -> None:
    """Refuse sizes that the VAE and the patches cannot make. Raises InputError."""
    base.check_sides(wanted, spatial * patch)
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
    return base.seeded(shape, seed)


def embeddings_shape(pipeline: Any, run: Resolved, prompts: int) -> tuple[int, int, int]:
    """(prompts, tokens, channels) of what `encode` returns."""
    return prompts, run.text_tokens, denoiser(pipeline).config.text_embed_dim


@torch.no_grad()
def encode(pipeline: Any, run: Resolved, prompts: list[str]) -> tuple[Any, Any]:
    """Prompt and negative-prompt embeddings in the denoiser's dtype.

    A pipeline with no text encoder (`weights: random`) gets noise of the right shape.
    """
    if pipeline.text_encoder is None:
        shape = embeddings_shape(pipeline, run, len(prompts))
        return base.any_embeddings(pipeline, denoiser(pipeline), shape, run.guided)
    positive, negative = pipeline.encode_prompt(
        prompts,
        do_classifier_free_guidance=run.guided,
        max_sequence_length=run.text_tokens,
        device=pipeline._execution_device,
    )
    dtype = denoiser(pipeline).dtype
    return positive.to(dtype), negative.to(dtype) if run.guided else None


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

    def at_end(_: Any, step: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        on_step(step)
        if exchange is not None:
            kwargs["latents"] = exchange(step, kwargs["latents"])
        return kwargs

    return base.loop(pipeline, run, embeddings, latents, steps, callback_on_step_end=at_end)


@torch.no_grad()
def decode(pipeline: Any, run: Resolved, latents: torch.Tensor) -> torch.Tensor:
    """(batch, frames, 3, height, width) in [0, 1], float32, on the pipeline's device."""
    padding = latents.shape[1] - ((run.frames - 1) // pipeline.vae_scale_factor_temporal + 1)
    video = pipeline.decode_latents(latents[:, padding:].to(pipeline.vae.dtype))
    return base.frames_of(video)


def arguments(latents: Any, embeddings: Any, timestep: Any) -> tuple[Any, ...]:
    """The denoiser's inputs in the order in which it takes them."""
    return latents, embeddings, timestep


def repeated_blocks(module: Any) -> list[Any]:
    """The blocks that the denoiser is a stack of."""
    return list(module.transformer_blocks)


def compiled_parts(module: Any) -> list[Any]:
    """What regional compilation compiles: its blocks, alike, so the first one's program does."""
    return repeated_blocks(module)


def pass_through(hidden_states: Any, encoder_hidden_states: Any, *_: Any, **__: Any) -> Any:
    """What a block returns that does nothing."""
    return hidden_states, encoder_hidden_states


def set_attention(module: Any, kernel: Callable[[Any, Any, Any], Any]) -> None:
    """Have every block compute attention by `kernel`, of (batch, tokens, heads, channels)."""
    for block in repeated_blocks(module):
        block.attn1.set_processor(Processor(kernel))


class Processor(base.Processor):
    """CogVideoX's joint attention over text and video, as diffusers' own processor computes it."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if attention_mask is not None:
            raise ValueError("CogVideoX's pipelines pass no attention mask, nor can this processor")
        text = encoder_hidden_states.size(1)
        both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = self.heads(attn, both)
        if image_rotary_emb is not None:
            q, k = (_rotated(x, text, image_rotary_emb) for x in (q, k))
        out = self.attended(attn, q, k, v)
        return out[:, text:], out[:, :text]


def _rotated(x: torch.Tensor, text: int, rotary: Any) -> torch.Tensor:
    """Rotary position embedding of the video's tokens; the text's have none."""
    from diffusers.models.embeddings import apply_rotary_emb

    video: Any = apply_rotary_emb(x[:, text:].transpose(1, 2), rotary)
    video = video.transpose(1, 2)
    return torch.cat([x[:, :text], video], dim=1)
