"""How fast a run is beside the reference: the one rule of every table, chart and page.

Runs are ranked by their speed-up over the reference. Where reference and variant took turns, it is
that of their pairs, and the seconds beside it are the reference's median over it: the run's own
median was taken while the machine was faster or slower than in the reference's own run, so it would
contradict the speed-up. Where they did not take turns, both are of the two runs' own medians.
"""

from __future__ import annotations

from dataclasses import dataclass

from qbench.quality.ratios import Ratio, speed_up
from qbench.results.record import Record


@dataclass(frozen=True)
class Timing:
    """Seconds of a video and of a denoise step as they are shown, and the speed-up beside them.

    `scale`: the shown seconds over the run's own; 1 where it did not take turns.
    """

    video_s: float | None = None
    step_s: float | None = None
    speed_up: Ratio | None = None
    scale: float = 1.0

    @property
    def seconds(self) -> float | None:
        """Of a video, or of a step where only steps were timed."""
        return self.video_s if self.video_s is not None else self.step_s


def timing(record: Record, reference: Record | None, *, comparable: bool = True) -> Timing:
    """How fast a run is. `comparable`: whether its pairs are of this ranking's settings.

    Empty where the machine did other things besides (`measure.timing: false`).
    """
    if not record.recipe.measure.timing:
        return Timing()
    video, step = record.video_seconds(), record.step_seconds()
    if record is reference or not comparable:
        return Timing(video, step)
    pairs = record.paired_speed_up
    if pairs is None:
        return Timing(video, step, unpaired(record, reference) if reference else None)
    own = video if video is not None else step
    theirs = _unit(reference, record) if reference else None
    if not own or not theirs:
        return Timing(video, step, pairs)
    scale = theirs / pairs.value / own
    return Timing(
        video_s=None if video is None else video * scale,
        step_s=None if step is None else step * scale,
        speed_up=pairs,
        scale=scale,
    )


def _unit(reference: Record, record: Record) -> float | None:
    """The reference's median of what the record's pairs are of: videos, or steps."""
    if record.video_seconds() is not None:
        return reference.video_seconds()
    return reference.step_seconds()


def unpaired(record: Record, reference: Record) -> Ratio | None:
    """The speed-up over another run that it did not take turns with; None where neither videos nor
    steps of both were timed alike."""
    if not reference.recipe.measure.timing:
        return None
    if record.latency_s and reference.latency_s:
        return speed_up(reference.latency_s, record.latency_s)
    # A cache makes steps of two kinds, whose medians say nothing about a video.
    if record.recipe.variant.cache or not (record.step_s and reference.step_s):
        return None
    ours, theirs = _flat(record.step_s), _flat(reference.step_s)
    return speed_up(theirs, ours) if min(*ours, *theirs) > 0 else None


def _flat(videos: list[list[float]]) -> list[float]:
    return [step for video in videos for step in video]


def payback_videos(
    record: Record, reference: Record | None, ours: Timing, theirs: Timing
) -> float | None:
    """After how many videos quantizing and compiling have paid for themselves.

    The extra time until the first result, over what each video saves; None where there is nothing
    to pay back, or nothing is saved. Where only steps were timed a video is `generation.steps` of
    them.
    """
    if reference is None or record is reference or not _prepares(record):
        return None
    times = []
    for one, shown in ((reference, theirs), (record, ours)):
        video, steps = shown.video_s, one.generation.get("steps")
        if video is None and shown.step_s is not None and isinstance(steps, int):
            video = shown.step_s * steps
        stage = one.stages.get("quantize")
        if video is None or one.first_call_s is None:
            return None
        times.append((video, one.first_call_s + (stage.seconds[0] if stage else 0.0)))
    (video_before, start_before), (video_after, start_after) = times
    saved = video_before - video_after
    return max(0.0, start_after - start_before) / saved if saved > 0 else None


def _prepares(record: Record) -> bool:
    """Whether the variant takes time before its first video that the reference does not take."""
    variant = record.recipe.variant
    return bool(variant.quantize or variant.compile or variant.engine or variant.exported)
