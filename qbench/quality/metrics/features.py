"""Features of videos for FVD and KVD, by a protocol that is fixed and printed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from qbench import cache, textfile, world
from qbench.errors import InputError
from qbench.pipelines.known import BUNDLED, Model
from qbench.quality import networks, weights
from qbench.quality.metrics import i3d, needs, probe
from qbench.quality.metrics.needs import I3D, PROBE
from qbench.recipe.schema import Fvd


@dataclass(frozen=True)
class Extractor:
    """A network and what its input goes through. `protocol` names all of it."""

    size: int
    protocol: str
    network: Callable[[torch.Tensor], torch.Tensor]  # (batch, frames, 3, h, w) as it wants them
    prepare: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def __call__(self, videos: torch.Tensor) -> torch.Tensor:
        """videos: (batch, frames, 3, height, width) in [0, 1]. Returns (batch, size) on the CPU."""
        return self.network(self.prepare(videos)).float().cpu()

    def digest(self) -> str:
        return hashlib.sha256(self.protocol.encode()).hexdigest()[:12]


def load(fvd: Fvd, model: Model, device: str) -> Extractor:
    """The extractor of this protocol. Raises InputError where its network is not here."""
    name = needs.fvd_network(fvd, model)
    if name == PROBE:
        return _probe(device)
    if name == I3D:
        network = i3d.load_i3d(device)
        compute = network if fvd.layer == "logits" else network.features
        size = i3d.CLASSES if fvd.layer == "logits" else i3d.FEATURES
        label = f"I3D ({weights.SOURCES[I3D].identity})"
        return Extractor(size, _text(label, fvd), compute, _prepared(fvd))
    return _torchscript(textfile.expanded(name), fvd, device)


def _text(label: str, fvd: Fvd) -> str:
    frames = "all frames" if fvd.frames is None else f"the first {fvd.frames} frames"
    crop = "centre square" if fvd.crop == "centre" else "stretched"
    return (
        f"{label}, {fvd.layer}, {frames}, stride {fvd.stride}, "
        f"{i3d.SIDE}x{i3d.SIDE} {fvd.resize} {crop}, [-1, 1], FP32 without TF32"
    )


def _probe(device: str) -> Extractor:
    """The probe has one protocol: its feature layer, of the world's own clips or shrunk to them."""
    network = probe.load_probe(BUNDLED / "probe", device)
    return Extractor(
        probe.FEATURES,
        "the bundled probe, features, 17 frames of 64x64",
        network.features,
        world.shrunk,
    )


def _torchscript(path: Path, fvd: Fvd, device: str) -> Extractor:
    """A TorchScript I3D of (batch, 3, frames, 224, 224) in [-1, 1], called as StyleGAN-V's is.

    Raises InputError where the recipe does not say by its SHA-256 that it is trusted.
    """
    networks.check_trust(fvd)
    try:
        script: Any = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"quality.fvd.network {path}: not TorchScript: {first}") from None
    names = {argument.name for argument in script.forward.schema.arguments}
    usual = {"rescale": False, "resize": False, "return_features": True}
    options = {name: value for name, value in usual.items() if name in names}

    def compute(frames: torch.Tensor) -> torch.Tensor:
        return script(frames.transpose(1, 2), **options)

    prepare = _prepared(fvd)
    size = compute(prepare(torch.zeros(1, 16, 3, 32, 32, device=device))).shape[-1]
    label = f"TorchScript {path.name} (sha256 {cache.file_digest(path)[:12]}), its own layer"
    return Extractor(size, _text(label, fvd), compute, prepare)


def _prepared(fvd: Fvd) -> Callable[[torch.Tensor], torch.Tensor]:
    """Frames chosen, resized to 224x224 and moved to [-1, 1]."""

    def prepare(videos: torch.Tensor) -> torch.Tensor:
        chosen = videos[:, :: fvd.stride][:, : fvd.frames].float()
        if fvd.crop == "centre":
            side = min(chosen.shape[-2:])
            top, left = ((n - side) // 2 for n in chosen.shape[-2:])
            chosen = chosen[..., top : top + side, left : left + side]
        flat = chosen.flatten(0, 1)
        if flat.shape[-2:] == (i3d.SIDE, i3d.SIDE):
            pass
        elif fvd.resize == "bilinear-tf1":
            flat = _at_corners(flat, i3d.SIDE)
        else:
            mode, _, antialias = fvd.resize.partition("-")
            flat = functional.interpolate(
                flat, size=(i3d.SIDE, i3d.SIDE), mode=mode, antialias=bool(antialias)
            ).clamp(0, 1)
        return flat.view(*chosen.shape[:3], i3d.SIDE, i3d.SIDE) * 2 - 1

    return prepare


def _at_corners(images: torch.Tensor, side: int) -> torch.Tensor:
    """TensorFlow 1's resize_bilinear: output pixel i is read at i * size / side, not at centres.

    images: (n, 3, height, width). Returns (n, 3, side, side).
    """

    def rows(size: int) -> torch.Tensor:
        """(side, size): what each output pixel takes of each input pixel."""
        place = torch.arange(side, dtype=torch.float64) * size / side
        low = place.floor().long()
        share = place - low
        matrix = torch.zeros(side, size, dtype=torch.float64)
        line = torch.arange(side)
        matrix[line, low] += 1 - share
        matrix[line, (low + 1).clamp(max=size - 1)] += share
        return matrix.to(images.device, images.dtype)

    height, width = images.shape[-2:]
    return rows(height) @ images @ rows(width).T
