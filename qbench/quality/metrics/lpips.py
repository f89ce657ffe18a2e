"""LPIPS: distance between images in a network's features (Zhang et al. 2018, version 0.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from qbench.quality import weights
from qbench.quality.metrics.base import Context, MetricSpec, PerVideo
from qbench.quality.metrics.fidelity import same_shape
from qbench.quality.metrics.needs import LPIPS_SIDES

Net = Literal["alex", "vgg"]
# (out, in, kernel, stride, padding) of each convolution, "pool", and "tap" after the ReLU of
# every layer that is compared.
Layer = tuple[int, int, int, int, int] | Literal["pool", "tap"]
ALEX: tuple[Layer, ...] = (
    (64, 3, 11, 4, 2), "tap", "pool", (192, 64, 5, 1, 2), "tap", "pool", (384, 192, 3, 1, 1), "tap",
    (256, 384, 3, 1, 1), "tap", (256, 256, 3, 1, 1), "tap",
)  # fmt: skip
VGG: tuple[Layer, ...] = (
    (64, 3, 3, 1, 1), (64, 64, 3, 1, 1), "tap", "pool",
    (128, 64, 3, 1, 1), (128, 128, 3, 1, 1), "tap", "pool",
    (256, 128, 3, 1, 1), (256, 256, 3, 1, 1), (256, 256, 3, 1, 1), "tap", "pool",
    (512, 256, 3, 1, 1), (512, 512, 3, 1, 1), (512, 512, 3, 1, 1), "tap", "pool",
    (512, 512, 3, 1, 1), (512, 512, 3, 1, 1), (512, 512, 3, 1, 1), "tap",
)  # fmt: skip
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def meter(specs: Sequence[MetricSpec], context: Context) -> PerVideo:
    network = load_lpips(context.quality.lpips, context.device)
    note = f"{context.quality.lpips}, FP32 without TF32"
    return PerVideo(dict.fromkeys(specs, lambda batch: lpips(network, *batch.pair())), note)


class LPIPS(nn.Module):
    """Squared differences of unit-length features, weighted by learnt heads, mean over space."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.layers = ALEX if net == "alex" else VGG
        convs = [layer for layer in self.layers if not isinstance(layer, str)]
        self.convs = nn.ModuleList(
            nn.Conv2d(narrow, wide, k, s, p) for wide, narrow, k, s, p in convs
        )
        taps = [self.layers[i - 1] for i, layer in enumerate(self.layers) if layer == "tap"]
        self.heads = nn.ModuleList(
            nn.Conv2d(layer[0], 1, 1, bias=False) for layer in taps if not isinstance(layer, str)
        )
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a, b: (batch, 3, height, width) in [0, 1]. Returns (batch,), 0 is identical."""
        total = torch.zeros(len(a), device=a.device)
        for head, x, y in zip(self.heads, self._features(a), self._features(b), strict=True):
            total = total + head((_unit(x) - _unit(y)).square()).mean((1, 2, 3))
        return total

    def _features(self, images: torch.Tensor) -> list[torch.Tensor]:
        x = (images * 2 - 1 - self.shift) / self.scale
        convs, found = iter(self.convs), []
        for layer in self.layers:
            if layer == "tap":
                found.append(x)
            elif layer == "pool":
                window = 3 if self.net == "alex" else 2
                x = functional.max_pool2d(x, window, 2)
            else:
                x = functional.relu(next(convs)(x))
        return found


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(net: Net, device: torch.device | str = "cpu") -> LPIPS:
    """The network with the fetched weights. Raises InputError where they are not here."""
    network = LPIPS(net)
    network.load_state_dict(weights.load(f"lpips-{net}"))
    return network.eval().requires_grad_(False).to(device)


@torch.no_grad()
def lpips(network: LPIPS, videos: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean over frames of each video's distance to the reference's; lower is closer.

    Both (batch, frames, 3, height, width) in [0, 1], sides at least LPIPS_SIDES. Returns (batch,).
    """
    same_shape(videos, reference)
    if min(videos.shape[-2:]) < (least := LPIPS_SIDES[network.net]):
        raise ValueError(f"LPIPS ({network.net}) needs sides of {least} pixels")
    found = [network(x.float(), y.float()).mean() for x, y in zip(videos, reference, strict=True)]
    return torch.stack(found)
