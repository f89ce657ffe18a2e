"""Prompt adherence in the rendered world: whether the probe sees what the prompt names."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qbench import world
from qbench.pipelines.known import BUNDLED
from qbench.quality.metrics import probe
from qbench.quality.metrics.base import Batch, Context, MetricSpec
from qbench.quality.metrics.catalogue import SMALL_WORLD
from qbench.quality.statistics import Metric


def meter(specs: Sequence[MetricSpec], context: Context) -> Adherence:
    return Adherence(specs[0], context.device)


class Adherence:
    """The share of videos that show all that their prompts name, and each attribute's share."""

    def __init__(self, spec: MetricSpec, device: str) -> None:
        self._spec = spec
        self._probe = probe.load_probe(BUNDLED / "probe", device)
        self._right: dict[str, list[float]] = {name: [] for name in world.ATTRIBUTES}

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        scenes = [world.parse(prompt) for prompt in batch.prompts]
        known = [i for i, scene in enumerate(scenes) if scene is not None]
        if not known:
            return
        answers = self._probe(world.shrunk(batch.frames[known]))
        truth = torch.tensor([scene.indices() for scene in scenes if scene is not None])
        for i, (name, logits) in enumerate(answers.items()):
            self._right[name] += (logits.argmax(1).cpu() == truth[:, i]).float().tolist()

    def result(self) -> dict[str, Metric]:
        every = [float(all(one)) for one in zip(*self._right.values(), strict=True)]
        if not every:
            return {}
        found = {self._spec.name: self._spec.sampled(every, SMALL_WORLD)}
        for name, values in self._right.items():
            share = sum(values) / len(values)
            found[f"{self._spec.name}_{name}"] = self._spec.figure(share, SMALL_WORLD)
        return found
