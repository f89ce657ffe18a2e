"""`weights: random`: a pipeline at true size with no download.

Latency and memory do not depend on the values of weights, so figures of speed need no checkpoint.
There is no text encoder (that of CogVideoX holds 4.8 billion parameters): the driver hands the
denoiser embeddings of the right shape instead. Nothing here can say anything about quality.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qbench.errors import InputError, nearest
from qbench.pipelines.specs import Model

# What differs from the defaults of diffusers' classes, which are CogVideoX-2B's.
LARGE = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
DENOISERS: dict[str, dict[str, Any]] = {
    "cogvideox-2b": {},
    "cogvideox-5b": LARGE,
    "cogvideox1.5-5b": LARGE
    | {
        "patch_size_t": 2,
        "patch_bias": False,
        "sample_frames": 81,
        "sample_height": 300,
        "sample_width": 300,
        "max_text_seq_length": 224,
    },
}
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


ZEROSCOPES = ("zeroscope-v2-xl", "zeroscope-v2-576w")
# Stable Diffusion's VAE and the schedule of its first models, which ModelScope kept.
IMAGE_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
IMAGE_SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def pipeline(model: Model, dtype: Any, surroundings: Any, device: str) -> Any:
    """A pipeline of the model's class and size: denoiser in `dtype`, VAE in `surroundings`."""
    import diffusers
    import torch

    name, configs = _configs(model)
    unet = name == "TextToVideoSDPipeline"
    denoiser_class, vae_class, scheduler_class = (
        ("UNet3DConditionModel", "AutoencoderKL", "DDIMScheduler")
        if unet
        else ("CogVideoXTransformer3DModel", "AutoencoderKLCogVideoX", "CogVideoXDDIMScheduler")
    )
    denoiser_config, vae_config, scheduler_config = configs
    torch.manual_seed(0)
    denoiser_type, vae_type = getattr(diffusers, denoiser_class), getattr(diffusers, vae_class)
    denoiser = module(lambda: denoiser_type.from_config(denoiser_config), dtype, device)
    vae = module(lambda: vae_type.from_config(vae_config), surroundings, device)
    parts = {
        "unet" if unet else "transformer": denoiser,
        "vae": vae,
        "scheduler": getattr(diffusers, scheduler_class).from_config(scheduler_config),
    }
    return getattr(diffusers, name)(tokenizer=None, text_encoder=None, **parts)


def module(make: Callable[[], Any], dtype: Any, device: str) -> Any:
    """The module that `make` returns, its random weights drawn in `dtype` on `device` itself."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):  # 2 billion values are slow to draw on a CPU
            return make().eval().requires_grad_(False).to(device, dtype)
    finally:
        torch.set_default_dtype(before)


Configs = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def _configs(model: Model) -> tuple[str, Configs]:
    """The pipeline's class; the configurations of denoiser, VAE and scheduler."""
    if model.local:
        folder = Path(model.source)
        name = json.loads((folder / "model_index.json").read_text()).get("_class_name")
        parts = {"CogVideoXPipeline": "transformer", "TextToVideoSDPipeline": "unet"}
        if name not in parts:
            raise InputError(f"weights: random: {folder} is a {name}, not {' or '.join(parts)}")
        files = (f"{parts[name]}/config.json", "vae/config.json", "scheduler/scheduler_config.json")
        denoiser, vae, scheduler = (json.loads((folder / part).read_text()) for part in files)
        return name, (denoiser, vae, scheduler)
    if model.name in ZEROSCOPES:  # the defaults of diffusers' class are ModelScope's
        return "TextToVideoSDPipeline", ({"sample_size": 32}, IMAGE_VAE, IMAGE_SCHEDULER)
    if model.name not in DENOISERS:
        hint = nearest(model.name, [*DENOISERS, *ZEROSCOPES])
        raise InputError(
            f"weights: random: the size of {model.source} is not known without its folder{hint}"
        )
    return "CogVideoXPipeline", (DENOISERS[model.name], {}, SCHEDULER)
