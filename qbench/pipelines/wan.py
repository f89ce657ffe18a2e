"""Wan 2.1, text to video: self-attention over the video, attention over the prompt.

Latents are (batch, channels, frames, height, width). Guidance calls the denoiser twice a step, with
and without the prompt, where other families put both halves into one batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qbench.errors import Unsupported
from qbench.pipelines.base import Config, Configs, Pipe, VideoPipeline, frames_of
from qbench.pipelines.sizes import Grid
from qbench.pipelines.values import Conditioning, Resolved

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TOKENS = 512  # of UMT5's, which the makers cut and fill every prompt to
# The defaults of diffusers' class are the 14B model's.
_DENOISERS: dict[str, Config] = {
    "wan2.1-1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "wan2.1-14b": {},
}
_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
}


class Wan(VideoPipeline):
    """Wan 2.1 in its 1.3B and 14B sizes, and what is built alike."""

    pipeline_class = "WanPipeline"
    parts: ClassVar = {
        "transformer": "WanTransformer3DModel",
        "vae": "AutoencoderKLWan",
        "scheduler": "UniPCMultistepScheduler",
    }
    identity: ClassVar = {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 128}
    separate_guidance = True
    one_row = ("time_embedder", "time_proj")

    def __init__(self, pipe: Pipe) -> None:
        super().__init__(pipe)
        if pipe.transformer is None or pipe.transformer_2 is not None:
            raise Unsupported("Wan 2.2's two denoisers are not driven: qbench optimises one")
        if pipe.config.get("expand_timesteps"):
            raise Unsupported("Wan 2.2's time steps for each token (TI2V) are not driven")

    @classmethod
    def grid(cls, configs: Configs) -> Grid:
        vae = configs["vae"]
        patch = configs["transformer"].get("patch_size", (1, 2, 2))
        spatial, ratio = vae.get("scale_factor_spatial", 8), vae.get("scale_factor_temporal", 4)
        assert isinstance(patch, (list, tuple))
        assert isinstance(spatial, int)
        assert isinstance(ratio, int)
        over_time = int(patch[0])

        def made(frames: int) -> int:
            """The pipeline cuts to 4k + 1 frames; patches over time need whole ones of latents."""
            latents = (frames - 1) // ratio + 1
            return max(over_time, latents - latents % over_time) * ratio - ratio + 1

        side = max(spatial * int(patch[1]), spatial * int(patch[2]), 16)  # its own check is for 16
        return Grid(own=(81, 480, 832), side=side, made=made)

    @classmethod
    def random_configs(cls, model: str) -> Configs | None:
        if model not in _DENOISERS:
            return None
        return {"transformer": _DENOISERS[model], "vae": {}, "scheduler": _SCHEDULER}

    def latents_shape(self, run: Resolved) -> tuple[int, ...]:
        spatial = self.pipe.vae_scale_factor_spatial
        frames = (run.frames - 1) // int(self.pipe.vae_scale_factor_temporal) + 1
        channels = self.denoiser.config.in_channels
        return (1, channels, frames, run.height // spatial, run.width // spatial)

    def latents_dtype(self) -> torch.dtype:
        import torch

        return torch.float32  # its loop keeps them so, and casts for each call

    def embeddings_shape(self, run: Resolved, prompts: int) -> tuple[int, int, int]:
        return prompts, run.text_tokens, self.denoiser.config.text_dim

    def text_tokens(self) -> int:
        return TOKENS

    def encode_text(self, run: Resolved, prompts: list[str]) -> Conditioning:
        positive, negative = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=run.guided,
            max_sequence_length=run.text_tokens,
            device=self.pipe._execution_device,
        )
        return Conditioning(positive, negative)

    def decode(self, run: Resolved, latents: Tensor) -> Tensor:
        import torch

        vae = self.pipe.vae
        shape = (1, vae.config.z_dim, 1, 1, 1)
        mean, std = (
            torch.tensor(value).view(shape).to(latents.device, vae.dtype)
            for value in (vae.config.latents_mean, vae.config.latents_std)
        )
        # As the pipeline has it, which has no call of its own for this.
        scaled = latents.to(vae.dtype) / (1.0 / std) + mean
        with torch.no_grad():
            return frames_of(vae.decode(scaled, return_dict=False)[0])
