"""Channels of a denoiser's activations that can be scaled without changing what it computes.

Where the layers before a linear scale its input's channels by f and the linear's columns are
divided by f, the product is the same. Quantization sees another one: SmoothQuant and AWQ scale
outliers away, and `outliers` puts them into weights that are too kind to show what such methods
are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qbench.pipelines.base import VideoPipeline
    from qbench.recipe.schema import Outliers


@dataclass(frozen=True)
class Rescaling:
    """One activation, and what has to change for its channels to be scaled.

    name: of the layer that makes it.
    channels: how many it has.
    apply: scales them by (channels,) factors, and undoes that in every layer that reads them.
    readers: names of the linears that read it; none where something else does, as attention reads
        queries and keys.
    """

    name: str
    channels: int
    apply: Callable[[Tensor], None]
    readers: tuple[str, ...] = ()


@torch.no_grad()
def scale_rows(parameter: Tensor | None, factors: Tensor) -> None:
    """Multiply the first axis of a weight or a bias in place, rounding once."""
    if parameter is not None:
        shape = (-1, *(1,) * (parameter.dim() - 1))
        wide = parameter.double() * factors.to(parameter.device).double().view(shape)
        parameter.copy_(wide.to(parameter.dtype))


@torch.no_grad()
def divide_columns(linear: nn.Linear, factors: Tensor) -> None:
    """Divide each column of a linear's weight, an input channel, in place, rounding once."""
    weight = linear.weight
    wide = weight.double() / factors.to(weight.device).double()
    weight.copy_(wide.to(weight.dtype))


def into_linears(
    name: str,
    channels: int,
    readers: Sequence[tuple[str, nn.Linear]],
    produce: Callable[[Tensor], None],
) -> Rescaling:
    """A rescaling whose readers are linears; `produce` scales what they read."""

    def apply(factors: Tensor) -> None:
        produce(factors)
        for _, linear in readers:
            divide_columns(linear, factors)

    return Rescaling(name, channels, apply, tuple(reader for reader, _ in readers))


def add_outliers(video: VideoPipeline, wanted: Outliers) -> None:
    """Give the denoiser outlier channels, in place; what it computes stays the same.

    A share of the channels of every activation that the family can rescale is multiplied by factors
    between a third of `wanted.factor` and all of it, log-uniform, the same at every call. Apply it
    in FP32: narrower weights are rounded twice. Raises Unsupported for a family that knows none.
    """
    from qbench.errors import Unsupported

    found = video.rescalings()
    if not found:
        raise Unsupported(
            f"outliers: qbench knows no channels of a {video.pipeline_class} that can be rescaled"
        )
    generator = torch.Generator().manual_seed(0)
    for one in found:
        count = max(1, round(wanted.share * one.channels))
        places = torch.randperm(one.channels, generator=generator)[:count]
        exponents = torch.rand(count, generator=generator, dtype=torch.float64)
        exponents[0] = 0  # the largest is the factor itself
        factors = torch.ones(one.channels, dtype=torch.float64)
        factors[places] = wanted.factor / 3.0**exponents
        one.apply(factors)
