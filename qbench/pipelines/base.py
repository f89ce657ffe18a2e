"""What the drivers of all families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qbench.errors import InputError
from qbench.pipelines.specs import Model, Resolved
from qbench.recipe.schema import Generation


def check_sides(wanted: Generation, step: int) -> None:
    """Refuse a height or a width that is no multiple of `step`. Raises InputError."""
    for name, value in (("height", wanted.height), ("width", wanted.width)):
        if value and value % step:
            near = max(step, round(value / step) * step)
            raise InputError(
                f"generation.{name}: {value} is not a multiple of {step}; the nearest is {near}"
            )


def resolved(
    pipeline: Any,
    model: Model,
    wanted: Generation,
    own: tuple[int, int, int],
    schedulers: dict[str, Any],
    text_tokens: int,
) -> Resolved:
    """Generation with nothing left to default; a scheduler that was asked for is put in place.

    own: frames, height and width where neither recipe nor model says any.
    """
    frames, height, width = (
        asked or default
        for asked, default in zip(
            (wanted.frames, wanted.height, wanted.width), model.size or own, strict=True
        )
    )
    kind = wanted.scheduler or model.scheduler
    if kind:
        pipeline.scheduler = schedulers[kind].from_config(pipeline.scheduler.config)
    return Resolved(
        frames=frames,
        height=height,
        width=width,
        steps=wanted.steps or model.steps,
        guidance=model.guidance if wanted.guidance is None else wanted.guidance,
        scheduler=type(pipeline.scheduler).__name__,
        seed=wanted.seed,
        text_tokens=text_tokens,
        surroundings=str(pipeline.vae.dtype).removeprefix("torch."),
    )


def uneven(pipeline: Any, steps: int) -> str | None:
    """A sentence where diffusers' scheduler leaves noise in the video at this number of steps.

    With 'trailing' spacing its timesteps lie total/steps apart, but each step goes down by the
    whole part of that: of 1000, 15 steps lie 66.7 apart, go down by 66, and the last ends above 0.
    """
    config = pipeline.scheduler.config
    total = config.num_train_timesteps
    if config.get("timestep_spacing") != "trailing" or round(total / steps) <= total // steps:
        return None
    divisors = (n for n in range(total, 0, -1) if total % n == 0)
    near = min(divisors, key=lambda n: abs(n - steps))  # of two alike the larger
    return (
        f"generation.steps: at {steps} steps of {total} timesteps diffusers' scheduler ends before "
        f"the last and leaves noise in the video; the nearest number that divides them is {near}"
    )


def seeded(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Noise made on the CPU from one seed, so that it is the same on every device."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def any_embeddings(
    pipeline: Any, module: Any, shape: tuple[int, ...], guided: bool
) -> tuple[Any, Any]:
    """Noise in place of embeddings, for a pipeline with no text encoder (`weights: random`)."""
    device = pipeline._execution_device
    made = [torch.randn(shape, device=device).to(module.dtype) for _ in range(2)]
    return made[0], made[1] if guided else None


def loop(
    pipeline: Any,
    run: Resolved,
    embeddings: tuple[Any, Any],
    latents: torch.Tensor,
    steps: int | None,
    **callback: Any,
) -> torch.Tensor:
    """Final latents of the pipeline's own loop, called with what all families take alike."""
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
        output_type="latent",
        **callback,
    ).frames


class Processor:
    """What is alike in diffusers' attention processors, around a kernel of another's.

    The kernel's q, k, v and result: (batch, tokens, heads, channels).
    """

    def __init__(self, kernel: Callable[[Any, Any, Any], Any]) -> None:
        self.kernel = kernel

    def heads(self, attn: Any, x: torch.Tensor) -> list[torch.Tensor]:
        """Query, key and value of self-attention over `x`, query and key normed.

        Where the layer holds one linear for the three (`to_qkv`), that one is called.
        """
        if getattr(attn, "fused_projections", False):
            qkv = attn.to_qkv
            cuts = getattr(qkv, "CUTS", False)
            parts = qkv(x, pieces=3) if cuts else qkv(x).chunk(3, dim=-1)
        else:
            parts = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        q, k, v = (part.unflatten(-1, (attn.heads, -1)) for part in parts)
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        return [q, k, v]

    def attended(self, attn: Any, q: Any, k: Any, v: Any) -> torch.Tensor:
        """The kernel's result through the layer's last projection."""
        out: torch.Tensor = attn.to_out[1](attn.to_out[0](self.kernel(q, k, v).flatten(2)))
        return out


def frames_of(video: torch.Tensor) -> torch.Tensor:
    """A VAE's (batch, 3, frames, h, w) in [-1, 1] as (batch, frames, 3, h, w) in [0, 1]."""
    return (video.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)
