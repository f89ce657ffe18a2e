"""Trading time for memory around the denoiser: offload, VAE tiling and slicing."""

from __future__ import annotations

from typing import Any

from qbench.recipe import Memory


def apply(pipeline: Any, wanted: Memory, device: str) -> None:
    if wanted.vae_tiling:
        pipeline.vae.enable_tiling()
    if wanted.vae_slicing:
        pipeline.vae.enable_slicing()
    if wanted.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif wanted.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
