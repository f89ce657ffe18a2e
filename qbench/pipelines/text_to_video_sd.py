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

from qbench.pipelines import base
from qbench.pipelines.specs import Model, Resolved, denoiser
from qbench.recipe.schema import Generation

FRAMES, TOKENS = 16, 77
EXPORTS = False  # no engine is built of a UNet yet


def resolve(pipeline: Any, model: Model, wanted: Generation) -> Resolved:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    scale = pipeline.vae_scale_factor
    side = denoiser(pipeline).config.sample_size * scale
    base.check_sides(wanted, scale)
    schedulers = {"ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler}
    return base.resolved(pipeline, model, wanted, (FRAMES, side, side), schedulers, TOKENS)


def check_folder(folder: Path, wanted: Generation) -> None:
    """Refuse sizes from a folder's configuration alone, before anything is loaded."""
    vae = json.loads((folder / "vae" / "config.json").read_text())
    base.check_sides(wanted, 2 ** (len(vae["block_out_channels"]) - 1))


def noise(pipeline: Any, run: Resolved, seed: int) -> torch.Tensor:
    """(1, channels, frames, height, width), float32, made on the CPU from one seed."""
    scale = pipeline.vae_scale_factor
    channels = denoiser(pipeline).config.in_channels
    shape = (1, channels, run.frames, run.height // scale, run.width // scale)
    return base.seeded(shape, seed)


def embeddings_shape(pipeline: Any, run: Resolved, prompts: int) -> tuple[int, int, int]:
    """(prompts, tokens, channels) of what `encode` returns."""
    return prompts, run.text_tokens, denoiser(pipeline).config.cross_attention_dim


@torch.no_grad()
def encode(pipeline: Any, run: Resolved, prompts: list[str]) -> tuple[Any, Any]:
    """Prompt and negative-prompt embeddings in the denoiser's dtype.

    A pipeline with no text encoder (`weights: random`) gets noise of the right shape.
    """
    module = denoiser(pipeline)
    if pipeline.text_encoder is None:
        shape = embeddings_shape(pipeline, run, len(prompts))
        return base.any_embeddings(pipeline, module, shape, run.guided)
    device = pipeline._execution_device
    positive, negative = pipeline.encode_prompt(prompts, device, 1, run.guided)
    return positive.to(module.dtype), negative.to(module.dtype) if run.guided else None


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

    # The pipeline casts embeddings to the dtype of its text encoder, if it sees one, though the
    # denoiser may have another.
    encoder, pipeline.text_encoder = pipeline.text_encoder, None
    try:
        return base.loop(pipeline, run, embeddings, latents, steps, callback=at_end)
    finally:
        pipeline.text_encoder = encoder


@torch.no_grad()
def decode(pipeline: Any, run: Resolved, latents: torch.Tensor) -> torch.Tensor:
    """(batch, frames, 3, height, width) in [0, 1], float32, on the pipeline's device.

    The pipeline decodes every frame of every video in one batch; `memory.vae_slicing` takes them
    one by one, which is what makes 24 frames of 576x1024 fit a small card.
    """
    video = pipeline.decode_latents(latents.to(pipeline.vae.dtype))
    return base.frames_of(video)


def repeated_blocks(module: Any) -> list[Any]:
    """The attention blocks, of several widths."""
    from diffusers.models.attention import BasicTransformerBlock

    return [layer for layer in module.modules() if isinstance(layer, BasicTransformerBlock)]


def compiled_parts(module: Any) -> list[Any]:
    """What regional compilation compiles: all that a UNet repeats, its convolutions included.

    Half of a step of Zeroscope's goes into norms and pointwise work, most of it outside of the
    attention blocks.
    """
    from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel

    kinds = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel)
    return [layer for layer in module.modules() if isinstance(layer, kinds)]


def pass_through(hidden_states: Any, *_: Any, **__: Any) -> Any:
    """What a block returns that does nothing."""
    return hidden_states


def set_attention(module: Any, kernel: Callable[[Any, Any, Any], Any]) -> None:
    """Have attention over space computed by `kernel`, of (batch, tokens, heads, channels).

    Attention over time sees a token a frame and attention over the prompt 77 keys: together 2 % of
    the FLOP of all attention at 24x576x1024. They stay torch's.
    """
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    for layer in module.modules():
        if isinstance(layer, Transformer2DModel):
            for block in layer.transformer_blocks:
                block.attn1.set_processor(Processor(kernel))


class Processor(base.Processor):
    """Self-attention of a UNet's block, as diffusers' own processors compute it."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attention_mask is not None or encoder_hidden_states is not None:
            raise ValueError("attention over space, of a UNet's pipelines, has no mask and no text")
        return self.attended(attn, *self.heads(attn, hidden_states))
