"""The timed part of a run: videos, or denoise steps, one by one after a warm-up.

Where a run is interleaved, the reference does the same unit in a process of its own right before
or right after each of them. The order alternates, so that a steady drift of the machine cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import mean, median
from typing import TYPE_CHECKING

from qbench.results.record import Interleaved, Stage
from qbench.run.events import ServerReady, StepsDone, TurnTaken, WorkPlanned

if TYPE_CHECKING:
    from qbench.meters.nvml import Gauges
    from qbench.quality.ratios import Ratio
    from qbench.quality.statistics import Summary
    from qbench.run.session import Session, Video

ENDED_NOTE = "not interleaved: the reference's process ended early"


@dataclass(frozen=True)
class Pairs:
    """Seconds that the reference took for each timed unit, in order, and what they say."""

    reference_s: list[float] = field(default_factory=list)
    speed_up: Ratio | None = None
    state: Interleaved = ""


@dataclass(frozen=True)
class Timings:
    """Every sample, in seconds. A run of steps has no latency, one of videos no `step_host_s`."""

    first_call_s: float
    stages: dict[str, Stage]
    step_s: list[list[float]]  # of each video, by the device's clock
    step: Summary
    gauges: Gauges | None
    pairs: Pairs
    latency_s: list[float] = field(default_factory=list)
    latency: Summary | None = None
    step_host_s: list[float] = field(default_factory=list)

    def fields(self) -> dict[str, object]:
        """As the record has them, but for the stages, which join those of the preparation."""
        return {
            "first_call_s": self.first_call_s,
            "step_s": self.step_s,
            "step": self.step,
            "gauges": self.gauges,
            "latency_s": self.latency_s,
            "latency": self.latency,
            "step_host_s": self.step_host_s,
            "paired_reference_s": self.pairs.reference_s,
            "paired_speed_up": self.pairs.speed_up,
            "interleaved": self.pairs.state,
        }


class Turns:
    """The reference's turns of one run: before the even units, after the odd ones."""

    def __init__(self, session: Session) -> None:
        self._link, self._paired = session.link, session.job.interleaved
        self._mixed = session.recipe.mixes_steps
        self._recorder = session.recorder
        self._reference: list[float] = []

    def before(self, unit: int, number: int) -> None:
        """number: the video that the unit is of."""
        if self._paired and unit % 2 == 0:
            self._reference.append(self._link.reference_turn(number))

    def after(self, unit: int, number: int) -> None:
        if self._paired and unit % 2 == 1:
            self._reference.append(self._link.reference_turn(number))

    def pairs(self, own: list[float]) -> Pairs:
        """With the run's own seconds; none, and a note, where the reference ended early."""
        from qbench.quality.ratios import paired_speed_up

        if not self._paired:
            return Pairs(state=self._recorder.record.interleaved)
        if not all(map(math.isfinite, self._reference)):
            self._recorder.note(ENDED_NOTE)
            return Pairs(state="reference died")
        speed_up = None if self._mixed else paired_speed_up(self._reference, own)
        return Pairs(self._reference, speed_up, "pairs")


def time(session: Session) -> Timings:
    """Time the recipe's unit. Timed videos are kept: they are the first that are evaluated."""
    return _steps(session) if session.recipe.measure.unit == "step" else _videos(session)


def built_s(session: Session) -> float:
    """What compiling, or building an engine, took before the first call.

    Of an exported folder, what its very first call, made to check it, took longer than the next.
    """
    from qbench.engines.exported import FIRST_CALL

    record = session.recorder.record
    stage = record.stages.get("compile")
    return (stage.seconds[0] if stage else 0.0) + (record.facts.get(FIRST_CALL) or 0.0)


def first_call(session: Session) -> float:
    """Seconds of the first call alone, in the recipe's unit: building, and one video or step."""
    if session.recipe.measure.unit == "video":
        return first_video(session)
    from qbench.meters.clock import UnitTimer

    timer, conditioning = UnitTimer(session.device), session.encode([0])
    timer.begin()
    session.denoise(conditioning, [0], steps=1)
    return timer.end()[1] + built_s(session)


def first_video(session: Session) -> float:
    """Seconds of the first call: building, and the first video."""
    return sum(_first(session).seconds.values()) + built_s(session)


def _first(session: Session) -> Video:
    session.stages.enter("first call")
    return _untimed(session, 0)


def warm_up(session: Session) -> list[Video]:
    made = []
    for number in range(session.recipe.measure.warmup):
        session.stages.enter("warm-up")
        made.append(_untimed(session, number + 1))
    return made


def _untimed(session: Session, number: int) -> Video:
    """A video before the timed ones: those whose error is followed by step, and then the first."""
    if number < _followed(session) and len(session.followed) == number:
        return session.video([number], follow=True)
    return session.video([0])


def _followed(session: Session) -> int:
    """How many videos are followed by step: from number 0 on, each the first time it is made."""
    wanted = session.recipe.quality.trajectories if session.compared and not session.lead else 0
    return min(wanted, len(session.prompts))


def _untimed_kept(session: Session) -> int:
    """Videos before the timed ones that a noise floor keeps: it is there for its videos.

    Where it is timed beside the reference, somebody wants its speed.
    """
    measured = session.recipe.measure
    if not session.recipe.noise_floor or session.job.interleaved:
        return 0
    return min(_followed(session), 1 + measured.warmup, measured.repeats - 1)


def _videos(session: Session) -> Timings:
    from qbench.meters.nvml import GaugeMeter
    from qbench.quality.statistics import summarise

    measured, stages = session.recipe.measure, session.stages
    ahead = _videos_ahead(session) * session.generation.steps
    session.link.emit(WorkPlanned(ahead, session.output_bytes()))
    first = _first(session)
    first_call_s = sum(first.seconds.values()) + built_s(session)
    kept = [first, *warm_up(session)][: _untimed_kept(session)]
    gauges, turns = GaugeMeter(session.device), Turns(session)
    typical = mean if session.recipe.variant.cache else median  # cached steps are of two kinds
    session.forget()
    session.outputs.clear()
    samples: dict[str, list[float]] = {"text_encode": [], "denoise": [], "decode": []}
    latency, steps = [], []
    for number, video in enumerate(kept):
        session.outputs.add(number, video.frames, video.latents)
    for unit in range(len(kept), measured.repeats):
        stages.enter("steady", unit + 1, measured.repeats)
        number = unit % len(session.prompts)
        turns.before(unit, number)
        gauges.begin()
        video = session.video([number])
        gauges.end()
        turns.after(unit, number)
        if session.compared:
            session.outputs.add(number, video.frames, video.latents)
        for name, value in video.seconds.items():
            samples[name].append(value)
        latency.append(sum(video.seconds.values()))
        steps.append(video.step_seconds)
    return Timings(
        first_call_s=first_call_s,
        stages={
            name: Stage(seconds=values, peak=stages.peak(name)) for name, values in samples.items()
        },
        latency_s=latency,
        latency=summarise(latency, of="median"),
        step_s=steps,
        step=summarise([typical(video) for video in steps], of="median"),
        gauges=gauges.gauges(),
        pairs=turns.pairs(latency),
    )


def _videos_ahead(session: Session) -> int:
    """Batches of a video or more that the run will make, so that one can say how long it takes."""
    measured = session.recipe.measure
    rest = max(0, len(session.prompts) - measured.repeats) if session.compared else 0
    batches = -(-rest // session.recipe.quality.batch)
    if session.job.made is not None:
        batches = max(0, batches - len(list(session.job.made.iterdir())))
    return 1 + measured.warmup + measured.repeats - _untimed_kept(session) + batches


def _steps(session: Session) -> Timings:
    """Denoise steps, all of one video: the pipeline's own loop, stopped after each of them."""
    from qbench.meters.clock import UnitTimer
    from qbench.meters.nvml import GaugeMeter
    from qbench.quality.statistics import summarise

    measured, stages, link = session.recipe.measure, session.stages, session.link
    steady = 1 + measured.warmup
    count = steady + measured.repeats
    link.emit(WorkPlanned(count))
    stages.enter("first call")
    timer, gauges, turns = UnitTimer(session.device), GaugeMeter(session.device), Turns(session)
    device: list[float] = []
    host: list[float] = []
    first_call: list[float] = []

    def on_step(step: int) -> None:
        by_device, by_host = timer.end()
        gauges.end()
        link.emit(StepsDone())
        unit = step - steady  # of the timed ones, from 0 on
        if step == 0:
            first_call.append(by_host + built_s(session))
        if unit >= 0:
            device.append(by_device)
            host.append(by_host)
            turns.after(unit, 0)
        if step + 1 < count:
            if unit == -1:
                stages.peak_since()  # what came before is not steady
            if unit >= -1:
                stages.enter("steady", unit + 2, measured.repeats, "step")
                turns.before(unit + 1, 0)
                gauges.begin()
        if session.lead:
            session.lead.stepped(step, steady)
        if step + 1 < count:
            timer.begin()

    conditioning = session.encode([0])
    session.keep_denoiser_alone()
    timer.begin()
    session.denoise(conditioning, [0], on_step, steps=count, steady=steady)
    return Timings(
        first_call_s=first_call[0],
        stages={"denoise": Stage(seconds=host, peak=stages.peak_since())},
        step_s=[device],
        step_host_s=host,
        step=summarise(device, of="mean" if session.recipe.variant.cache else "median"),
        gauges=gauges.gauges(),
        pairs=turns.pairs(host),
    )


# The reference's side ------------------------------------------------------------------------


def serve(session: Session) -> None:
    """Be the reference: a unit for every number that comes in, until the sweep ends the process."""
    if session.recipe.measure.unit == "step":
        _serve_steps(session)
    first_video(session)
    warm_up(session)
    session.link.emit(ServerReady())
    while True:
        video = session.video([session.link.next_turn()])
        session.link.emit(TurnTaken(sum(video.seconds.values())))


def _serve_steps(session: Session) -> None:
    from qbench.meters.clock import UnitTimer

    timer, warmup, link = UnitTimer(session.device), session.recipe.measure.warmup, session.link

    def on_step(step: int) -> None:
        _, seconds = timer.end()
        if step == warmup:
            link.emit(ServerReady())
        elif step > warmup:
            link.emit(TurnTaken(seconds))
        if step >= warmup:
            link.next_turn()
        timer.begin()

    most = int(session.pipeline.pipe.scheduler.config.num_train_timesteps)
    conditioning = session.encode([0])
    session.keep_denoiser_alone()
    timer.begin()
    while True:
        session.denoise(conditioning, [0], on_step, steps=most)
