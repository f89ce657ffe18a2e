"""All quality figures of a run's videos, computed in one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from qbench import world
from qbench.pipelines.specs import BUNDLED, Model
from qbench.quality import weights
from qbench.quality.metrics import features, fidelity, lpips, temporal, validity
from qbench.quality.metrics.catalogue import METRICS, SMALL_WORLD, about, sampled
from qbench.quality.metrics.distances import FRECHET, Distances
from qbench.quality.outputs import Outputs
from qbench.quality.statistics import Metric
from qbench.recipe.schema import Quality

PART = 2**25  # values of videos looked at together at most; a large video comes alone
CLIP = ("clip_score", "clip_consistency")


@dataclass(frozen=True)
class Batch:
    """Some videos, in prompt order, beside the reference's. Frames (n, f, 3, h, w) in [0, 1]."""

    prompts: list[str]
    frames: torch.Tensor
    latents: torch.Tensor
    reference_frames: torch.Tensor | None = None
    reference_latents: torch.Tensor | None = None


class Meter(Protocol):
    """Reads batches, then says what it found."""

    def update(self, batch: Batch) -> None: ...
    def result(self) -> dict[str, Metric]: ...


@dataclass(frozen=True)
class Found:
    """The figures, what makes the videos invalid, and notes on what was left out and why."""

    metrics: dict[str, Metric]
    faults: list[str]
    notes: list[str]


def available(model: Model, wanted: Quality) -> dict[str, str]:
    """Metric -> why it cannot be computed for this model here, empty where it can."""
    distances = features.why_not(wanted.fvd, model)
    ours = "" if model.world else "knows the bundled model's world alone"
    why = dict.fromkeys(METRICS, "") | dict.fromkeys(FRECHET, distances)
    why["lpips"] = weights.missing(f"lpips-{wanted.lpips}")
    return why | {"fvd_rendered": ours or distances, "following": ours}


def measure(
    outputs: Outputs,
    reference: Outputs | None,
    prompts: list[str],
    expected: tuple[int, ...],
    model: Model,
    wanted: Quality,
    device: str,
    progress: Callable[[int], None] = lambda _: None,
) -> Found:
    """Every figure wanted, in one pass. expected: one video's shape; progress hears of each batch.

    Where some video is NaN or of the wrong shape, there are faults and no figures.
    """
    notes: list[str] = []
    checker = validity.Checker(expected)
    meters: list[Meter] | None = None
    values = torch.Size(expected).numel()
    size = max(1, min(wanted.batch, PART // values))
    for batch in batches(outputs, reference, prompts, size, device):
        checker.update(batch.frames, batch.latents, batch.reference_frames)
        if checker.measurable:
            if meters is None:  # networks are loaded once there is something to show them
                made = _meters(prompts, outputs, reference, expected, model, wanted, device, notes)
                meters = list(made)
            for meter in meters:
                meter.update(batch)
        progress(checker.videos)
    found: dict[str, Metric] = {}
    if checker.measurable:
        for meter in meters or []:
            found |= meter.result()
    return Found(found, checker.faults(), notes)


def batches(
    outputs: Outputs, reference: Outputs | None, prompts: list[str], size: int, device: str
) -> Iterator[Batch]:
    """The videos in order, `size` at a time; while one batch is looked at, the next is read.

    Both sides see the rounding of what is stored, or the metric would measure float16.
    """
    from concurrent.futures import ThreadPoolExecutor

    stores = [outputs, reference] if reference else [outputs]
    spans = [(i, min(i + size, len(prompts))) for i in range(0, len(prompts), size)]

    def read(span: tuple[int, int]) -> list[torch.Tensor]:
        return [part for store in stores for part in store.read(*span)]

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, spans[0])
        for i, (start, stop) in enumerate(spans):
            parts = ahead.result()
            if i + 1 < len(spans):
                ahead = reader.submit(read, spans[i + 1])
            yield Batch(prompts[start:stop], *(part.to(device).float() for part in parts))


def _meters(
    prompts: list[str],
    outputs: Outputs,
    reference: Outputs | None,
    expected: tuple[int, ...],
    model: Model,
    wanted: Quality,
    device: str,
    notes: list[str],
) -> Iterator[Meter]:
    """A meter for each figure or family of figures; a note for each that cannot be had."""
    why = {
        name: reason or _unfit(name, expected, wanted, model)
        for name, reason in available(model, wanted).items()
    }
    names = list(METRICS) if wanted.metrics is None else list(wanted.metrics)
    usable = []
    for name in names:
        if why[name]:
            notes.append(f"{name}: {why[name]}")
        elif reference is not None or not about(name).against or name in FRECHET:
            usable.append(name)
    for name, compute in _per_video(wanted, device).items():
        if name in usable:
            yield PerVideo(name, compute())
    if any(name in usable for name in CLIP):
        source = wanted.clip or model.clip
        try:
            yield Clip([n for n in CLIP if n in usable], prompts, source, model, device, notes)
        except OSError as error:  # the hub is out of reach: one figure less, not a lost run
            reason = " ".join(str(error).split())[:200]
            notes.append(f"clip_score: {source} could not be loaded: {reason}")
    if "following" in usable:
        yield Following(device)
    distances = [n for n in (*FRECHET, "fvd_rendered") if n in usable]
    if distances:
        extractor = features.load(wanted.fvd, model, device)
        yield Distances(distances, extractor, prompts, outputs, reference, model)


def _unfit(name: str, expected: tuple[int, ...], wanted: Quality, model: Model) -> str:
    """Why a network cannot read videos of this shape, empty where it can."""
    height, width = expected[-2:]
    if name == "lpips" and min(height, width) < (least := lpips.SMALLEST[wanted.lpips]):
        return f"{wanted.lpips} reads frames of {least} pixels and more"
    if name in (*FRECHET, "fvd_rendered"):
        return features.unfit(wanted.fvd, model, expected)
    if name == "following" and expected != (world.FRAMES, 3, world.SIDE, world.SIDE):
        return f"the probe reads {world.FRAMES} frames of {world.SIDE}x{world.SIDE}"
    return ""


# One figure a video ------------------------------------------------------------------------------


def _per_video(
    wanted: Quality, device: str
) -> dict[str, Callable[[], Callable[[Batch], torch.Tensor]]]:
    """What makes each of the figures that videos have one by one."""

    def paired(compute: Callable[[Any, Any], torch.Tensor]) -> Callable[[Batch], torch.Tensor]:
        return lambda b: compute(b.frames, b.reference_frames)

    def perceptual() -> Callable[[Batch], torch.Tensor]:
        network = lpips.load_lpips(wanted.lpips, device)
        return paired(lambda a, b: lpips.lpips(network, a, b))

    def latents(b: Batch) -> torch.Tensor:
        assert b.reference_latents is not None
        return fidelity.latent_error(b.latents, b.reference_latents)

    return {
        "psnr": lambda: paired(fidelity.psnr),
        "ssim": lambda: paired(fidelity.ssim),
        "lpips": perceptual,
        "latent_error": lambda: latents,
        "flicker": lambda: lambda b: temporal.flicker(b.frames),
    }


class PerVideo:
    """A figure that every video has by itself, or against the reference's."""

    def __init__(self, name: str, compute: Callable[[Batch], torch.Tensor], note: str = "") -> None:
        self.name, self.compute, self.note = name, compute, note
        self.samples: list[float] = []

    def update(self, batch: Batch) -> None:
        self.samples += [float(value) for value in self.compute(batch)]

    def result(self) -> dict[str, Metric]:
        return {self.name: sampled(self.name, self.samples, self.note)}


class Clip:
    """CLIP score and consistency, of the same embeddings."""

    def __init__(
        self,
        names: list[str],
        prompts: list[str],
        source: str,
        model: Model,
        device: str,
        notes: list[str],
    ) -> None:
        from qbench.quality.metrics.clip_score import ClipScorer

        self._scorer = ClipScorer(source, device)
        self._note = SMALL_WORLD if model.world else f"by {source}"
        self._samples: dict[str, list[float]] = {name: [] for name in names}
        self._by_frame: list[torch.Tensor] = []  # (batch, frames)
        if cut := self._scorer.cut(prompts):
            notes.append(
                f"clip_score: {cut} of {len(prompts)} prompts were cut at "
                f"{self._scorer.tokens} tokens, the end of the text tower"
            )

    def update(self, batch: Batch) -> None:
        from qbench.quality.metrics import clip_score

        frames = self._scorer.frames(batch.frames)
        for name, samples in self._samples.items():
            if name == "clip_score":
                scores = clip_score.clip_score(frames, self._scorer.texts(batch.prompts)).cpu()
                self._by_frame.append(scores)
                found = scores.mean(1)
            else:
                found = clip_score.clip_consistency(frames)
            samples += [float(value) for value in found]

    def result(self) -> dict[str, Metric]:
        made = {name: sampled(name, v, self._note) for name, v in self._samples.items()}
        if "clip_score" in made:
            by_frame = torch.cat(self._by_frame).mean(0).tolist()
            made["clip_score"] = made["clip_score"].model_copy(update={"by_frame": by_frame})
        return made


class Following:
    """Whether the probe sees in a video what its prompt names, attribute by attribute."""

    def __init__(self, device: str) -> None:
        from qbench.quality.metrics.probe import load_probe

        self._probe = load_probe(BUNDLED / "probe", device)
        self._right: dict[str, list[float]] = {name: [] for name in world.ATTRIBUTES}

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        scenes = [world.parse(prompt) for prompt in batch.prompts]
        known = [i for i, scene in enumerate(scenes) if scene is not None]
        if not known:
            return
        answers = self._probe(batch.frames[known])
        truth = torch.tensor([scene.indices() for scene in scenes if scene is not None])
        for i, (name, logits) in enumerate(answers.items()):
            self._right[name] += (logits.argmax(1).cpu() == truth[:, i]).float().tolist()

    def result(self) -> dict[str, Metric]:
        every = [float(all(one)) for one in zip(*self._right.values(), strict=True)]
        if not every:
            return {}
        found = {"following": sampled("following", every, SMALL_WORLD)}
        for name, values in self._right.items():
            share = sum(values) / len(values)
            found[f"following_{name}"] = Metric(
                value=share, unit="share", better="higher", note=SMALL_WORLD
            )
        return found
