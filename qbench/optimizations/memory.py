"""Trading time for memory around the denoiser: offload, VAE tiling and slicing, the allocator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qbench.recipe.schema import Memory

if TYPE_CHECKING:
    from qbench.pipelines.base import VideoPipeline


def prepare(wanted: Memory, device: str) -> None:
    """What must be set before anything is allocated."""
    if wanted.expandable_segments and device == "cuda":
        import torch

        torch.cuda.memory._set_allocator_settings("expandable_segments:True")


def apply(video: VideoPipeline, wanted: Memory, device: str) -> None:
    pipeline = video.pipe
    if wanted.vae_tiling:
        _tile(pipeline.vae)
    if wanted.vae_slicing:
        pipeline.vae.enable_slicing()
    if wanted.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif wanted.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif wanted.offload == "group":
        _offload_groups(video, device)


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


def _offload_groups(video: VideoPipeline, device: str) -> None:
    """Blocks of the denoiser and layers of the text encoder come ahead of their turn, on a stream.

    The VAE, a twentieth of their size, stays on the device.
    """
    import torch
    from diffusers.hooks import apply_group_offloading

    how: dict[str, Any] = {
        "onload_device": torch.device(device),
        "offload_device": torch.device("cpu"),
        "use_stream": True,
    }
    video.denoiser.enable_group_offload(**how, offload_type="block_level", num_blocks_per_group=1)
    for encoder in video.text_encoders():
        apply_group_offloading(encoder, **how, offload_type="leaf_level")
    video.pipe.vae.to(device)
