"""Figures of whole sets of videos: FVD and KVD to the reference and to rendered clips.

Features depend on videos and protocol alone, so a run keeps its own beside its videos: every
variant is compared with the same reference, whose features are then computed once a sweep.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qbench import world
from qbench.quality.means import LEAST
from qbench.quality.metrics import features, fvd
from qbench.quality.metrics.base import Batch, Context, MetricSpec
from qbench.quality.metrics.catalogue import FEW, SMALL_WORLD
from qbench.quality.statistics import Metric
from qbench.recipe.schema import digest

RENDER_SEED = 4242
PART = 64  # rendered clips looked at together, of the smallest
OWN, RENDERED = "own", "rendered"  # features kept, (videos, size) each


def meter(specs: Sequence[MetricSpec], context: Context) -> Distances:
    return Distances(specs, context)


class Distances:
    """FVD and KVD to the reference's videos and to rendered clips."""

    def __init__(self, specs: Sequence[MetricSpec], context: Context) -> None:
        self._specs = {spec.name: spec for spec in specs}
        extractor = features.load(context.quality.fvd, context.model, context.device)
        reference = context.reference
        self._extractor, self._prompts = extractor, context.prompts
        self._outputs, self._compared = context.outputs, reference is not None
        self._world, self._shape = context.model.world, context.shape
        self._key = f"{extractor.digest()}-{digest([RENDER_SEED, *context.prompts])}"
        self._kept = reference.features(self._key) if reference is not None else {}
        self._moments = fvd.Moments(extractor.size)
        self._ours: list[torch.Tensor] = []
        self._theirs: list[torch.Tensor] = []
        self._device: torch.device | str = "cpu"

    def update(self, batch: Batch) -> None:
        self._device = batch.frames.device
        own = self._extractor(batch.frames)
        self._ours.append(own)
        self._moments.update(own)
        if batch.reference_frames is not None and OWN not in self._kept:
            self._theirs.append(self._extractor(batch.reference_frames))

    def result(self) -> dict[str, Metric]:
        ours = torch.cat(self._ours)
        count = len(ours)
        if count < 2:
            return {}
        frames, _, height, width = self._shape
        note = f"{self._extractor.protocol}; {count} videos of {frames}x{height}x{width}"
        if count < FEW:
            note += f", fewer than {FEW}: too few for its size to mean much"
        note += f"; {SMALL_WORLD}" if self._world else ""
        values, keep, theirs = {}, {OWN: ours}, ours
        if self._compared:
            theirs = self._kept[OWN] if OWN in self._kept else torch.cat(self._theirs)
            if "fvd_reference" in self._specs:
                values["fvd_reference"] = fvd.frechet_distance(self._moments, fvd.moments(theirs))
            if "kvd_reference" in self._specs:
                values["kvd_reference"] = fvd.kernel_distance(ours, theirs)
        if "fvd_rendered" in self._specs:
            rendered = self._kept.get(RENDERED)
            rendered = self._rendered() if rendered is None else rendered
            keep[RENDERED] = rendered
            if len(rendered) >= 2:
                values["fvd_rendered"] = fvd.frechet_distance(self._moments, fvd.moments(rendered))
        self._outputs.keep_features(self._key, keep)
        metrics = {name: self._specs[name].figure(value, note) for name, value in values.items()}
        if "fvd_reference" in metrics and (interval := fvd.frechet_interval(ours, theirs)):
            bounds = {"low": interval[0], "high": interval[1]}
            metrics["fvd_reference"] = metrics["fvd_reference"].model_copy(update=bounds)
        if "kvd_reference" in metrics and count >= LEAST:
            samples, scale = fvd.kernel_samples(ours, theirs)
            kernel = self._specs["kvd_reference"].sampled(samples.tolist(), note)
            metrics["kvd_reference"] = kernel.model_copy(update={"scale": scale})
        return metrics

    def _rendered(self) -> torch.Tensor:
        """Features of clips rendered for the same prompts and as large, some at a time."""
        frames, _, side, _ = self._shape
        part = max(1, PART * world.FRAMES * world.SIDE**2 // (frames * side**2))
        known = [s for s in map(world.parse, self._prompts) if s is not None]
        jitters = world.jitter(len(known), RENDER_SEED)
        parts = [torch.zeros(0, self._extractor.size)]
        for i in range(0, len(known), part):
            indices = torch.tensor([scene.indices() for scene in known[i : i + part]])
            clips = world.render(indices.to(self._device), jitters[i : i + part], frames, side)
            parts.append(self._extractor(clips))
        return torch.cat(parts)
