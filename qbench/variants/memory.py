"""Trading time for memory around the denoiser: offload, VAE tiling and slicing."""

from __future__ import annotations

from typing import Any

from qbench.recipe import Memory


def apply(pipeline: Any, wanted: Memory, device: str) -> None:
    if wanted.vae_tiling:
        _tile(pipeline.vae)
    if wanted.vae_slicing:
        pipeline.vae.enable_slicing()
    if wanted.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif wanted.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif wanted.offload == "group":
        _offload_groups(pipeline, device)


def _tile(vae: Any) -> None:
    """Decode in tiles, by diffusers; with an overlap that this VAE's tiles can be cut to.

    The default overlaps leave whole latents only for tiles of CogVideoX's own size: for a smaller
    VAE the tiles would not add up to the frame.
    """
    vae.enable_tiling()
    if not hasattr(vae, "tile_overlap_factor_height"):
        return  # a VAE of images, whose tiles fit as they are
    for side in ("height", "width"):
        sample, latent = (getattr(vae, f"tile_{kind}_min_{side}") for kind in ("sample", "latent"))
        overlap = getattr(vae, f"tile_overlap_factor_{side}")
        step = int(latent * (1 - overlap))
        if step * (sample // latent) != sample - int(sample * overlap):
            setattr(vae, f"tile_overlap_factor_{side}", 1 / 4)


def _offload_groups(pipeline: Any, device: str) -> None:
    """The denoiser's blocks come one ahead of their turn, on a stream of their own.

    Everything else stays on the device.
    """
    import torch

    from qbench.models import denoiser

    denoiser(pipeline).enable_group_offload(
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=True,
    )
