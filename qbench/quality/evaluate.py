"""All quality figures of a run's videos, computed in one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from qbench.pipelines.known import Model
from qbench.quality.metrics import catalogue, validity
from qbench.quality.metrics.base import Batch, Context, Meter, MetricSpec, Shape
from qbench.quality.outputs import Outputs, decoded
from qbench.quality.statistics import Metric
from qbench.recipe.schema import Quality

PART = 2**25  # values of videos looked at together at most; a large video comes alone


@dataclass(frozen=True)
class Evaluation:
    """The figures, what makes the videos invalid, and notes on what was left out and why."""

    metrics: dict[str, Metric]
    faults: list[str]
    notes: list[str]


def measure(
    outputs: Outputs,
    reference: Outputs | None,
    prompts: list[str],
    expected: Shape,
    model: Model,
    quality: Quality,
    device: str,
    progress: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Every metric of the recipe, in one pass.

    expected: one video's shape; progress hears of each batch. Where some video is NaN or of the
    wrong shape, there are faults and no figures.
    """
    context = Context(prompts, expected, model, quality, device, outputs, reference)
    checker = validity.Checker(expected)
    meters: list[Meter] | None = None
    metrics: dict[str, Metric] = {}
    size = max(1, min(quality.batch, PART // torch.Size(expected).numel()))
    with exact_products():
        for batch in batches(outputs, reference, prompts, size, device):
            checker.update(batch.frames, batch.latents, batch.reference_frames)
            if checker.measurable:
                if meters is None:  # networks are loaded once there is something to show them
                    meters = list(_meters(context))
                for meter in meters:
                    meter.update(batch)
            progress(checker.videos)
        if checker.measurable:
            for meter in meters or []:
                metrics |= meter.result()
    return Evaluation(metrics, checker.faults(), context.notes)


@contextmanager
def exact_products() -> Iterator[None]:
    """FP32 without TF32, whatever a recipe has set: ten bits would move figures by a percent."""
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = cudnn


def batches(
    outputs: Outputs, reference: Outputs | None, prompts: list[str], size: int, device: str
) -> Iterator[Batch]:
    """The videos in order, `size` at a time; while one batch is looked at, the next is read.

    Both sides see the rounding of what is stored, or the metric would measure that.
    """
    from concurrent.futures import ThreadPoolExecutor

    stores = [outputs, reference] if reference else [outputs]
    spans = [(i, min(i + size, len(prompts))) for i in range(0, len(prompts), size)]

    def read(span: tuple[int, int]) -> list[torch.Tensor]:
        return [part for store in stores for part in store.stored(*span)]

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, spans[0])
        for i, (start, stop) in enumerate(spans):
            parts = ahead.result()
            if i + 1 < len(spans):
                ahead = reader.submit(read, spans[i + 1])
            parts = [part.to(device) for part in parts]
            parts[::2] = [decoded(frames) for frames in parts[::2]]
            yield Batch(prompts[start:stop], *parts)


def _meters(context: Context) -> Iterator[Meter]:
    """A meter for each module of the metrics asked for; a note for each that cannot be had."""
    by_module: dict[str, list[MetricSpec]] = {}
    for spec in catalogue.chosen(context.quality):
        if reason := spec.lacking(context.quality, context.model, context.shape):
            context.notes.append(f"{spec.name}: {reason}")
        elif context.reference is not None or not spec.paired or not spec.per_video:
            by_module.setdefault(spec.module, []).append(spec)
    for specs in by_module.values():
        try:
            yield specs[0].load().meter(specs, context)
        except OSError as error:  # the hub is out of reach: one figure less, not a lost run
            reason = " ".join(str(error).split())[:200]
            context.notes.append(f"{specs[0].name}: its network could not be loaded: {reason}")
