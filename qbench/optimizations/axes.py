"""What a recipe changes about a live pipeline, axis by axis, in the order in which they must be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qbench.recipe.schema import Variant

if TYPE_CHECKING:
    from qbench.pipelines.base import VideoPipeline


def apply(video: VideoPipeline, variant: Variant, device: str, steps: int) -> dict[str, Any]:
    """All that does not need the compiler to run, in place. Compiling itself happens at first use.

    `steps` is how many denoise steps a video takes, which a cache may count from.
    Returns facts for the record, such as the share of parameters that was quantized.
    """
    from qbench.optimizations import attention, caching, compilation, memory, quantization
    from qbench.optimizations.vae import patch

    facts: dict[str, Any] = {}
    if variant.fault:
        from qbench.optimizations import faults

        faults.apply(video, variant.fault)
    if variant.fuse_qkv:
        _fuse_qkv(video.denoiser)
    if variant.quantize and not variant.engine:
        facts |= quantization.apply(video.denoiser, variant.quantize)
    attention.apply(video, variant.attention)
    if variant.compile:
        hooked = variant.cache is not None or variant.memory.offload == "group"
        compilation.apply(video, variant.compile, hooked)
    if variant.cache:
        caching.apply(video, variant.cache, steps)
    patch.apply(video.pipe, variant.decode)
    memory.apply(video, variant.memory, device)
    return facts


def _fuse_qkv(module: Any) -> None:
    """One linear in place of three, by diffusers; those that it keeps besides are let go.

    Attention over a prompt fuses key and value alone, for its query reads something else.
    """
    module.fuse_qkv_projections()
    module.requires_grad_(False)
    for layer in module.modules():
        if getattr(layer, "fused_projections", False):
            fused = layer.to_qkv if hasattr(layer, "to_qkv") else layer.to_kv
            gone = ("to_q", "to_k", "to_v") if hasattr(layer, "to_qkv") else ("to_k", "to_v")
            for name in gone:
                getattr(layer, name).weight.data = fused.weight.data.new_empty(0)
                setattr(layer, name, None)
