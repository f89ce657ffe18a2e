"""Trading time for memory around the denoiser: offload, VAE tiling and slicing, the allocator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qbench.errors import Unsupported
from qbench.optimizations.changes import Changes
from qbench.optimizations.rules import Rule
from qbench.recipe.schema import Memory

if TYPE_CHECKING:
    from qbench.pipelines.base import Module, VideoPipeline

STREAMED = "group offload keeps the weights in buffers of its own: load the pipeline again"
ALLOCATOR = "the allocator's setting holds until the process ends"


def prepare(wanted: Memory, device: str) -> None:
    """What must be set before anything is allocated."""
    if wanted.expandable_segments and device == "cuda":
        import torch

        torch.cuda.memory._set_allocator_settings("expandable_segments:True")


def apply(video: VideoPipeline, wanted: Memory, device: str) -> Changes:
    """Tiling and slicing of the VAE, and offload to `device` part by part."""
    changes = Changes("memory")
    pipe = video.pipe
    vae = pipe.vae
    if wanted.expandable_segments:
        changes.permanent = ALLOCATOR
    if wanted.vae_tiling:
        _tile(vae, changes, wanted.vae_tile)
    if wanted.vae_slicing:
        if not vae.use_slicing:
            changes.on_undo(vae.disable_slicing)
        vae.enable_slicing()
    if wanted.offload is None:
        return changes
    if wanted.offload == "group":
        changes.permanent = STREAMED
        _offload_groups(video, device)
        return changes
    changes.on_undo(lambda: pipe.to(device))
    changes.on_undo(pipe.remove_all_hooks)
    if wanted.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif wanted.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        raise ValueError(f"memory.offload: no such way: {wanted.offload}")
    return changes


def _tile(vae: Module, changes: Changes, pixels: int | None) -> None:
    """Decode in tiles, by diffusers; with an overlap that this VAE's tiles can be cut to.

    pixels: the side of a tile, or None for the VAE's own. Raises Unsupported where it has no such.

    The default overlaps leave whole latents only for tiles of CogVideoX's own size: for a smaller
    VAE the tiles would not add up to the frame.
    """
    if not vae.use_tiling:
        changes.on_undo(vae.disable_tiling)
    if pixels:
        sides = ("tile_sample_min_height", "tile_sample_min_width")
        latent = ("tile_latent_min_height", "tile_latent_min_width")
        if not all(hasattr(vae, name) for name in sides + latent):
            raise Unsupported(f"memory.vae_tile: a {type(vae).__name__} has no tiles to size so")
        for name in sides:
            changes.replace(vae, name, pixels)
        for name in latent:
            changes.replace(vae, name, pixels // 2 ** (len(vae.config.block_out_channels) - 1))
    vae.enable_tiling()
    if not hasattr(vae, "tile_overlap_factor_height"):
        return  # a VAE of images, whose tiles fit as they are
    for side in ("height", "width"):
        sample, latent = (getattr(vae, f"tile_{kind}_min_{side}") for kind in ("sample", "latent"))
        overlap = getattr(vae, f"tile_overlap_factor_{side}")
        step = int(latent * (1 - overlap))
        if step * (sample // latent) != sample - int(sample * overlap):
            changes.replace(vae, f"tile_overlap_factor_{side}", 1 / 4)


def is_offloaded(module: Module) -> bool:
    """Whether a pipeline's own call brings this module, or parts of it, to a device and back."""
    from diffusers.hooks.group_offloading import _is_group_offload_enabled

    by_accelerate = any(hasattr(layer, "_hf_hook") for layer in module.modules())
    return by_accelerate or _is_group_offload_enabled(module)


def tiles_nothing(vae: Module, height: int, width: int) -> bool:
    """Whether it is set to decode in tiles, and a picture of so many pixels is no larger than one.

    The names are diffusers': a VAE of images has one side for both.
    """
    sides = ("tile_sample_min_height", "tile_sample_min_width")
    high, wide = (getattr(vae, name, None) or vae.tile_sample_min_size for name in sides)
    return bool(vae.use_tiling and height <= high and width <= wide)


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


RULES: tuple[Rule, ...] = (
    Rule(
        "offload",
        lambda v: v.memory.offload is not None,
        lambda m: m.cuda,
        "offload moves weights off a GPU, and there is none",
        fails=False,  # model offload runs, and moves nothing
    ),
    Rule(
        "expandable segments",
        lambda v: v.memory.expandable_segments,
        lambda m: m.cuda,
        "expandable_segments is a setting of torch's allocator for GPUs, and there is none",
        fails=False,
    ),
)
