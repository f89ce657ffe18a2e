"""What each quality figure is: unit, direction, range, what it reads, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qbench.quality.statistics import Metric, summarise

SMALL_WORLD = "valid for tiny-cogvideox only, not comparable with published scores"
FRAMES = "frames in [0, 1]"
PAIRED = "frames in [0, 1], the reference's of the same prompt and noise"


@dataclass(frozen=True)
class About:
    """One figure. `against`: whether it needs the reference's videos."""

    unit: str
    better: Literal["higher", "lower"]
    range: str
    what: str
    reads: str
    source: str
    against: bool = False


METRICS: dict[str, About] = {
    "clip_score": About(
        "0-100", "higher", "[0, 100]", "fit of frames and prompt, mean over frames",
        f"{FRAMES}, resized and cropped as the model's own processor does; the prompt",
        "Hessel et al. 2021, scaled as torchmetrics",
    ),
    "clip_consistency": About(
        "0-100", "higher", "[-100, 100]", "likeness of neighbouring frames to CLIP",
        FRAMES, "cosine of consecutive CLIP embeddings, Esser et al. 2023",
    ),
    "psnr": About(
        "dB", "higher", "[0, 100], capped", "closeness to the reference's video",
        PAIRED, "10 log10 of 1 over the mean squared error of the whole video", True,
    ),
    "ssim": About(
        "0-1", "higher", "[-1, 1]", "structural similarity to the reference's video",
        PAIRED, "Wang et al. 2004, window 11, sigma 1.5", True,
    ),
    "lpips": About(
        "distance", "lower", "[0, about 1]", "perceptual distance to the reference's video",
        PAIRED, "Zhang et al. 2018, version 0.1, mean over frames", True,
    ),
    "latent_error": About(
        "relative", "lower", "[0, inf)", "final latents against the reference's",
        "final latents", "norm of the difference over the reference's norm", True,
    ),
    "fvd_reference": About(
        "distance", "lower", "[0, inf)", "Fréchet distance to the reference's videos",
        "features of all videos, at least 2", "Unterthiner et al. 2018", True,
    ),
    "kvd_reference": About(
        "distance", "lower", "around 0 and up",
        "kernel distance to the reference's videos, unbiased (so around 0 where there is none)",
        "features of all videos, at least 2",
        "Unterthiner et al. 2018; cubic kernel of Binkowski et al. 2018", True,
    ),
    "fvd_rendered": About(
        "distance", "lower", "[0, inf)", "Fréchet distance to rendered clips of the same prompts",
        "features of all videos, at least 2", "Unterthiner et al. 2018",
    ),
    "flicker": About(
        "0-1", "lower", "[0, 2]", "what changes from frame to frame and back",
        FRAMES, "mean absolute second difference over time",
    ),
    "following": About(
        "share", "higher", "[0, 1]", "videos that show all that the prompt names, by the probe",
        "17 frames of 64x64", "qbench's own probe of the rendered world",
    ),
}  # fmt: skip
# Come along with the figures above rather than being asked for.
DERIVED: dict[str, About] = {
    "fvd_null": About(
        "distance", "lower", "[0, inf)", "Fréchet distance of two halves of the reference's videos",
        "features of all videos, at least 4", "as fvd_reference: what no difference looks like",
    ),
    "kvd_null": About(
        "distance", "lower", "near 0", "kernel distance of two halves of the reference's videos",
        "features of all videos, at least 4", "as kvd_reference",
    ),
}  # fmt: skip


def about(name: str) -> About:
    return METRICS.get(name) or DERIVED[name]


def sampled(name: str, values: list[float], note: str = "") -> Metric:
    """The figure of videos that each have one."""
    summary = summarise(values)
    return figure(name, summary.mean, note, summary=summary, samples=values)


def figure(name: str, value: float, note: str, **more: Any) -> Metric:
    """A figure with the catalogue's unit and direction."""
    what = about(name)
    return Metric(value=value, unit=what.unit, better=what.better, note=note, **more)
