"""`weights: random`: a pipeline at true size with no download.

Latency and memory do not depend on the values of weights, so figures of speed need no checkpoint.
There is no text encoder (that of CogVideoX holds 4.8 billion parameters): the driver hands the
denoiser embeddings of the right shape instead. Nothing here can say anything about quality.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qbench.errors import InputError, nearest
from qbench.models import Model

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


def pipeline(model: Model, dtype: Any, surroundings: Any, device: str) -> Any:
    """A CogVideoXPipeline of the model's size: denoiser in `dtype`, VAE in `surroundings`."""
    import torch
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    denoiser_config, vae_config, scheduler_config = _configs(model)
    torch.manual_seed(0)
    denoiser = module(CogVideoXTransformer3DModel, denoiser_config, dtype, device)
    vae = module(AutoencoderKLCogVideoX, vae_config, surroundings, device)
    scheduler = CogVideoXDDIMScheduler.from_config(scheduler_config)
    whole: Any = CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=denoiser, scheduler=scheduler
    )
    whole.set_progress_bar_config(disable=True)
    return whole


def module(cls: Any, config: dict[str, Any], dtype: Any, device: str) -> Any:
    """A diffusers module with random weights, drawn in `dtype` on `device` itself."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):  # 2 billion values are slow to draw on a CPU
            return cls.from_config(config).eval().requires_grad_(False).to(device, dtype)
    finally:
        torch.set_default_dtype(before)


def _configs(model: Model) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    if model.local:
        folder = Path(model.source)
        index = json.loads((folder / "model_index.json").read_text())
        if index.get("_class_name") != "CogVideoXPipeline":
            raise InputError(f"weights: random: {folder} is no CogVideoXPipeline")
        transformer, vae, scheduler = (
            json.loads((folder / part).read_text())
            for part in (
                "transformer/config.json",
                "vae/config.json",
                "scheduler/scheduler_config.json",
            )
        )
        return transformer, vae, scheduler
    if model.name not in DENOISERS:
        hint = nearest(model.name, DENOISERS)
        raise InputError(
            f"weights: random: the size of {model.source} is not known without its folder{hint}"
        )
    return DENOISERS[model.name], {}, SCHEDULER
