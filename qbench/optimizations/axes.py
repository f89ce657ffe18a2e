"""What a recipe changes about a live pipeline, axis by axis, in the order in which they must be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.optimizations import (
    attention,
    caching,
    compilation,
    graphs,
    memory,
    parallel,
    quantization,
    schemes,
    sparse,
)
from qbench.optimizations.changes import Changes
from qbench.optimizations.vae import patch
from qbench.recipe.schema import Variant

if TYPE_CHECKING:
    from qbench.optimizations.calibration import Occasion
    from qbench.optimizations.parallel.groups import Ranks
    from qbench.pipelines.base import Module, VideoPipeline


@dataclass(frozen=True)
class Applied:
    """facts: figures for the record. changes: what was done, in order, to be undone in reverse.

    ranks: that the denoiser's calls are split over. cached: the cache in effect.
    sparse: attention that leaves out blocks, which tells how many, once videos were made.
    """

    facts: dict[str, float]
    changes: tuple[Changes, ...]
    ranks: Ranks | None = None
    cached: caching.Cached | None = None
    sparse: sparse.Sparse | None = None

    def undo(self) -> list[str]:
        """Take back what can be taken back; a sentence for each axis that cannot be."""
        for change in reversed(self.changes):
            change.undo()
        return [f"{one.axis}: {one.permanent}" for one in self.changes if one.permanent]


def apply(
    video: VideoPipeline,
    variant: Variant,
    device: str,
    steps: int,
    occasion: Occasion | None = None,
) -> Applied:
    """All that does not need the compiler to run, in place. Compiling itself happens at first use.

    `steps` is how many denoise steps a video takes, which a cache may count from; `occasion` is
    what calibration has to know of them. Where an axis
    cannot be applied, those before it are undone as far as they can be.
    """
    facts: dict[str, float] = {}
    changes: list[Changes] = []
    shared: parallel.Shared | None = None
    cached: caching.Cached | None = None
    skipping: sparse.Sparse | None = None
    try:
        if variant.fault:
            from qbench.optimizations import faults

            changes.append(faults.apply(video, variant.fault))
        if variant.fuse_qkv:
            changes.append(fuse_qkv(video.denoiser))
        if variant.quantize and schemes.find(variant.quantize).build:
            found, change = quantization.apply(video.denoiser, variant.quantize, video, occasion)
            facts |= found
            for earlier in changes:
                if earlier.of_weights:  # the very ones that are now rounded
                    earlier.keep(quantization.ROUNDED)
            changes.append(change)
        if variant.parallel:
            shared = parallel.join(variant.parallel, video, device)
        over = shared.attention if shared else None
        if variant.sparse_attention:
            skipping = sparse.Sparse(variant.sparse_attention, variant.attention)
        changes.append(attention.apply(video, variant.attention, over, skipping))
        agree = shared.total if shared else None
        if variant.cache:
            fitted, calibration_s = caching.fitted(video, variant.cache, occasion, agree)
        if variant.compile:
            hooked = variant.cache is not None or variant.memory.offload == "group" or bool(over)
            changes.append(compilation.apply(video, variant.compile, hooked))
        if variant.cache:
            cached = caching.apply(video, fitted, steps, agree, calibration_s)
            changes.append(cached.changes)
        changes.append(patch.apply(video.pipe, variant.decode, shared.rows if shared else None))
        if shared:
            changes.append(parallel.split_tokens(video, shared))
        if variant.cuda_graph:
            # Within guidance's ranks, which take turns where it has calls of its own.
            changes.append(graphs.apply(video, shared.ranks if shared else None))
        if shared:
            changes.append(parallel.split_guidance(video, shared))
        changes.append(memory.apply(video, variant.memory, device))
    except Exception:
        Applied(facts, tuple(changes)).undo()
        raise
    ranks = shared.ranks if shared else None
    return Applied(facts, tuple(filter(None, changes)), ranks, cached, skipping)


def arithmetic(variant: Variant) -> set[str]:
    """The formats in which GEMMs are computed: fp32, fp16, bf16, fp8, int8."""
    formats = {str(variant.dtype)}
    if variant.quantize:
        found = schemes.of_layers(variant.quantize)
        formats |= {one.activations or variant.dtype for one in found}
    if variant.attention != "auto":
        formats.add(attention.KERNELS[variant.attention].arithmetic or variant.dtype)
    return formats


def fuse_qkv(module: Module) -> Changes:
    """One linear in place of three, by diffusers; the three that it keeps besides are freed.

    Cross-attention fuses key and value alone, because its query has another input.
    """
    changes = Changes("fuse_qkv", of_weights=True)
    processors = dict(module.attn_processors)
    changes.on_undo(lambda: module.set_attn_processor(dict(processors)))
    module.fuse_qkv_projections()
    module.requires_grad_(False)
    for layer in module.modules():
        if getattr(layer, "fused_projections", False):
            whole = hasattr(layer, "to_qkv")
            names = ("to_q", "to_k", "to_v") if whole else ("to_k", "to_v")
            _free(layer, "to_qkv" if whole else "to_kv", names, changes)
    return changes


def _free(layer: Module, fused: str, names: tuple[str, ...], changes: Changes) -> None:
    parts = [getattr(layer, name) for name in names]

    def split() -> None:
        """The parts' weights again, cut from the fused one's. Their biases were kept."""
        weights = getattr(layer, fused).weight.data.split([part.out_features for part in parts])
        for part, weight in zip(parts, weights, strict=True):
            part.weight.data = weight.clone()
        delattr(layer, fused)
        layer.fused_projections = False

    changes.on_undo(split)
    for name, part in zip(names, parts, strict=True):
        part.weight.data = part.weight.data.new_empty(0)
        changes.replace(layer, name, None)
