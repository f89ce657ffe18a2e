"""The probe: a small 3D network that names the attributes of a clip of the rendered world.

Its answers are the prompt-adherence figures and its features serve FVD. Both are valid for
the bundled models only and cannot be compared with published scores. It reads clips of one size;
larger ones are shown to it as `world.shrunk` makes them.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import nn

from qbench import world

FEATURES = 64


class Probe(nn.Module):
    """Strided 3D convolutions, one feature layer, one linear head an attribute."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for i, (narrow, wide) in enumerate(itertools.pairwise(widths)):
            stride = (1, 2, 2) if i == 0 else (2, 2, 2)
            layers += [nn.Conv3d(narrow, wide, 3, stride, 1), nn.GroupNorm(8, wide), nn.GELU()]
        self.backbone = nn.Sequential(*layers)
        self.embed = nn.Linear(128 * 3 * 4 * 4, FEATURES)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(FEATURES, len(values)) for name, values in world.ATTRIBUTES.items()}
        )

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """frames: (batch, 17, 3, 64, 64) in [0, 1]. Returns (batch, FEATURES)."""
        expected = (world.FRAMES, 3, world.SIDE, world.SIDE)
        if tuple(frames.shape[1:]) != expected:
            raise ValueError(f"the probe reads clips of {expected}, got {tuple(frames.shape[1:])}")
        x = frames.transpose(1, 2) * 2 - 1
        return self.embed(self.backbone(x).flatten(1))

    def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (batch, number of values) by attribute."""
        hidden = nn.functional.gelu(self.features(frames))
        return {name: head(hidden) for name, head in self.heads.items()}


def load_probe(folder: Path, device: torch.device | str = "cpu") -> Probe:
    """The probe with the weights of `folder`/model.safetensors, in float32."""
    from safetensors.torch import load_file

    probe = Probe()
    state = load_file(folder / "model.safetensors")
    probe.load_state_dict({name: value.float() for name, value in state.items()})
    return probe.eval().requires_grad_(False).to(device)
