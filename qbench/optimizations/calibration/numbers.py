"""The numbers that a scheme leaves of weights and activations, which calibration compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

Format = Literal["int8", "int6", "int5", "int4", "int3", "int2", "fp8"]
FP8_MOST = 448.0  # of e4m3
SMALLEST = 1e-12


def bits(format: Format) -> int:
    return 8 if format == "fp8" else int(format.removeprefix("int"))


def half_range(format: Format) -> float:
    """What a group's largest magnitude is divided by for its scale, as torchao has it."""
    return FP8_MOST if format == "fp8" else (2 ** bits(format) - 1) / 2


def to_codes(x: Tensor, format: Format) -> Tensor:
    """Scaled values rounded to the format's, as float32."""
    if format == "fp8":
        return x.clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn).float()
    half = 2 ** (bits(format) - 1)
    return x.round().clamp(-half, half - 1)


@dataclass(frozen=True)
class Weights:
    """How the weights of a linear are stored, symmetric about zero.

    granularity: what shares a scale: a row, `group` values of a row, or the whole tensor.
    scale_dtype: in which scales are stored.
    """

    format: Format
    granularity: Literal["tensor", "row", "group"] = "row"
    group: int = 0
    scale_dtype: torch.dtype = torch.float32

    def scales(self, weight: Tensor) -> Tensor:
        """(rows, groups) scales of (rows, columns) weights; (rows, 1) by row, (1, 1) by tensor."""
        magnitudes = weight.float().abs()
        if self.granularity == "tensor":
            most = magnitudes.amax().view(1, 1)
        elif self.granularity == "row":
            most = magnitudes.amax(1, keepdim=True)
        elif self.granularity == "group":
            most = magnitudes.unflatten(1, (-1, self.group)).amax(2)
        else:
            assert_never(self.granularity)
        return self.stored((most / half_range(self.format)).clamp_min(SMALLEST))

    def stored(self, scales: Tensor) -> Tensor:
        """Scales as they are after they were stored, float32."""
        return scales.to(self.scale_dtype).float()

    def spread(self, scales: Tensor) -> Tensor:
        """Scales so that they multiply codes: one a column where there are groups."""
        return scales.repeat_interleave(self.group, 1) if self.granularity == "group" else scales

    def codes(self, weight: Tensor, scales: Tensor) -> Tensor:
        """(rows, columns) float32 whole numbers, or values of e4m3."""
        return to_codes(weight.float() / self.spread(scales), self.format)

    def rounded(self, weight: Tensor, scales: Tensor | None = None) -> Tensor:
        """The weights that are left of `weight`, float32."""
        scales = self.scales(weight) if scales is None else scales
        return self.codes(weight, scales) * self.spread(scales)


@dataclass(frozen=True)
class Activations:
    """How the input of a linear is rounded; `format` None leaves it as it is.

    static: one scale for all inputs, fixed in advance; else one a row, or one an input, as it
        comes.
    """

    format: Format | None = None
    granularity: Literal["tensor", "row"] = "row"
    static: bool = False

    def scale(self, most: Tensor) -> Tensor:
        """The fixed scale for inputs of this largest magnitude."""
        assert self.format is not None
        return (most.float() / half_range(self.format)).clamp_min(SMALLEST)

    def rounded(self, x: Tensor, fixed: Tensor | None = None) -> Tensor:
        """What is left of (tokens, channels) `x`, float32."""
        x = x.float()
        if self.format is None:
            return x
        if self.static:
            assert fixed is not None
            scale = fixed
        elif self.granularity == "row":
            scale = self.scale(x.abs().amax(1, keepdim=True))
        elif self.granularity == "tensor":
            scale = self.scale(x.abs().amax())
        else:
            assert_never(self.granularity)
        return to_codes(x / scale, self.format) * scale
