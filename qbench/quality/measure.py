"""All quality figures of a run's videos, each with unit, direction and what to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from qbench import world
from qbench.models import BUNDLED, Model
from qbench.quality import fidelity
from qbench.quality.statistics import Metric

OUTPUTS = "outputs.safetensors"  # the file of a run's raw outputs, in its folder
SMALL_WORLD = "valid for tiny-cogvideox only, not comparable with published scores"
RENDER_SEED = 4242


@dataclass(frozen=True)
class Outputs:
    """What a run generated, in prompt order. Frames (n, f, 3, h, w) in [0, 1]; latents (n, ...)."""

    prompts: list[str]
    frames: torch.Tensor
    latents: torch.Tensor

    def save(self, path: Path) -> None:
        """Frames as float16: its error is 70 dB below and more, and a codec never comes near."""
        from safetensors.torch import save_file

        tensors = {"frames": self.frames.half(), "latents": self.latents.float()}
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def load_outputs(path: Path, prompts: list[str]) -> Outputs:
    from safetensors.torch import load_file

    tensors = load_file(path)
    return Outputs(prompts, tensors["frames"], tensors["latents"])


ABOUT: dict[str, tuple[str, str, str]] = {  # unit, better, what it is
    "clip_score": ("0-100", "higher", "fit of frames and prompt"),
    "fvd_reference": ("distance", "lower", "Fréchet distance to the reference's videos"),
    "fvd_rendered": ("distance", "lower", "Fréchet distance to rendered clips of the same prompts"),
    "psnr": ("dB", "higher", "against the reference's video of the same prompt and noise"),
    "ssim": ("0-1", "higher", "against the reference's video of the same prompt and noise"),
    "latent_error": ("relative", "lower", "final latents against the reference's"),
    "following": ("share", "higher", "videos that show all that the prompt names, by the probe"),
}


PAIRED = {
    "psnr": fidelity.psnr,
    "ssim": fidelity.ssim,
    "latent_error": fidelity.latent_error,
}


def available(model: Model) -> dict[str, str]:
    """Metric -> why it cannot be computed for this model, empty where it can."""
    no_network = "needs a feature network; only the probe of the rendered world ships"
    missing = "" if model.world else no_network
    why = dict.fromkeys(ABOUT, "")
    return why | {"fvd_reference": missing, "fvd_rendered": missing, "following": missing}


def measure(
    outputs: Outputs,
    reference: Outputs | None,
    model: Model,
    wanted: list[str],
    clip: str,
    device: str,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, Metric], list[str]]:
    """The figures, and notes on what was left out and why."""
    found: dict[str, Metric] = {}
    notes: list[str] = []
    why = available(model)
    cache: dict[str, Any] = {}
    # Both sides see the rounding of what is stored, or the metric would measure float16.
    videos = outputs.frames.half()
    if reference is not None:
        reference = replace(reference, frames=reference.frames.half())
    for name in wanted:
        if why[name]:
            notes.append(f"{name}: {why[name]}")
            continue
        if name in {*PAIRED, "fvd_reference"} and reference is None:
            continue  # this is the reference, or there is none; the record says which
        progress(name)
        if name in PAIRED and reference is not None:
            of_latents = name == "latent_error"
            ours = outputs.latents if of_latents else videos
            theirs = reference.latents if of_latents else reference.frames
            found[name] = _paired(name, ours, theirs)
        elif name == "clip_score":
            try:
                found[name] = _clip(outputs.prompts, videos, clip, model, device, notes)
            except OSError as error:  # the hub is out of reach: one figure less, not a lost run
                reason = " ".join(str(error).split())[:200]
                notes.append(f"clip_score: {clip} could not be loaded: {reason}")
        else:
            found |= _by_probe(name, outputs.prompts, videos, reference, device, cache)
    return found, notes


def _metric(name: str, samples: torch.Tensor, note: str = "") -> Metric:
    from qbench.quality.statistics import summarise

    values = [float(value) for value in samples]
    summary = summarise(values)
    return _figure(name, summary.mean, note, summary=summary, samples=values)


def _figure(name: str, value: float, note: str, **more: Any) -> Metric:
    unit, better, _ = ABOUT[name]
    return Metric.model_validate(
        {"value": value, "unit": unit, "better": better, "note": note, **more}
    )


def _paired(name: str, a: torch.Tensor, b: torch.Tensor) -> Metric:
    compute = PAIRED[name]
    parts = [compute(x.float(), y.float()) for x, y in zip(a.split(8), b.split(8), strict=True)]
    return _metric(name, torch.cat(parts))


def _clip(
    prompts: list[str],
    videos: torch.Tensor,
    source: str,
    model: Model,
    device: str,
    notes: list[str],
) -> Metric:
    from qbench.quality.clip_score import ClipScorer

    scorer = ClipScorer(source, device)
    parts = [
        scorer.score(videos[i : i + 8].float(), prompts[i : i + 8])
        for i in range(0, len(prompts), 8)
    ]
    cut = scorer.cut(prompts)
    if cut:
        notes.append(
            f"clip_score: {cut} of {len(prompts)} prompts were cut at the text tower's end"
        )
    note = SMALL_WORLD if model.world else f"by {source}"
    return _metric("clip_score", torch.cat(parts), note)


@torch.no_grad()
def _by_probe(
    name: str,
    prompts: list[str],
    videos: torch.Tensor,
    reference: Outputs | None,
    device: str,
    cache: dict[str, Any],
) -> dict[str, Metric]:
    from qbench.quality import fvd
    from qbench.quality.probe import load_probe

    if "probe" not in cache:
        cache["probe"] = load_probe(BUNDLED / "probe", device)
        cache["features"] = _features(cache["probe"], videos, device)
    probe, features = cache["probe"], cache["features"]
    scenes = [world.parse(prompt) for prompt in prompts]
    if name == "following":
        return _following(probe, features, scenes)
    if name == "fvd_reference":
        assert reference is not None
        other = _features(probe, reference.frames, device)
    else:
        known = [scene for scene in scenes if scene is not None]
        if len(known) < 2:
            return {}
        other = _features(probe, world.render_scenes(known, RENDER_SEED), device)
    few = f"; only {len(videos)} videos, too few for its size to mean much"
    note = f"probe features, {len(videos)} videos; {SMALL_WORLD}"
    note += few if len(videos) < fvd.FEW else ""
    if len(features) < 2:
        return {}
    value = fvd.frechet_distance(features, other)
    return {name: _figure(name, value, note)}


def _features(probe: Any, videos: torch.Tensor, device: str) -> torch.Tensor:
    parts = [probe.features(part.to(device, torch.float32)).cpu() for part in videos.split(32)]
    return torch.cat(parts)


def _following(
    probe: Any, features: torch.Tensor, scenes: list[world.Scene | None]
) -> dict[str, Metric]:
    known = [i for i, scene in enumerate(scenes) if scene is not None]
    if not known:
        return {}
    hidden = torch.nn.functional.gelu(features[known].to(next(probe.parameters()).device))
    truth = torch.tensor([scene.indices() for scene in scenes if scene is not None])
    right = {
        attribute: probe.heads[attribute](hidden).argmax(1).cpu() == truth[:, i]
        for i, attribute in enumerate(world.ATTRIBUTES)
    }
    every = torch.stack(list(right.values())).all(0).float()
    found = {"following": _metric("following", every, SMALL_WORLD)}
    for attribute, value in right.items():
        share = value.float().mean().item()
        found[f"following_{attribute}"] = Metric(
            value=share, unit="share", better="higher", note=SMALL_WORLD
        )
    return found
