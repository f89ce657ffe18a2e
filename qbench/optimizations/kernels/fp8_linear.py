"""FP8 linears whose activations are quantized by one kernel, row by row.

The arithmetic is that of torchao's dynamic FP8 per row (e4m3, one scale a row of activations and
one a row of weights, FP32 accumulation). What differs is traffic: compiled, torchao's takes two
passes over each activation, and GELU is computed in both; `fp8_rows.cu` takes one. A feed-forward
layer is one operator that works through its rows in parts, so its widest tensor never exists whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.library import custom_op
from torch.nn import functional

from qbench.optimizations.kernels import rows as row_kernels

ACTIVATIONS = ("none", "gelu_tanh", "geglu")  # as the source numbers them
# A feed-forward layer's rows are worked through in so many parts, of about so many rows or more.
PARTS, ROWS_OF_A_PART = 4, 9216
Quantized = tuple[torch.Tensor, torch.Tensor]  # (out, in) e4m3 codes, (out, 1) FP32 scales
SMALL = 16  # rows or fewer are not worth FP8 arithmetic: only the weights are FP8 then


class Rows(NamedTuple):
    """Activations that an earlier kernel has quantized: (..., columns) e4m3 codes, (rows, 1) FP32
    scales, and the dtype that a GEMM of them gives.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    dtype: torch.dtype


class Fp8Linear(nn.Module):
    """A linear with FP8 weights; its input is quantized as it comes.

    Weights and scales are parameters, for diffusers' group offload brings a block's buffers to the
    device and leaves them there.
    """

    CUTS = True  # its output may be asked for in pieces

    def __init__(self, linear: nn.Linear, quantized: Quantized | None = None) -> None:
        """quantized: the weights' codes and scales, where they are not to be rounded plainly."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias  # first: a model's dtype is that of its first parameter
        codes, scale = quantized or quantize_weight(linear.weight)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        # Let go now, not with the last reference to the old layer: weights would be held twice.
        linear.weight.data = linear.weight.data.new_empty(0)

    def forward(self, x: torch.Tensor | Rows, pieces: int = 1) -> torch.Tensor | list[torch.Tensor]:
        """The output; or cut into so many `pieces` along its last axis, each a tensor of its own.

        Views of one would keep all of it alive: query and key beside what they are normed to.
        """
        weights = self.weight, self.scale, self.bias
        codes, *of_rows = x if isinstance(x, Rows) else (x,)
        if pieces > 1:
            return _pieces(codes, *weights, pieces, *of_rows)
        if not of_rows and codes.numel() // self.in_features <= SMALL:
            weight = self.weight.to(codes.dtype) * self.scale.to(codes.dtype)
            return functional.linear(codes, weight, self.bias)
        return _linear(codes, *weights, *of_rows)


class Fp8FeedForward(nn.Module):
    """linear, GELU (tanh) or GEGLU, linear.

    All parameters are its own: accelerate's offload brings those of a module as it is called, and
    inner layers, of which only the weights are read, would never be.
    """

    def __init__(
        self,
        wide: nn.Linear,
        narrow: nn.Linear,
        activation: str,
        quantized: tuple[Quantized | None, Quantized | None] = (None, None),
    ) -> None:
        super().__init__()
        self.activation = activation
        first, second = Fp8Linear(wide, quantized[0]), Fp8Linear(narrow, quantized[1])
        self.wide_bias, self.narrow_bias = first.bias, second.bias  # first, as above
        self.wide, self.wide_scale = first.weight, first.scale
        self.narrow, self.narrow_scale = second.weight, second.scale

    def forward(self, x: torch.Tensor | Rows) -> torch.Tensor:
        first = self.wide, self.wide_scale, self.wide_bias
        second = self.narrow, self.narrow_scale, self.narrow_bias
        codes, *of_rows = x if isinstance(x, Rows) else (x,)
        return _feed_forward(codes, *first, *second, self.activation, *of_rows)


@torch.no_grad()  # or the codes would keep every step of their making alive for a backward pass
def quantize_weight(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, in) weights as e4m3 codes and one FP32 scale a row, shape (out, 1)."""
    scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 448
    return (weight.float() / scale).to(torch.float8_e4m3fn), scale


def quantize_rows(x: torch.Tensor, activation: str = "none") -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, columns) as e4m3 codes and one FP32 scale a row, shape (rows, 1).

    `geglu` takes rows of twice the columns that it returns.
    """
    if not x.is_cuda:
        return quantize_weight(_activated(x.float(), activation))
    rows, columns = x.shape[0], x.shape[1] // (2 if activation == "geglu" else 1)
    what = {"ACTIVATION": ACTIVATIONS.index(activation)}
    kernel = row_kernels.kernel("fp8_rows.cu", "quantize_rows", columns, x, what)
    x = x.contiguous()
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    kernel.run((kernel.blocks(rows), 1, 1), (kernel.threads, 1, 1), [x, codes, scale, rows])
    return codes, scale


def _activated(x: torch.Tensor, activation: str) -> torch.Tensor:
    if activation == "geglu":
        values, gate = x.chunk(2, dim=-1)
        return values * functional.gelu(gate)
    if activation == "gelu_tanh":
        return functional.gelu(x, approximate="tanh")
    if activation == "none":
        return x
    raise ValueError(f"no such activation: {activation}")


def product(
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """GEMM of quantized rows and quantized weights, in `dtype`."""
    if not codes.is_cuda:
        y = (codes.float() @ weight.float().t()) * scale * weight_scale.t()
        y = (y if bias is None else y + bias.float()).to(dtype)
        return y if out is None else out.copy_(y)
    arguments: dict[str, Any] = {"bias": bias, "out_dtype": dtype, "use_fast_accum": True}
    scales = (scale, weight_scale.t())
    if out is None:
        return torch._scaled_mm(codes, weight.t(), *scales, **arguments)
    return torch._scaled_mm(codes, weight.t(), *scales, **arguments, out=out)


def _rows(x: torch.Tensor, scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of flattened `x`, which has been quantized where there is a scale."""
    flat = x.flatten(0, -2)
    return quantize_rows(flat) if scale is None else (flat, scale)


@custom_op("qbench::fp8_linear", mutates_args=())  # one node for torch.compile
def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    rows_scale: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    y = product(*_rows(x, rows_scale), weight, scale, bias, dtype or x.dtype)
    return y.view(*x.shape[:-1], -1)


@_linear.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    rows_scale: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=dtype or x.dtype)


@custom_op("qbench::fp8_pieces", mutates_args=())
def _pieces(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    count: int,
    rows_scale: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    rows = _rows(x, rows_scale)
    biases = [None] * count if bias is None else bias.chunk(count)
    parts = zip(weight.chunk(count), scale.chunk(count), biases, strict=True)
    made = [product(*rows, w, s, b, dtype or x.dtype) for w, s, b in parts]
    return [y.view(*x.shape[:-1], -1) for y in made]


@_pieces.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    count: int,
    rows_scale: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    shape = (*x.shape[:-1], weight.shape[0] // count)
    return [x.new_empty(shape, dtype=dtype or x.dtype) for _ in range(count)]


@custom_op("qbench::fp8_feed_forward", mutates_args=())
def _feed_forward(
    x: torch.Tensor,
    wide: torch.Tensor,
    wide_scale: torch.Tensor,
    wide_bias: torch.Tensor | None,
    narrow: torch.Tensor,
    narrow_scale: torch.Tensor,
    narrow_bias: torch.Tensor | None,
    activation: str,
    rows_scale: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    flat, made = x.flatten(0, -2), dtype or x.dtype
    out = flat.new_empty(flat.shape[0], narrow.shape[0], dtype=made)
    count = max(1, min(PARTS, -(-flat.shape[0] // ROWS_OF_A_PART)))
    size = max(SMALL, -(-flat.shape[0] // (count * 128)) * 128)
    parts = flat.split(size)
    scales = [None] * len(parts) if rows_scale is None else rows_scale.split(size)
    for rows, one, place in zip(parts, scales, out.split(size), strict=True):
        hidden = product(*_rows(rows, one), wide, wide_scale, wide_bias, made)
        codes, scale = quantize_rows(hidden, activation)
        del hidden
        product(codes, scale, narrow, narrow_scale, narrow_bias, made, out=place)
    return out.view(*x.shape[:-1], -1)


@_feed_forward.register_fake
def _(
    x: torch.Tensor,
    wide: torch.Tensor,
    wide_scale: torch.Tensor,
    wide_bias: torch.Tensor | None,
    narrow: torch.Tensor,
    narrow_scale: torch.Tensor,
    narrow_bias: torch.Tensor | None,
    activation: str,
    rows_scale: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], narrow.shape[0], dtype=dtype or x.dtype)


def replace(
    module: nn.Module, names: Collection[str], quantized: Mapping[str, Quantized] | None = None
) -> None:
    """Put FP8 layers in place of the chosen linears of `module`, feed-forward layers as a whole.

    quantized: codes and scales by name, as `quantize_weight` returns them; the others' weights are
    rounded plainly.
    """
    chosen, given = set(names), quantized or {}
    for name, layer in list(module.named_modules()):
        found = _feed_forward_parts(layer)
        first, second = f"{name}.net.0.proj", f"{name}.net.2"
        if found and {first, second} <= chosen:
            both = (given.get(first), given.get(second))
            _set(module, name, Fp8FeedForward(*found, both))
            chosen -= {first, second}
    for name in sorted(chosen):
        linear = module.get_submodule(name)
        _set(module, name, Fp8Linear(linear, given.get(name)))  # type: ignore[arg-type]


def _feed_forward_parts(layer: nn.Module) -> tuple[nn.Linear, nn.Linear, str] | None:
    """Both linears and the activation of diffusers' FeedForward, where it is one of ours."""
    net = getattr(layer, "net", None)
    if not isinstance(net, nn.ModuleList) or len(net) < 3 or not isinstance(net[2], nn.Linear):
        return None
    first: Any = net[0]
    kind = type(first).__name__
    if kind == "GELU" and first.approximate == "tanh":
        return first.proj, net[2], "gelu_tanh"
    return (first.proj, net[2], "geglu") if kind == "GEGLU" else None


def _set(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, new)
