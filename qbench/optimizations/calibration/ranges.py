"""Scales of their own for each range of timesteps, as ViDiT-Q has them.

Zhao et al. 2025 (arXiv 2406.02540): channels that are outliers early in a trajectory are not those
of its end, so scales fitted to the whole fit no part of it. Each range of timesteps has its scales
and exponents, and, since weights undo the scales before they are rounded, its own weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qbench.optimizations.timesteps import on_timestep

if TYPE_CHECKING:
    from qbench.optimizations.calibration.observe import Call
    from qbench.pipelines.base import Module


def timestep_of(call: Call) -> float:
    """The call's timestep, of its first video."""
    value = call.inputs.get("timestep")
    assert isinstance(value, Tensor)
    return float(value.flatten()[0])


def borders(calls: Sequence[Call], count: int) -> list[float]:
    """Timesteps that cut the trajectory into ranges with as many of its calls each, descending."""
    steps = sorted({timestep_of(call) for call in calls}, reverse=True)
    cuts = [len(steps) * i // count for i in range(1, count)]
    return [(steps[cut - 1] + steps[cut]) / 2 for cut in cuts if 0 < cut < len(steps)]


def range_of(timestep: float, cuts: Sequence[float]) -> int:
    """The number of the range that a timestep lies in; trajectories begin in 0."""
    return sum(timestep < cut for cut in cuts)


class RangedLinear(nn.Module):
    """One linear for each range of timesteps, of which the current one is called."""

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.in_features, self.out_features = parts[0].in_features, parts[0].out_features
        self.parts = nn.ModuleList(parts)
        self.current = 0

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.parts[self.current](x)
        return found


def follow(module: Module, cuts: Sequence[float]) -> None:
    """Have all ranged linears of the denoiser follow the timestep that it is called with.

    The timestep is read on the host, once a call.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, RangedLinear)]

    def enter(timestep: float) -> None:
        now = range_of(timestep, cuts)
        for layer in layers:
            layer.current = now

    on_timestep(module, enter)
