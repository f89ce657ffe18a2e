"""How the error of a variant grows along the denoise steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch

FILE = "trajectory.safetensors"  # of the reference, in its run's folder


class ErrorGrowth(BaseModel):
    """||ours - reference's|| / ||reference's|| of the latents after each step, mean over videos.

    `free`: the variant went its own way from the same noise, so errors accumulate. `forced`: every
    step began from the reference's latents, so each is the error of that one step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    videos: int
    free: list[float]
    forced: list[float]


def error_by_step(ours: torch.Tensor, reference: torch.Tensor) -> list[float]:
    """ours, reference: latents (steps, videos, ...). Returns one mean relative error a step."""
    from qbench.quality.metrics.fidelity import same_shape

    same_shape(ours, reference)
    difference = (ours.double() - reference.double()).flatten(2).norm(dim=2)
    return (difference / reference.double().flatten(2).norm(dim=2)).mean(1).tolist()


def save(latents: torch.Tensor, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"latents": latents.float().cpu().contiguous()}, folder / FILE)


def load(folder: Path) -> torch.Tensor | None:
    """The reference's latents (steps, videos, ...), or None where its run followed none."""
    from safetensors.torch import load_file

    path = folder / FILE
    return load_file(path)["latents"] if path.is_file() else None
