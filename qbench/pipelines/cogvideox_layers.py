"""CogVideoX's layers: attention by another kernel, and which of their channels can be scaled."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from qbench.pipelines import attention, rescaling

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.pipelines.attention import Kernel, Layer
    from qbench.pipelines.base import Module
    from qbench.pipelines.rescaling import Rescaling


def set_attention(module: Module, kernel: Kernel) -> None:
    """Have every block attend by `kernel`: its processors call torch's past the dispatcher."""
    for block in module.transformer_blocks:
        block.attn1.set_processor(Processor(kernel))


class Processor(attention.Processor):
    """CogVideoX's joint attention over text and video, as diffusers' own processor computes it."""

    def __call__(
        self,
        attn: Layer,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        if attention_mask is not None:
            raise ValueError("CogVideoX's pipelines pass no attention mask, nor can this processor")
        text = encoder_hidden_states.size(1)
        both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = self.heads(attn, both)
        if image_rotary_emb is not None:
            q, k = (_rotated(x, text, image_rotary_emb) for x in (q, k))
        out = self.attended(attn, q, k, v)
        return out[:, text:], out[:, :text]


def _rotated(x: Tensor, text: int, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of the video's tokens; the text's have none."""
    from diffusers.models.embeddings import apply_rotary_emb

    video: Any = apply_rotary_emb(x[:, text:].transpose(1, 2), rotary)  # type: ignore[arg-type]
    return torch.cat([x[:, :text], video.transpose(1, 2)], dim=1)


def rescalings(denoiser: Module) -> list[Rescaling]:
    """Of every block, in order: each stands before those that read what its own layers make."""
    rotary = bool(denoiser.config.use_rotary_positional_embeddings)
    found = []
    for number, block in enumerate(denoiser.transformer_blocks):
        found += _rescalings(f"transformer_blocks.{number}", block, rotary)
    return found


def _rescalings(name: str, block: Module, rotary: bool) -> list[Rescaling]:
    """What can be scaled in one block: all inputs of linears but that of the last, behind GELU.

    The inputs of attention and of the feed-forward layer are norm(x) * (1 + scale) + shift. They
    are scaled through the norm's own weight and bias and the rows of the modulation that make the
    shifts of video and text. Scaling the rows of `scale` instead would have it near -1 where
    outliers are scaled away, and BF16 keeps nothing of 1 + scale then.
    """
    attn, found = block.attn1, []
    fused = getattr(attn, "fused_projections", False)
    projections = ("to_qkv",) if fused else ("to_q", "to_k", "to_v")
    value = attn.to_qkv if fused else attn.to_v
    width = attn.to_out[0].in_features

    def values(factors: Tensor) -> None:
        whole = torch.ones(value.out_features, dtype=torch.float64)
        whole[-width:] = factors
        rescaling.scale_rows(value.weight, whole)
        rescaling.scale_rows(value.bias, whole)

    out = (f"{name}.attn1.to_out.0", attn.to_out[0])
    found.append(rescaling.into_linears(f"{name}.attn1.to_v", width, [out], values))
    inputs = [(f"{name}.attn1.{linear}", getattr(attn, linear)) for linear in projections]
    for norm, readers in (
        ("norm1", inputs),
        ("norm2", [(f"{name}.ff.net.0.proj", block.ff.net[0].proj)]),
    ):
        modulated = getattr(block, norm)
        if modulated.norm.weight is not None:
            produce = functools.partial(_scale_modulated, modulated)
            size = modulated.norm.weight.numel()
            found.append(rescaling.into_linears(f"{name}.{norm}", size, readers, produce))
    if attn.norm_q is not None and attn.norm_k is not None:
        found.append(
            rescaling.Rescaling(
                f"{name}.attn1.norm_q",
                attn.norm_q.weight.numel() // (2 if rotary else 1),
                functools.partial(_scale_queries, attn, rotary),
            )
        )
    return found


def _scale_modulated(modulated: Module, factors: Tensor) -> None:
    ones = torch.ones_like(factors)
    rescaling.scale_rows(modulated.norm.weight, factors)
    rescaling.scale_rows(modulated.norm.bias, factors)
    # shift, scale and gate of the video, then of the text
    rows = torch.cat([factors, ones, ones, factors, ones, ones])
    rescaling.scale_rows(modulated.linear.weight, rows)
    rescaling.scale_rows(modulated.linear.bias, rows)


def _scale_queries(attn: Module, rotary: bool, factors: Tensor) -> None:
    """Queries times, keys by the factors, of the channels that all heads' norms share.

    Rotary embeddings turn channels in pairs, so both of a pair have one factor.
    """
    each = factors.repeat_interleave(2) if rotary else factors
    for norm, by in ((attn.norm_q, each), (attn.norm_k, 1 / each)):
        rescaling.scale_rows(norm.weight, by)
        rescaling.scale_rows(norm.bias, by)
