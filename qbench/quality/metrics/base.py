"""What a metric is: its specification, the batches that it reads, and the meter that computes it.

A metric is two places: a module with `meter` (see `MetricModule`), and its `MetricSpec` in
`catalogue.METRICS`, or in the entry-point group `qbench.metrics` of another package.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, cast

from qbench.quality.statistics import Metric, summarise
from qbench.recipe.schema import Margin, Quality

if TYPE_CHECKING:
    import torch

    from qbench.pipelines.known import Model
    from qbench.quality.outputs import Outputs

Aspect = Literal["content", "picture", "motion"]  # what a loss of would be seen by this metric
Better = Literal["higher", "lower", "zero"]  # zero: signed, and 0 is as the reference
Network = Literal["clip", "lpips", "fvd", "probe"]  # see `quality.networks`
Shape = tuple[int, ...]  # of one video: (frames, 3, height, width)
# Why a metric cannot be computed, empty where it can; the shape is None where it is not known yet.
Needs = Callable[["Quality", "Model", "Shape | None"], str]


@dataclass(frozen=True)
class Column:
    """How tables show the metric: a heading, and a format for the value."""

    heading: str
    form: str = "{:.3g}"


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    module: the importable name of a `MetricModule`; metrics of one module share its meter, so what
    they have in common (embeddings, features) is computed once. It is imported when the metric is
    asked for, so that the table costs nothing.
    paired: needs the reference's videos. per_video: has one value a video, else one a set.
    margin: a difference that does not matter; with one, the metric takes part in verdicts.
    sees: what a loss of would show in this metric.
    away: best at 0 and of one sign, so that other videos as good are away from 0 (another seed's
    have other colours here and there, and other movements); see `verdict`.
    networks: of qbench's own, that it is computed with; they are hashed into fingerprints.
    needs: asked whether it can be computed, before `module` is loaded.
    few: videos below which the value says more about their number than about quality; tables say
    how many there were.
    """

    name: str
    unit: str
    better: Better
    range: str
    what: str
    reads: str
    source: str
    module: str
    paired: bool = False
    per_video: bool = True
    column: Column | None = None
    margin: Margin | None = None
    sees: frozenset[Aspect] = frozenset()
    away: bool = False
    few: int = 0
    networks: tuple[Network, ...] = ()
    needs: Needs | None = None

    def load(self) -> MetricModule:
        """The module, imported."""
        return cast(MetricModule, importlib.import_module(self.module))

    def lacking(self, quality: Quality, model: Model, shape: Shape | None = None) -> str:
        """Why it cannot be computed here, empty where it can; shape: of a video, where known."""
        return self.needs(quality, model, shape) if self.needs else ""

    def figure(self, value: float, note: str = "", **more: object) -> Metric:
        """A value with this metric's unit and direction; more: further fields of `Metric`."""
        fields = {"value": value, "unit": self.unit, "better": self.better, "note": note}
        return Metric.model_validate(fields | more)

    def sampled(self, values: list[float], note: str = "") -> Metric:
        """The figure of videos that have one value each: their mean, with its interval."""
        summary = summarise(values)
        return self.figure(summary.mean, note, summary=summary, samples=values)


@dataclass(frozen=True)
class Batch:
    """Some videos, in prompt order, beside the reference's. Frames (n, f, 3, h, w) in [0, 1]."""

    prompts: list[str]
    frames: torch.Tensor
    latents: torch.Tensor
    reference_frames: torch.Tensor | None = None
    reference_latents: torch.Tensor | None = None

    def pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Our frames and the reference's. Raises ValueError where there is no reference."""
        if self.reference_frames is None:
            raise ValueError("a paired metric was given no videos of the reference")
        return self.frames, self.reference_frames

    def latent_pair(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Our final latents and the reference's. Raises ValueError where there is no reference."""
        if self.reference_latents is None:
            raise ValueError("a paired metric was given no latents of the reference")
        return self.latents, self.reference_latents


@dataclass(frozen=True)
class Context:
    """What a meter is made for. shape: of one video. notes: a meter may add to them."""

    prompts: list[str]
    shape: Shape
    model: Model
    quality: Quality
    device: str
    outputs: Outputs
    reference: Outputs | None = None
    notes: list[str] = field(default_factory=list)


class Meter(Protocol):
    """Reads batches, then gives its figures by name."""

    def update(self, batch: Batch) -> None: ...
    def result(self) -> dict[str, Metric]: ...


class MetricModule(Protocol):
    """What a metric's module offers."""

    def meter(self, specs: Sequence[MetricSpec], context: Context) -> Meter:
        """One meter for all of these metrics; called once there are videos to show it."""
        ...


class PerVideo:
    """A meter of metrics that every video has by itself, or against the reference's.

    compute: spec -> function of a batch that returns (n,).
    """

    def __init__(
        self, compute: Mapping[MetricSpec, Callable[[Batch], torch.Tensor]], note: str = ""
    ) -> None:
        self._compute, self._note = compute, note
        self._samples: dict[MetricSpec, list[float]] = {spec: [] for spec in compute}

    def update(self, batch: Batch) -> None:
        for spec, compute in self._compute.items():
            self._samples[spec] += [float(value) for value in compute(batch)]

    def result(self) -> dict[str, Metric]:
        return {
            spec.name: spec.sampled(values, self._note)
            for spec, values in self._samples.items()
            if values
        }
