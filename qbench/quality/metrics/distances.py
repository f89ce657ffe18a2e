"""Figures of whole sets of videos: FVD and KVD to the reference and to rendered clips.

Features depend on videos and protocol alone, so a run keeps its own beside its videos: every
variant is compared with the same reference, whose features are then computed once a sweep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qbench import world
from qbench.pipelines.specs import Model
from qbench.quality.metrics import fvd
from qbench.quality.metrics.catalogue import SMALL_WORLD, figure
from qbench.quality.metrics.features import Extractor
from qbench.quality.outputs import Outputs
from qbench.quality.statistics import Metric
from qbench.recipe.schema import digest

if TYPE_CHECKING:
    from qbench.quality.evaluate import Batch

FRECHET = ("fvd_reference", "kvd_reference")
RENDER_SEED = 4242
PART = 64  # rendered clips looked at together
OWN, RENDERED = "own", "rendered"  # features kept, (videos, size) each


class Distances:
    """FVD and KVD to the reference and to rendered clips, with what two halves of one set give."""

    def __init__(
        self,
        names: list[str],
        extractor: Extractor,
        prompts: list[str],
        outputs: Outputs,
        reference: Outputs | None,
        model: Model,
    ) -> None:
        self._names, self._extractor, self._prompts = names, extractor, prompts
        self._outputs, self._compared, self._world = outputs, reference is not None, model.world
        self._key = f"{extractor.digest()}-{digest([RENDER_SEED, *prompts])}"
        self._kept = reference.features(self._key) if reference is not None else {}
        self._moments = fvd.Moments(extractor.size)
        self._ours: list[torch.Tensor] = []
        self._theirs: list[torch.Tensor] = []
        self._device: torch.device | str = "cpu"

    def update(self, batch: Batch) -> None:
        self._device = batch.frames.device
        found = self._extractor(batch.frames)
        self._ours.append(found)
        self._moments.update(found)
        if batch.reference_frames is not None and OWN not in self._kept:
            self._theirs.append(self._extractor(batch.reference_frames))

    def result(self) -> dict[str, Metric]:
        ours = torch.cat(self._ours)
        count = len(ours)
        if count < 2:
            return {}
        note = f"{self._extractor.protocol}; {count} videos"
        if count < fvd.FEW:
            note += f", fewer than {fvd.FEW}: too few for its size to mean much"
        note += f"; {SMALL_WORLD}" if self._world else ""
        values, keep = {}, {OWN: ours}
        theirs = ours
        if self._compared:
            theirs = self._kept[OWN] if OWN in self._kept else torch.cat(self._theirs)
            if "fvd_reference" in self._names:
                values["fvd_reference"] = fvd.frechet_distance(self._moments, fvd.moments(theirs))
            if "kvd_reference" in self._names:
                values["kvd_reference"] = fvd.kernel_distance(ours, theirs)
        if count >= 4 and set(FRECHET) & set(self._names):
            one, other = fvd.halves(theirs)
            values["fvd_null"] = fvd.frechet_distance(fvd.moments(one), fvd.moments(other))
            values["kvd_null"] = fvd.kernel_distance(one, other)
        if "fvd_rendered" in self._names:
            rendered = self._kept.get(RENDERED)
            rendered = self._rendered() if rendered is None else rendered
            keep[RENDERED] = rendered
            if len(rendered) >= 2:
                values["fvd_rendered"] = fvd.frechet_distance(self._moments, fvd.moments(rendered))
        self._outputs.keep_features(self._key, keep)
        return {name: figure(name, value, note) for name, value in values.items()}

    def _rendered(self) -> torch.Tensor:
        """Features of clips rendered for the same prompts, some at a time."""
        known = [s for s in map(world.parse, self._prompts) if s is not None]
        jitters = world.jitter(len(known), RENDER_SEED)
        found = [torch.zeros(0, self._extractor.size)]
        for i in range(0, len(known), PART):
            indices = torch.tensor([scene.indices() for scene in known[i : i + PART]])
            clips = world.render(indices.to(self._device), jitters[i : i + PART])
            found.append(self._extractor(clips))
        return torch.cat(found)
