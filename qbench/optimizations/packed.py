"""Linears whose weights take the bits that they are said to: 2 to 8, packed, in groups.

torchao's tensors for fewer than 8 bits hold one value a byte. Here codes are cut into fields of 1,
2, 4 and 8 bits, several to a byte, and unpacked as the layer runs; compiled, that is one kernel.
The product is computed in the input's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

FIELDS = (8, 4, 2, 1)
OPTIONAL = ("pre", "up", "down")


def pack(codes: Tensor, bits: int) -> Tensor:
    """(rows, columns) whole numbers from -2^(bits-1) on as (rows, columns * bits / 8) bytes.

    Columns are a multiple of 8.
    """
    if codes.shape[1] % 8:
        raise ValueError(f"packed weights have a multiple of 8 columns, not {codes.shape[1]}")
    left = (codes.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    parts = []
    for width in FIELDS:
        if bits & width:
            field = left if width == 8 else left & (2**width - 1)
            shifts = torch.arange(0, 8, width, device=codes.device, dtype=torch.uint8)
            parts.append((field.unflatten(1, (-1, 8 // width)) << shifts).sum(2, dtype=torch.uint8))
            left = left >> width if width < 8 else torch.zeros_like(left)
    return torch.cat(parts, 1)


def unpack(packed: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """What `pack` was given, (rows, columns) in `dtype`."""
    columns = packed.shape[1] * 8 // bits
    start = shift = 0
    codes = None
    for width in FIELDS:
        if bits & width:
            size = columns * width // 8
            part = packed[:, start : start + size]
            if width < 8:
                shifts = torch.arange(0, 8, width, device=packed.device, dtype=torch.uint8)
                part = ((part.unsqueeze(2) >> shifts) & (2**width - 1)).flatten(1)
            part = part << shift if shift else part
            codes = part if codes is None else codes | part
            start, shift = start + size, shift + width
    assert codes is not None
    return codes.to(dtype) - 2 ** (bits - 1)


class PackedLinear(nn.Module):
    """A linear with packed weights: scale * codes, and what calibration may add.

    x' = x * pre; y = x' W' + (x' down') up' + bias. All that it holds are parameters, which
    diffusers' group offload takes along.
    """

    pre: Tensor | None
    up: Tensor | None
    down: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        codes: Tensor,
        scales: Tensor,
        bits: int,
        pre: Tensor | None = None,
        up: Tensor | None = None,
        down: Tensor | None = None,
    ) -> None:
        """codes: (out, in) whole numbers. scales: (out, groups). pre: (in,). up: (out, rank)."""
        super().__init__()
        self.in_features, self.out_features, self.bits = codes.shape[1], codes.shape[0], bits
        dtype = linear.weight.dtype
        self.bias = linear.bias  # first: a model's dtype is that of its first parameter
        self.scale = _kept(scales.to(dtype))
        self.weight = _kept(pack(codes, bits))
        for name, value in zip(OPTIONAL, (pre, up, down), strict=True):
            self.register_parameter(name, None if value is None else _kept(value.to(dtype)))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The quantized part of the weights, (out, in)."""
        codes = unpack(self.weight, self.bits, dtype)
        groups = self.scale.to(dtype).unsqueeze(2)
        return (codes.unflatten(1, (groups.shape[1], -1)) * groups).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.pre is not None:
            x = x * self.pre
        y = functional.linear(x, self.dense(x.dtype), self.bias)
        if self.up is not None and self.down is not None:
            y = y + functional.linear(functional.linear(x, self.down), self.up)
        return y


def make_room(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give packed linears the optional parameters that are among these names, without values."""
    for name, layer in module.named_modules():
        if isinstance(layer, PackedLinear):
            for part in OPTIONAL:
                if shape := shapes.get(f"{name}.{part}"):
                    empty = layer.scale.new_empty(tuple(shape))
                    layer.register_parameter(part, _kept(empty))


def _kept(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)
