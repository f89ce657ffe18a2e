"""Putting another kernel where a denoiser computes self-attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from qbench.errors import Unsupported

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qbench.pipelines.base import Module

# q, k, v and result: (batch, tokens, heads, channels)
Kernel = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


class Layer(Protocol):
    """The parts of diffusers' `Attention` that a processor reads."""

    heads: int
    norm_q: Callable[[Tensor], Tensor] | None
    norm_k: Callable[[Tensor], Tensor] | None
    to_q: Callable[[Tensor], Tensor]
    to_k: Callable[[Tensor], Tensor]
    to_v: Callable[[Tensor], Tensor]
    to_qkv: Callable[..., Tensor]
    to_out: nn.ModuleList


class Processor:
    """What diffusers' attention processors have in common, around a kernel of one's own."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def heads(self, attn: Layer, x: Tensor) -> list[Tensor]:
        """Query, key and value of self-attention over `x`, query and key normalised.

        Where the layer holds one linear for the three (`to_qkv`), that one is called.
        """
        if getattr(attn, "fused_projections", False):
            qkv = attn.to_qkv
            cuts = getattr(qkv, "CUTS", False)
            parts = qkv(x, pieces=3) if cuts else qkv(x).chunk(3, dim=-1)
        else:
            parts = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        q, k, v = (part.unflatten(-1, (attn.heads, -1)) for part in parts)
        q = q if attn.norm_q is None else attn.norm_q(q)
        k = k if attn.norm_k is None else attn.norm_k(k)
        return [q, k, v]

    def attended(self, attn: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The kernel's result through the layer's output projection."""
        out: Tensor = attn.to_out[1](attn.to_out[0](self.kernel(q, k, v).flatten(2)))
        return out


def dispatch(module: Module, kernel: Kernel) -> None:
    """Have diffusers' attention dispatcher call `kernel` for this module's self-attention.

    Attention over a prompt, and any with a mask, stays torch's: it is a few per cent of the FLOPs,
    and kernels for long sequences do not take it. Raises Unsupported where none of the module's
    processors asks the dispatcher.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    native = _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE]

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        plain = attn_mask is None and not dropout_p and not is_causal and scale is None
        if plain and not enable_gqa and query.shape == key.shape:
            return kernel(query, key, value)
        result: Tensor = native(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        )
        return result

    name = _backend_name(AttentionBackendName, kernel)
    _AttentionBackendRegistry.register(name)(attend)  # type: ignore[arg-type]
    layers = [x for x in module.modules() if not getattr(x, "is_cross_attention", False)]
    processors = [getattr(layer, "processor", None) for layer in layers]
    found = [one for one in processors if one and hasattr(one, "_attention_backend")]
    if not found:
        raise Unsupported(
            f"attention: a {type(module).__name__} does not use diffusers' attention dispatcher"
        )
    for processor in found:
        processor._attention_backend = name


def kernel_of(layer: Module) -> Kernel | None:
    """The kernel that `dispatch` put in this layer's place for attention; None where torch's is."""
    backend = getattr(layer.processor, "_attention_backend", None)
    return getattr(backend, "kernel", None)


def _backend_name(names: type[str], kernel: Kernel) -> str:
    """A name that diffusers' dispatcher takes for one of its own: it looks up enum members only."""
    member = str.__new__(names, "qbench")
    member._name_, member._value_ = "QBENCH", "qbench"  # type: ignore[attr-defined]
    member.kernel = kernel  # type: ignore[attr-defined]
    return member
