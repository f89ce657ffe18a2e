"""I3D: the inflated Inception network whose features define FVD (Carreira and Zisserman 2017).

Laid out as in the authors' TensorFlow code, whose padding is SAME throughout; every convolution
holds its batch norm (see `weights`).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from qbench.quality.metrics.needs import I3D_FRAMES

CLASSES, FEATURES, SIDE = 400, 1024, 224
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def _same(x: torch.Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> list[int]:
    """TensorFlow's SAME padding, as torch.nn.functional.pad takes it: last axis first."""
    pads: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(window), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return pads


def _conv(narrow: int, wide: int, k: int, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(narrow, wide, k, stride, padding=k // 2 if stride == 1 else 0)


def _pool(x: torch.Tensor, window: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    padded = functional.pad(x, _same(x, window, stride), value=float("-inf"))
    return functional.max_pool3d(padded, window, stride)


class Inception(nn.Module):
    """Four branches over the same input, side by side in the output's channels."""

    def __init__(self, narrow: int, wide: tuple[int, ...]) -> None:
        super().__init__()
        a, b, c, d, e, f = wide
        self.Branch_0 = nn.ModuleDict({"Conv3d_0a_1x1": _conv(narrow, a, 1)})
        self.Branch_1 = nn.ModuleDict(
            {"Conv3d_0a_1x1": _conv(narrow, b, 1), "Conv3d_0b_3x3": _conv(b, c, 3)}
        )
        self.Branch_2 = nn.ModuleDict(
            {"Conv3d_0a_1x1": _conv(narrow, d, 1), "Conv3d_0b_3x3": _conv(d, e, 3)}
        )
        self.Branch_3 = nn.ModuleDict({"Conv3d_0b_1x1": _conv(narrow, f, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = []
        for branch in (self.Branch_0, self.Branch_1, self.Branch_2, self.Branch_3):
            y = functional.max_pool3d(x, 3, 1, padding=1) if branch is self.Branch_3 else x
            for layer in branch.values():
                y = functional.relu_(layer(y))
            made.append(y)
        return torch.cat(made, dim=1)


class I3D(nn.Module):
    """frames (batch, time, 3, 224, 224) in [-1, 1], time at least I3D_FRAMES."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _conv(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = _conv(64, 64, 1)
        self.Conv3d_2c_3x3 = _conv(64, 192, 3)
        for name, (narrow, wide) in MIXED.items():
            setattr(self, name, Inception(narrow, wide))
        self.Logits = nn.ModuleDict({"Conv3d_0c_1x1": _conv(FEATURES, CLASSES, 1)})

    def features(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, FEATURES): the last layer before the classes, averaged over time."""
        return self._pooled(frames).mean((2, 3, 4))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(batch, CLASSES): logits averaged over time, the layer that FVD's authors use."""
        return self.Logits["Conv3d_0c_1x1"](self._pooled(frames)).mean((2, 3, 4))

    def _pooled(self, frames: torch.Tensor) -> torch.Tensor:
        if frames.ndim != 5 or tuple(frames.shape[2:]) != (3, SIDE, SIDE):
            raise ValueError(
                f"I3D reads (batch, time, 3, {SIDE}, {SIDE}), got {tuple(frames.shape)}"
            )
        if frames.shape[1] < I3D_FRAMES:
            raise ValueError(f"I3D needs {I3D_FRAMES} frames, got {frames.shape[1]}")
        x = frames.transpose(1, 2)
        x = functional.pad(x, _same(x, (7, 7, 7), (2, 2, 2)))
        x = functional.relu_(self.Conv3d_1a_7x7(x))
        x = _pool(x, (1, 3, 3), (1, 2, 2))
        x = functional.relu_(self.Conv3d_2b_1x1(x))
        x = functional.relu_(self.Conv3d_2c_3x3(x))
        x = _pool(x, (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name == "Mixed_4b":
                x = _pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = _pool(x, (2, 2, 2), (2, 2, 2))
            x = getattr(self, name)(x)
        return functional.avg_pool3d(x, (2, 7, 7), 1)


def load_i3d(device: torch.device | str = "cpu") -> I3D:
    """The network with the fetched weights. Raises InputError where they are not here."""
    from qbench.quality import weights

    network = I3D()
    network.load_state_dict(weights.load("i3d"))
    return network.eval().requires_grad_(False).to(device)
