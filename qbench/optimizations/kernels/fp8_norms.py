"""Norms that write what FP8 GEMMs and attention read: launchers and reference implementations.

A layer norm between two linears costs a pass over the activations, and so do the gated residual
before it and the quantization behind it. `fp8_norms.cu` does all in one. What follows the
projections of query and key, an RMS norm over all heads and a rotary embedding, is another.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.library import custom_op
from torch.nn import functional

from qbench.optimizations.kernels import Kernel, build
from qbench.optimizations.kernels.fp8_linear import Rows, quantize_weight

# Rows of up to so many values, ascending -> the suffix of their kernels, how many at once.
KERNELS = {1536: ("short", 8), 8192: ("long", 1)}


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


class RotaryNorm(nn.Module):
    """An RMS norm over all heads, then a rotary embedding of neighbouring channels."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        super().__init__()
        self.eps, self.weight = norm.eps or 0.0, norm.weight

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """x: (batch, tokens, channels). rotary: cosine and sine, (1, tokens, 1, of a head).

        The tables are diffusers': float32, each value twice.
        """
        cosine, sine = (table.flatten(0, 2) for table in rotary)
        return _rotated(x, self.weight, cosine, sine, self.eps)


def takes(columns: int) -> bool:
    return columns % 8 == 0 and columns <= max(KERNELS)


@functools.cache
def _kernels(_: int) -> dict[str, Kernel]:
    names = [f"{what}_{width}" for what in ("normalize", "rotate") for width, _ in KERNELS.values()]
    return dict(zip(names, build("fp8_norms.cu", *names), strict=True))


def _kernel(what: str, x: torch.Tensor, rows: int) -> tuple[Kernel, tuple[int, int, int]]:
    columns = x.shape[-1]
    if not takes(columns):
        raise ValueError(
            f"rows of a multiple of 8 and at most {max(KERNELS)} values, not {columns}"
        )
    name, at_once = next(kernel for width, kernel in KERNELS.items() if columns <= width)
    return _kernels(x.device.index or 0)[f"{what}_{name}"], (-(-rows // at_once), 1, 1)


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
    kernel, grid = _kernel("normalize", x, batch * tokens)
    is_bf16 = int(x.dtype == torch.bfloat16)
    numbers = (batch * tokens, columns, tokens, is_bf16, one, eps)
    kernel(grid, (256, 1, 1), [x, added, by, scale, shift, total, codes, rows, *numbers])
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


@custom_op("qbench::rotary_norm", mutates_args=())
def _rotated(
    x: torch.Tensor, weight: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, eps: float
) -> torch.Tensor:
    batch, tokens, columns = x.shape
    dim = cosine.shape[1]
    if not x.is_cuda:
        norm = functional.rms_norm(x.float(), (columns,), eps=eps) * weight.float()
        a, b = norm.view(batch, tokens, -1, dim // 2, 2).unbind(-1)
        c, s = cosine[:, None, 0::2], sine[:, None, 1::2]
        return torch.stack([a * c - b * s, a * s + b * c], -1).view(x.shape).to(x.dtype)
    x, out = x.contiguous(), x.new_empty(x.shape)
    kernel, grid = _kernel("rotate", x, batch * tokens)
    tables = [table.float().contiguous() for table in (cosine, sine)]
    numbers = (batch * tokens, columns, tokens, dim, int(x.dtype == torch.bfloat16), eps)
    kernel(grid, (256, 1, 1), [x, weight.to(x.dtype), *tables, out, *numbers])
    return out


@_rotated.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, eps: float
) -> torch.Tensor:
    return x.new_empty(x.shape)
