"""Ranks of one run: the first leads, the others do as it says until it is done.

The first rank runs like any run: it times, writes and compares. Before each stage that is shared it
tells the others, over the CPU, which then enter the same collectives from their own pipelines. They
have no text encoder: the first hands out what it made of the prompts.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, assert_never

from qbench.results.record import RankFigures
from qbench.run.events import StepsDone
from qbench.run.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from qbench.meters.memory import Peak
    from qbench.meters.nvml import GaugeMeter, Gauges
    from qbench.optimizations.parallel.groups import Ranks
    from qbench.pipelines.values import Conditioning
    from qbench.run.session import Session
    from qbench.run.timing import Timings

MEETING = "ranks"  # the file by which ranks find each other, in the run's folder
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # all are on this machine
Part = tuple[str, tuple[int, ...], str]  # of a conditioning: name, shape, dtype


@dataclass(frozen=True)
class Denoise:
    """Denoise the videos with these numbers; conditioning follows, and latents after each step.

    steady: steps after which figures count, where single steps are timed.
    """

    numbers: list[int]
    parts: list[Part]
    steps: int | None
    exchanged: bool
    steady: int | None


@dataclass(frozen=True)
class Decode:
    """Decode the latents that follow, of this shape and dtype."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Forget:
    """What came before is not steady."""


@dataclass(frozen=True)
class Report:
    """Hand in your figures."""


@dataclass(frozen=True)
class End:
    """There is nothing more to do."""


Command = Denoise | Decode | Forget | Report | End


def meet(job: Job) -> None:
    """Join the other ranks' process group. Does nothing for a run of one process."""
    if job.ranks == 1:
        return
    import torch.distributed as dist

    from qbench.optimizations.parallel.groups import BACKENDS

    for name, value in LOOPBACK.items():
        os.environ.setdefault(name, value)
    recipe, device = job.draft.recipe, job.draft.environment.device
    if device == "cpu":
        import torch

        torch.set_num_threads(max(1, torch.get_num_threads() // job.ranks))
    dist.init_process_group(
        BACKENDS[device],
        init_method=f"file://{job.folder / MEETING}",
        rank=job.rank,
        world_size=job.ranks,
        timeout=timedelta(seconds=recipe.measure.timeout_s),
    )


@dataclass
class Figures:
    """What a rank measures of its own share."""

    ranks: Ranks
    peaks: dict[str, Peak] = field(default_factory=dict)
    step_s: list[list[float]] = field(default_factory=list)
    exchange_s: list[float] = field(default_factory=list)
    _since: float = 0.0

    def forget(self) -> None:
        self.ranks.traffic.seconds()
        self.peaks.clear()
        self.step_s.clear()
        self.exchange_s.clear()
        self._since = 0.0

    def denoised(self) -> None:
        """A video's denoise has ended, on a device that has finished."""
        self._since += self.ranks.traffic.seconds()
        self.exchange_s.append(self._since)
        self._since = 0.0

    def decoded(self) -> None:
        """And its decode, which belongs to the same video."""
        if self.exchange_s:
            self.exchange_s[-1] += self.ranks.traffic.seconds()

    def peak(self, stage: str, peak: Peak) -> None:
        self.peaks[stage] = peak.larger(self.peaks[stage]) if stage in self.peaks else peak


class _Channel:
    """Commands and tensors from the first rank to the others."""

    def __init__(self, ranks: Ranks) -> None:
        import torch.distributed as dist

        self.ranks = ranks
        self._words = dist.new_group(backend="gloo")  # waits without keeping a GPU busy

    def say(self, command: Command | None = None) -> Command:
        """The first rank's command, on every rank."""
        import torch.distributed as dist

        said: list[Command | None] = [command]
        dist.broadcast_object_list(said, 0, group=self._words)
        assert said[0] is not None
        return said[0]

    def wait(self) -> None:
        """Until all are here."""
        import torch.distributed as dist

        dist.barrier(self._words)

    def collect(self, own: RankFigures) -> list[RankFigures]:
        import torch.distributed as dist

        found: list[RankFigures | None] = [None] * self.ranks.everyone.size
        dist.all_gather_object(found, own, group=self._words)
        return [one for one in found if one is not None]

    def hand(self, x: torch.Tensor) -> torch.Tensor:
        """The first rank's `x`, on every rank; what others give is overwritten."""
        x = x.contiguous()
        self.ranks.everyone.fill(x, 0)
        return x


class Lead:
    """The first rank's side."""

    def __init__(self, ranks: Ranks) -> None:
        self.figures = Figures(ranks)
        self._channel = _Channel(ranks)

    def denoise(
        self,
        conditioning: Conditioning,
        numbers: Sequence[int],
        steps: int | None,
        exchanged: bool,
        steady: int | None,
    ) -> Conditioning:
        """Have all ranks begin to denoise, with this conditioning."""
        tensors = {name: x for name, x in vars(conditioning).items() if x is not None}
        parts = [(name, tuple(x.shape), str(x.dtype)) for name, x in tensors.items()]
        self._channel.say(Denoise(list(numbers), parts, steps, exchanged, steady))
        handed = {name: self._channel.hand(x) for name, x in tensors.items()}
        return dataclasses.replace(conditioning, **handed)

    def exchange(
        self, given: Callable[[int, torch.Tensor], torch.Tensor]
    ) -> Callable[[int, torch.Tensor], torch.Tensor]:
        """What the first rank goes on with after a step, all do."""
        return lambda step, latents: self._channel.hand(given(step, latents))

    def stepped(self, step: int, steady: int) -> None:
        """Have all ranks begin the step behind this one together, where they are timed one by one.

        What a rank does between steps, such as reading its gauges, is then in no rank's step.
        """
        self._channel.wait()
        if step + 1 == steady:
            self.figures.forget()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Have all ranks begin to decode these latents."""
        self._channel.say(Decode(tuple(latents.shape), str(latents.dtype)))
        return self._channel.hand(latents)

    def forget(self) -> None:
        """What came before is not steady."""
        self.figures.forget()
        self._channel.say(Forget())

    def report(self, timings: Timings) -> list[RankFigures]:
        """The figures of every rank over the timed units."""
        self._channel.say(Report())
        if not self.figures.exchange_s:  # steps, whose exchanges were not closed by a video
            self.figures.denoised()
        own = RankFigures(
            rank=0,
            peaks={name: stage.peak for name, stage in timings.stages.items()},
            step_s=timings.step_s,
            exchange_s=self.figures.exchange_s,
            gauges=timings.gauges,
        )
        return self._channel.collect(own)

    def end(self) -> None:
        self._channel.say(End())


def gauges_of_all(ranks: Sequence[RankFigures]) -> Gauges | None:
    """What the GPUs of all ranks drew together; clocks and temperature of the worst of them."""
    found = [one.gauges for one in ranks if one.gauges is not None]
    powers = [one.power_w for one in found]
    if not found or len(found) < len(ranks) or None in powers:
        return found[0] if found else None
    lengths = {len(one.energy_j) for one in found}
    energies = [sum(unit) for unit in zip(*(one.energy_j for one in found), strict=False)]
    clocks = [one.sm_clock_mhz for one in found if one.sm_clock_mhz is not None]
    lowest = [one.sm_clock_lowest_mhz for one in found if one.sm_clock_lowest_mhz is not None]
    heats = [one.temperature_c for one in found if one.temperature_c is not None]
    reasons = {name for one in found for name in one.throttled}
    return found[0].model_copy(
        update={
            "energy_j": energies if len(lengths) == 1 else [],
            "power_w": sum(power for power in powers if power is not None),
            "sm_clock_mhz": min(clocks, default=None),
            "sm_clock_lowest_mhz": min(lowest, default=None),
            "temperature_c": max(heats, default=None),
            "throttled": {
                name: max(one.throttled.get(name, 0.0) for one in found) for name in reasons
            },
        }
    )


def follow(session: Session, ranks: Ranks) -> None:
    """Do as the first rank says, until it is done."""
    import torch

    from qbench.meters.nvml import GaugeMeter

    channel, figures = _Channel(ranks), Figures(ranks)
    gauges = GaugeMeter(session.device)
    measuring = False
    while not isinstance(command := channel.say(), End):
        if not isinstance(command, Decode):
            gauges.end()  # of the video before, with its decode, shared or not
        if isinstance(command, Denoise):
            if measuring:
                gauges.begin()
            _denoise(session, command, channel, figures, gauges)
        elif isinstance(command, Decode):
            where = session.pipeline.pipe._execution_device
            empty = torch.empty(command.shape, dtype=_dtype(command.dtype), device=where)
            session.stages.peak_since()
            session.pipeline.decode(session.generation, channel.hand(empty))
            figures.peak("decode", session.stages.peak_since())
            _finish(session)
            figures.decoded()
        elif isinstance(command, Forget):
            measuring = True
            gauges = GaugeMeter(session.device)
            figures.forget()
        elif isinstance(command, Report):
            measuring = False
            channel.collect(
                RankFigures(
                    rank=session.job.rank,
                    peaks=figures.peaks,
                    step_s=figures.step_s,
                    exchange_s=figures.exchange_s,
                    gauges=gauges.gauges(),
                )
            )
        else:
            assert_never(command)


def _denoise(
    session: Session,
    command: Denoise,
    channel: _Channel,
    figures: Figures,
    gauges: GaugeMeter,
) -> None:
    import torch

    from qbench.meters.clock import StepTimes, UnitTimer
    from qbench.pipelines.values import Conditioning

    where = session.pipeline.pipe._execution_device
    handed = {
        name: channel.hand(torch.empty(shape, dtype=_dtype(dtype), device=where))
        for name, shape, dtype in command.parts
    }
    session.stages.peak_since()
    times, timer = StepTimes(session.device), UnitTimer(session.device)
    taken: list[float] = []

    def on_step(step: int) -> None:
        if command.steady is None:
            session.link.emit(StepsDone())
            times.mark()
            return
        seconds, _ = timer.end()
        gauges.end()
        session.link.emit(StepsDone())
        if step + 1 > command.steady:
            taken.append(seconds)
        elif step + 1 == command.steady:
            figures.forget()
            session.stages.peak_since()
        if command.steady <= step + 1 < (command.steps or 0):
            gauges.begin()
        channel.wait()
        timer.begin()

    timer.begin()
    session.pipeline.denoise(
        session.generation,
        Conditioning(**handed),
        session.noise(command.numbers),
        on_step,
        generators=session.pipeline.generators(session.seeds(command.numbers)),
        steps=command.steps,
        exchange=(lambda _, latents: channel.hand(latents)) if command.exchanged else None,
    )
    _finish(session)
    figures.peak("denoise", session.stages.peak_since())
    figures.denoised()
    if taken := taken or times.seconds():
        figures.step_s.append(taken)


def _dtype(name: str) -> torch.dtype:
    import torch

    found = getattr(torch, name.removeprefix("torch."))
    assert isinstance(found, torch.dtype)
    return found


def _finish(session: Session) -> None:
    if session.device == "cuda":
        import torch

        torch.cuda.synchronize()
