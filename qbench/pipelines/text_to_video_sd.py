"""ModelScope and Zeroscope: a UNet over (batch, channels, frames, height, width).

It attends over space, over time and over the prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from qbench.pipelines import attention
from qbench.pipelines.base import Configs, Exchange, Module, OnStep, VideoPipeline, frames_of
from qbench.pipelines.sizes import Grid
from qbench.pipelines.values import Conditioning, Resolved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Generator, Tensor

    from qbench.pipelines.attention import Kernel, Layer

FRAMES, TOKENS = 16, 77  # where no tokenizer says how many
_ZEROSCOPES = ("zeroscope-v2-xl", "zeroscope-v2-576w")
# Stable Diffusion's VAE and the schedule of its first models, which ModelScope kept. The defaults
# of diffusers' UNet are ModelScope's.
_RANDOM: Configs = {
    "unet": {"sample_size": 32},
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    },
    "scheduler": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}


class TextToVideoSD(VideoPipeline):
    """ModelScope's text-to-video and its descendants, such as Zeroscope."""

    pipeline_class = "TextToVideoSDPipeline"
    part = "unet"
    parts: ClassVar = {
        "unet": "UNet3DConditionModel",
        "vae": "AutoencoderKL",
        "scheduler": "DDIMScheduler",
    }
    identity: ClassVar = {
        "block_out_channels": [320, 640, 1280, 1280],
        "attention_head_dim": 64,
        "cross_attention_dim": 1024,
        "layers_per_block": 2,
    }
    one_row = ("time_embedding",)
    row_a_frame = ("time_emb_proj",)  # the UNet repeats what time_embedding made over the frames
    schedulers: ClassVar = {"ddim": "DDIMScheduler", "dpm": "DPMSolverMultistepScheduler"}

    @classmethod
    def grid(cls, configs: Configs) -> Grid:
        channels = configs["vae"].get("block_out_channels", (64,))
        sample = configs["unet"].get("sample_size") or 32
        assert isinstance(channels, (list, tuple))
        assert isinstance(sample, int)
        scale = 2 ** (len(channels) - 1)
        return Grid(own=(FRAMES, sample * scale, sample * scale), side=scale, made=lambda n: n)

    @classmethod
    def random_configs(cls, model: str) -> Configs | None:
        return _RANDOM if model in _ZEROSCOPES else None

    def latents_shape(self, run: Resolved) -> tuple[int, ...]:
        scale = self.pipe.vae_scale_factor
        channels = self.denoiser.config.in_channels
        return (1, channels, run.frames, run.height // scale, run.width // scale)

    def embeddings_shape(self, run: Resolved, prompts: int) -> tuple[int, int, int]:
        return prompts, run.text_tokens, self.denoiser.config.cross_attention_dim

    def text_tokens(self) -> int:
        tokenizer = getattr(self.pipe, "tokenizer", None)
        return TOKENS if tokenizer is None else int(tokenizer.model_max_length)

    def encode_text(self, run: Resolved, prompts: list[str]) -> Conditioning:
        device = self.pipe._execution_device
        positive, negative = self.pipe.encode_prompt(prompts, device, 1, run.guided)
        return Conditioning(positive, negative if run.guided else None)

    def denoise(
        self,
        run: Resolved,
        conditioning: Conditioning,
        latents: Tensor,
        on_step: OnStep,
        *,
        generators: Sequence[Generator],
        steps: int | None = None,
        exchange: Exchange | None = None,
    ) -> Tensor:
        # The pipeline casts embeddings to the dtype of its text encoder, if it sees one, though the
        # denoiser may have another.
        encoder, self.pipe.text_encoder = self.pipe.text_encoder, None
        try:
            return super().denoise(
                run, conditioning, latents, on_step,
                generators=generators, steps=steps, exchange=exchange,
            )  # fmt: skip
        finally:
            self.pipe.text_encoder = encoder

    def callback(self, on_step: OnStep, exchange: Exchange | None) -> dict[str, object]:
        def at_end(step: int, _: object, current: Tensor) -> None:
            on_step(step)
            if exchange is not None:  # this pipeline's callback can only change them in place
                current.copy_(exchange(step, current))

        return {"callback": at_end}

    def decode(self, run: Resolved, latents: Tensor) -> Tensor:
        """(batch, frames, 3, height, width) in [0, 1], float32, on the pipeline's device.

        The pipeline decodes every frame of every video in one batch; `memory.vae_slicing` takes
        them one by one, which is what makes 24 frames of 576x1024 fit a small card.
        """
        import torch

        with torch.no_grad():
            return frames_of(self.pipe.decode_latents(latents.to(self.pipe.vae.dtype)))

    def compiled_parts(self) -> list[Module]:
        """What regional compilation compiles: all that a UNet repeats, its convolutions included.

        Half of a step of Zeroscope's goes into norms and pointwise work, most of it outside of the
        attention blocks.
        """
        from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
        from diffusers.models.transformers.transformer_2d import Transformer2DModel
        from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel

        kinds = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel)
        return [layer for layer in self.denoiser.modules() if isinstance(layer, kinds)]

    def set_attention(self, kernel: Kernel) -> None:
        """Have attention over space computed by `kernel`, of (batch, tokens, heads, channels).

        Attention over time sees a token a frame and attention over the prompt 77 keys: together 2 %
        of the FLOPs of all attention at 24x576x1024. They stay torch's.
        """
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        for layer in self.denoiser.modules():
            if isinstance(layer, Transformer2DModel):
                for block in layer.transformer_blocks:
                    block.attn1.set_processor(Processor(kernel))


class Processor(attention.Processor):
    """Self-attention of a UNet's block, as diffusers' own processors compute it."""

    def __call__(
        self,
        attn: Layer,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None or encoder_hidden_states is not None:
            raise ValueError("attention over space, of a UNet's pipelines, has no mask and no text")
        return self.attended(attn, *self.heads(attn, hidden_states))
