"""CogVideoX: joint attention over text and video, latents of (batch, frames, channels, h, w)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from qbench.pipelines import attention, rescaling
from qbench.pipelines.base import Config, Configs, Module, VideoPipeline, frames_of
from qbench.pipelines.sizes import Grid
from qbench.pipelines.values import Conditioning, Resolved

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.pipelines.attention import Kernel, Layer
    from qbench.pipelines.rescaling import Rescaling

# What differs from the defaults of diffusers' classes, which are CogVideoX-2B's.
_LARGE = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
_DENOISERS: dict[str, Config] = {
    "cogvideox-2b": {},
    "cogvideox-5b": _LARGE,
    "cogvideox1.5-5b": _LARGE
    | {
        "patch_size_t": 2,
        "patch_bias": False,
        "sample_frames": 81,
        "sample_height": 300,
        "sample_width": 300,
        "max_text_seq_length": 224,
    },
}
_SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
# CogVideoX1.5's `sample_height` of 300 sizes its rotary tables; its makers generate at this.
_SIZE_OF_1_5 = (81, 768, 1360)


class CogVideoX(VideoPipeline):
    """CogVideoX 1.0 and 1.5, text to video."""

    pipeline_class = "CogVideoXPipeline"
    parts: ClassVar = {
        "transformer": "CogVideoXTransformer3DModel",
        "vae": "AutoencoderKLCogVideoX",
        "scheduler": "CogVideoXDDIMScheduler",
    }
    identity: ClassVar = {
        "num_layers": 30,
        "num_attention_heads": 30,
        "attention_head_dim": 64,
        "patch_size_t": None,
        "sample_height": 60,
    }
    one_row = ("time_embedding", "ofs_embedding", "norm")
    schedulers: ClassVar = {"ddim": "CogVideoXDDIMScheduler", "dpm": "CogVideoXDPMScheduler"}
    dynamic_cfg = True

    @classmethod
    def grid(cls, configs: Configs) -> Grid:
        denoiser, vae = configs["transformer"], configs["vae"]
        spatial = 2 ** (len(_ints(vae.get("block_out_channels", (0,) * 4))) - 1)
        ratio = _int(vae.get("temporal_compression_ratio", 4))
        own = (
            _int(denoiser.get("sample_frames", 49)),
            _int(denoiser.get("sample_height", 60)) * spatial,
            _int(denoiser.get("sample_width", 90)) * spatial,
        )
        return Grid(
            own=_SIZE_OF_1_5 if denoiser.get("patch_size_t") else own,
            side=spatial * _int(denoiser.get("patch_size", 2)),
            made=lambda frames: frames_made(frames, ratio),
            fixed=bool(denoiser.get("use_learned_positional_embeddings")),
            moving=2 * ratio,  # of even numbers of latent frames the first ones come out still
        )

    @classmethod
    def random_configs(cls, model: str) -> Configs | None:
        if model not in _DENOISERS:
            return None
        return {"transformer": _DENOISERS[model], "vae": {}, "scheduler": _SCHEDULER}

    def latents_shape(self, run: Resolved) -> tuple[int, ...]:
        spatial = self.pipe.vae_scale_factor_spatial
        config = self.denoiser.config
        frames = self._latent_frames(run)
        if config.patch_size_t:
            frames += -frames % config.patch_size_t
        return (1, frames, config.in_channels, run.height // spatial, run.width // spatial)

    def _latent_frames(self, run: Resolved) -> int:
        """Without the frames that temporal patches are padded with."""
        return (run.frames - 1) // int(self.pipe.vae_scale_factor_temporal) + 1

    def embeddings_shape(self, run: Resolved, prompts: int) -> tuple[int, int, int]:
        return prompts, run.text_tokens, self.denoiser.config.text_embed_dim

    def text_tokens(self) -> int:
        return int(self.denoiser.config.max_text_seq_length)

    def encode_text(self, run: Resolved, prompts: list[str]) -> Conditioning:
        positive, negative = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=run.guided,
            max_sequence_length=run.text_tokens,
            device=self.pipe._execution_device,
        )
        return Conditioning(positive, negative if run.guided else None)

    def arguments(self, run: Resolved, conditioning: Conditioning) -> dict[str, object]:
        return super().arguments(run, conditioning) | {"use_dynamic_cfg": run.dynamic_cfg}

    @torch.no_grad()
    def decode(self, run: Resolved, latents: Tensor) -> Tensor:
        padding = latents.shape[1] - self._latent_frames(run)
        return frames_of(self.pipe.decode_latents(latents[:, padding:].to(self.pipe.vae.dtype)))

    def set_attention(self, kernel: Kernel) -> None:
        set_attention(self.denoiser, kernel)

    def context_plan(self) -> dict[str, object]:
        """Text and video are each split over all GPUs, behind the embedding of their positions.

        Every part of a block but attention works on single tokens.
        """
        from diffusers.models._modeling_parallel import (
            ContextParallelInput,
            ContextParallelOutput,
        )

        tokens = ContextParallelInput(split_dim=1, expected_dims=3)
        table = ContextParallelInput(split_dim=0, expected_dims=2)
        return {
            "": {"image_rotary_emb": [table, table]},
            "transformer_blocks.0": {"hidden_states": tokens, "encoder_hidden_states": tokens},
            "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
        }

    def rescalings(self) -> list[Rescaling]:
        rotary = bool(self.denoiser.config.use_rotary_positional_embeddings)
        found = []
        for number, block in enumerate(self.denoiser.transformer_blocks):
            found += _rescalings(f"transformer_blocks.{number}", block, rotary)
        return found


def set_attention(module: Module, kernel: Kernel) -> None:
    """Have every block attend by `kernel`: its processors call torch's past the dispatcher."""
    for block in module.transformer_blocks:
        block.attn1.set_processor(Processor(kernel))


def _rescalings(name: str, block: Module, rotary: bool) -> list[Rescaling]:
    """What can be scaled in one block: all inputs of linears but that of the last, behind GELU.

    The inputs of attention and of the feed-forward layer are norm(x) * (1 + scale) + shift. They
    are scaled through the norm's own weight and bias and the rows of the modulation that make the
    shifts of video and text. Scaling the rows of `scale` instead would have it near -1 where
    outliers are scaled away, and BF16 keeps nothing of 1 + scale then.
    """
    attn, found = block.attn1, []
    fused = getattr(attn, "fused_projections", False)
    projections = ("to_qkv",) if fused else ("to_q", "to_k", "to_v")
    value = attn.to_qkv if fused else attn.to_v
    width = attn.to_out[0].in_features

    def values(factors: Tensor) -> None:
        whole = torch.ones(value.out_features, dtype=torch.float64)
        whole[-width:] = factors
        rescaling.scale_rows(value.weight, whole)
        rescaling.scale_rows(value.bias, whole)

    out = (f"{name}.attn1.to_out.0", attn.to_out[0])
    found.append(rescaling.into_linears(f"{name}.attn1.to_v", width, [out], values))
    inputs = [(f"{name}.attn1.{linear}", getattr(attn, linear)) for linear in projections]
    for norm, readers in (
        ("norm1", inputs),
        ("norm2", [(f"{name}.ff.net.0.proj", block.ff.net[0].proj)]),
    ):
        modulated = getattr(block, norm)
        if modulated.norm.weight is not None:
            produce = functools.partial(_scale_modulated, modulated)
            size = modulated.norm.weight.numel()
            found.append(rescaling.into_linears(f"{name}.{norm}", size, readers, produce))
    if attn.norm_q is not None and attn.norm_k is not None:
        found.append(
            rescaling.Rescaling(
                f"{name}.attn1.norm_q",
                attn.norm_q.weight.numel() // (2 if rotary else 1),
                functools.partial(_scale_queries, attn, rotary),
            )
        )
    return found


def _scale_modulated(modulated: Module, factors: Tensor) -> None:
    ones = torch.ones_like(factors)
    rescaling.scale_rows(modulated.norm.weight, factors)
    rescaling.scale_rows(modulated.norm.bias, factors)
    # shift, scale and gate of the video, then of the text
    rows = torch.cat([factors, ones, ones, factors, ones, ones])
    rescaling.scale_rows(modulated.linear.weight, rows)
    rescaling.scale_rows(modulated.linear.bias, rows)


def _scale_queries(attn: Module, rotary: bool, factors: Tensor) -> None:
    """Queries times, keys by the factors, of the channels that all heads' norms share.

    Rotary embeddings turn channels in pairs, so both of a pair have one factor.
    """
    each = factors.repeat_interleave(2) if rotary else factors
    for norm, by in ((attn.norm_q, each), (attn.norm_k, 1 / each)):
        rescaling.scale_rows(norm.weight, by)
        rescaling.scale_rows(norm.bias, by)


def frames_made(frames: int, ratio: int) -> int:
    """How many frames the VAE decodes of the latents for so many.

    It takes latent frames two by two, an odd one with the first two. Upsampling over time doubles
    the frames of such a part, but for the first of an odd number, so an even number of latent
    frames comes out `ratio - 1` frames longer than it was made for.
    """
    latents = (frames - 1) // ratio + 1
    return ratio * (latents - latents % 2) + latents % 2


def _int(value: object) -> int:
    assert isinstance(value, (int, float))
    return int(value)


def _ints(value: object) -> list[int]:
    assert isinstance(value, (list, tuple))
    return list(value)


class Processor(attention.Processor):
    """CogVideoX's joint attention over text and video, as diffusers' own processor computes it."""

    def __call__(
        self,
        attn: Layer,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        if attention_mask is not None:
            raise ValueError("CogVideoX's pipelines pass no attention mask, nor can this processor")
        text = encoder_hidden_states.size(1)
        both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = self.heads(attn, both)
        if image_rotary_emb is not None:
            q, k = (_rotated(x, text, image_rotary_emb) for x in (q, k))
        out = self.attended(attn, q, k, v)
        return out[:, text:], out[:, :text]


def _rotated(x: Tensor, text: int, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of the video's tokens; the text's have none."""
    from diffusers.models.embeddings import apply_rotary_emb

    video: Any = apply_rotary_emb(x[:, text:].transpose(1, 2), rotary)  # type: ignore[arg-type]
    return torch.cat([x[:, :text], video.transpose(1, 2)], dim=1)
