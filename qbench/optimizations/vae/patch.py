"""What a recipe changes of the VAE's decode, which follows every variant's last denoise step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.errors import Unsupported
from qbench.optimizations.changes import Changes
from qbench.optimizations.rules import Machine, Rule, always
from qbench.recipe.schema import Decode

if TYPE_CHECKING:
    from qbench.optimizations.parallel.rows import Rows
    from qbench.pipelines.base import Module, Pipe

NOT_CAUSAL = (
    "decode.strips is for CogVideoX's VAE; memory.vae_slicing decodes other videos frame by frame"
)

NOT_SPLIT = "parallel.decode is for CogVideoX's VAE: leave it out, and one GPU decodes"


def apply(pipeline: Pipe, wanted: Decode, rows: Rows | None = None) -> Changes:
    """Change the decode in place. Raises Unsupported where it is written for another VAE.

    rows: of several GPUs, between which frames are split.
    """
    changes = Changes("decode")
    vae = pipeline.vae
    if rows is not None and not fuses(vae):
        raise Unsupported(NOT_SPLIT)
    if wanted.fused and fuses(vae):
        from qbench.optimizations.vae import fused

        fused.apply(vae, changes, rows)
    elif wanted.split_norms:
        _split_norms(vae, changes)
    if wanted.strips:
        if not fuses(vae):
            raise Unsupported(NOT_CAUSAL)
        from qbench.optimizations.vae import group_norm, strips

        strips.apply(vae, changes, rows.moments if rows else group_norm.moments)
    if rows is not None:
        rows.apply(vae, wanted.fused, changes)
    return changes


def fuses(vae: object) -> bool:
    """Whether qbench's own kernels are made for this VAE."""
    from diffusers import AutoencoderKLCogVideoX

    return isinstance(vae, AutoencoderKLCogVideoX)


def _split_norms(vae: Module, changes: Changes) -> None:
    import torch

    from qbench.optimizations.vae import group_norm

    for layer in vae.modules():
        if isinstance(layer, torch.nn.GroupNorm) and layer.affine:
            changes.compute(layer, group_norm.split)


def _hopper(machine: Machine) -> bool:
    return machine.cuda and machine.capability == (9, 0)


RULES: tuple[Rule, ...] = (
    Rule(
        "the fused decode",
        lambda v: v.decode.fused,
        _hopper,
        "qbench's decode kernels are written for NVIDIA Hopper (compute capability 9.0): "
        "decode.strips makes the same video anywhere",
        fails=False,  # on a CPU it is computed with plain operations, for tests
    ),
    Rule(
        "the decode in strips",
        lambda v: v.decode.strips,
        always,
        NOT_CAUSAL,
        fits=lambda _, model: model.causal_vae,
    ),
    Rule(
        "the decode split over GPUs",
        lambda v: v.parallel is not None and v.parallel.decode,
        always,
        NOT_SPLIT,
        fits=lambda _, model: model.causal_vae,
    ),
)
