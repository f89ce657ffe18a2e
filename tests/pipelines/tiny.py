"""A tiny pipeline with random weights of every family, text encoder and tokenizer included."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qbench.pipelines import families, known, random_weights
from qbench.pipelines.base import VideoPipeline
from qbench.pipelines.values import Resolved
from qbench.recipe.schema import Generation

PROMPTS = ["a cat runs", "a red star moves left"]


def _t5(folder: Path, width: int, umt5: bool = False) -> tuple[Any, Any]:
    """A T5 or UMT5 encoder with the bundled model's tokenizer."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(known.BUNDLED / "tiny-cogvideox" / "tokenizer")
    sizes = {
        "d_model": width, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 1,
        "vocab_size": len(tokenizer),
    }  # fmt: skip
    encoder = UMT5EncoderModel(UMT5Config(**sizes)) if umt5 else T5EncoderModel(T5Config(**sizes))
    return tokenizer, encoder


def _clip(folder: Path) -> tuple[Any, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = ["a</w>", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = CLIPTokenizer(*files, model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return tokenizer, CLIPTextModel(config)


def _cogvideox(**more: Any) -> dict[str, dict[str, Any]]:
    denoiser = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
        "time_embed_dim": 16, "text_embed_dim": 32, "num_layers": 2, "sample_width": 6,
        "sample_height": 4, "sample_frames": 9, "max_text_seq_length": 24,
    }  # fmt: skip
    vae = {
        "block_out_channels": [8, 8, 8, 8], "latent_channels": 4, "layers_per_block": 1,
        "norm_num_groups": 2,
    }  # fmt: skip
    scheduler = {
        "beta_schedule": "scaled_linear", "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
    }  # fmt: skip
    return {"transformer": denoiser | more, "vae": vae, "scheduler": scheduler}


_UNET: dict[str, dict[str, Any]] = {
    "unet": {
        "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
        "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"], "cross_attention_dim": 32,
        "attention_head_dim": 8, "sample_size": 8, "block_out_channels": [32, 64],
        "layers_per_block": 1, "norm_num_groups": 8,
    },
    "vae": {
        "block_out_channels": [32, 32, 32, 32], "norm_num_groups": 8,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "scheduler": {},
}  # fmt: skip
_WAN: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 64, "num_layers": 2,
        "text_dim": 32, "freq_dim": 32,
    },
    "vae": {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    "scheduler": {
        "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction",
        "use_flow_sigmas": True, "flow_shift": 3.0,
    },
}  # fmt: skip
_ROTARY = {"use_rotary_positional_embeddings": True}
# Name -> diffusers' class, configurations, text encoder.
TINY: dict[str, tuple[str, dict[str, dict[str, Any]], Callable[[Path], tuple[Any, Any]]]] = {
    "cogvideox": ("CogVideoXPipeline", _cogvideox(), functools.partial(_t5, width=32)),
    "cogvideox-rotary": (
        "CogVideoXPipeline", _cogvideox(**_ROTARY), functools.partial(_t5, width=32),
    ),
    "cogvideox-1.5": (
        "CogVideoXPipeline",
        _cogvideox(**_ROTARY, patch_size_t=2, patch_bias=False, sample_frames=17),
        functools.partial(_t5, width=32),
    ),
    "unet": ("TextToVideoSDPipeline", _UNET, _clip),
    "wan": ("WanPipeline", _WAN, functools.partial(_t5, width=32, umt5=True)),
}  # fmt: skip
FRAMES, HEIGHT, WIDTH, STEPS = 9, 32, 48, 3


def build(
    name: str, scratch: Path, dtype: torch.dtype = torch.float32, **more: Any
) -> VideoPipeline:
    """more: fields of a transformer's configuration, in place of those in the table."""
    class_name, configs, text = TINY[name]
    if more:
        configs = configs | {"transformer": configs["transformer"] | more}
    family = families.of_class(class_name)
    dtypes = {"default": torch.float32, family.part: dtype}
    pipe = random_weights.pipeline(family, configs, dtypes, "cpu")
    torch.manual_seed(1)
    pipe.tokenizer, encoder = text(scratch)
    pipe.text_encoder = encoder.eval().requires_grad_(False)
    pipe.register_modules(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder)
    pipe.set_progress_bar_config(disable=True)
    video = families.wrap(pipe)
    # Random layers start out near zero, and a denoiser that says nothing proves nothing.
    if video.part == "transformer":
        for parameter in video.denoiser.parameters():
            parameter.data.mul_(1.5)
    return video


def settings(video: VideoPipeline, **wanted: Any) -> Resolved:
    asked = {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "steps": STEPS} | wanted
    return video.resolve(known.Model("tiny", "tiny", guidance=5.0), Generation(**asked))


def inputs(video: VideoPipeline, run: Resolved, seeds: list[int]) -> tuple[Any, torch.Tensor]:
    """Embeddings and initial noise of a video for every seed."""
    noise = torch.cat([video.noise(run, seed) for seed in seeds])
    return video.encode(run, [PROMPTS[seed % len(PROMPTS)] for seed in seeds]), noise


def denoised(video: VideoPipeline, run: Resolved, seeds: list[int], **more: Any) -> torch.Tensor:
    own = video.generators(seeds)
    return video.denoise(run, *inputs(video, run, seeds), lambda _: None, generators=own, **more)
