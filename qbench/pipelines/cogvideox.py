"""CogVideoX: joint attention over text and video, latents of (batch, frames, channels, h, w)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qbench.pipelines.base import Config, Configs, VideoPipeline, frames_of
from qbench.pipelines.sizes import Grid
from qbench.pipelines.values import Conditioning, Resolved

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.pipelines.attention import Kernel
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

    def decode(self, run: Resolved, latents: Tensor) -> Tensor:
        import torch

        padding = latents.shape[1] - self._latent_frames(run)
        video = latents[:, padding:].to(self.pipe.vae.dtype)
        with torch.no_grad():
            return frames_of(self.pipe.decode_latents(video))

    def set_attention(self, kernel: Kernel) -> None:
        from qbench.pipelines import cogvideox_layers

        cogvideox_layers.set_attention(self.denoiser, kernel)

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

    def leading_text(self) -> str:
        return "encoder_hidden_states"

    def rescalings(self) -> list[Rescaling]:
        from qbench.pipelines import cogvideox_layers

        return cogvideox_layers.rescalings(self.denoiser)


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
