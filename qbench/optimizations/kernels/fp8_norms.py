"""Norms that write what FP8 GEMMs and attention read: launchers and reference implementations.

A layer norm between two linears costs a pass over the activations, and so do the gated residual
before it and the quantization behind it. `fp8_norms.cu` does all in one.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.library import custom_op
from torch.nn import functional

from qbench.optimizations.kernels import rows as row_kernels
from qbench.optimizations.kernels.fp8_linear import Rows, quantize_weight


class Fp8LayerNorm(nn.Module):
    """norm(x + more * gate) * (1 + scale) + shift, quantized; or with the norm's own weights."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias

    def forward(
        self,
        x: torch.Tensor,
        scale: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
        more: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Rows]:
        """The sum, and its norm's rows.

        x, more: (batch, tokens, channels). scale, shift, gate: (batch, 1, channels), float32;
        without scale the norm's weight and bias are taken.
        """
        one = 1.0
        if scale is None or shift is None:
            scale, shift, one = self.weight, self.bias, 0.0
        shape = (x.shape[0], x.shape[-1])
        scale, shift = (y.float().reshape(-1, shape[1]).expand(shape) for y in (scale, shift))
        if more is None:
            codes, rows = _norm(x, scale, shift, one, self.eps)
            return x, Rows(codes, rows, x.dtype)
        gate = None if gate is None else gate.float().reshape(shape)
        x, codes, rows = _add_norm(x, more, gate, scale, shift, one, self.eps)
        return x, Rows(codes, rows, x.dtype)


def normalized(
    x: torch.Tensor,
    more: torch.Tensor | None,
    gate: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    one: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x + more * gate, and its layer norm times (one + scale), plus shift, as codes and scales."""
    batch, tokens, columns = x.shape
    if not x.is_cuda:
        by = 1.0 if gate is None else gate[:, None]
        total = x if more is None else (x.float() + more.float() * by).to(x.dtype)
        norm = functional.layer_norm(total.float(), (columns,), eps=eps)
        codes, rows = quantize_weight(
            (norm * (one + scale[:, None]) + shift[:, None]).flatten(0, 1)
        )
        return total, codes.view(x.shape), rows
    x, scale, shift = x.contiguous(), scale.contiguous(), shift.contiguous()
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    rows = torch.empty(batch * tokens, 1, dtype=torch.float32, device=x.device)
    nothing = torch.empty(0, device=x.device)  # a null pointer
    total = x if more is None else torch.empty_like(x)
    added = nothing if more is None else more.contiguous()
    by = nothing if gate is None else gate.contiguous()
    what = {"ADDED": int(more is not None), "GATED": int(gate is not None)}
    kernel = row_kernels.kernel("fp8_norms.cu", "normalize", columns, x, what)
    kernel.run(
        (kernel.blocks(batch * tokens), 1, 1),
        (kernel.threads, 1, 1),
        [x, added, by, scale, shift, total, codes, rows, batch * tokens, tokens, one, eps],
    )
    return total, codes, rows


@custom_op("qbench::fp8_norm", mutates_args=())  # one node for torch.compile
def _norm(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, one: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return normalized(x, None, None, scale, shift, one, eps)[1:]


@_norm.register_fake
def _(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, one: float, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return _like(x)


def _like(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = x.new_empty(x.shape[0] * x.shape[1], 1, dtype=torch.float32)
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn), rows


@custom_op("qbench::fp8_add_norm", mutates_args=())
def _add_norm(
    x: torch.Tensor,
    more: torch.Tensor,
    gate: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    one: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return normalized(x, more, gate, scale, shift, one, eps)


@_add_norm.register_fake
def _(
    x: torch.Tensor,
    more: torch.Tensor,
    gate: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    one: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), *_like(x)
