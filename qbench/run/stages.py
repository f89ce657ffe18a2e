"""Where a run is, and what each of its stages took: seconds, and the peak of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.results.record import Stage
from qbench.run.events import Link, StageEntered
from qbench.run.recorder import Recorder

if TYPE_CHECKING:
    from qbench.meters.memory import Peak
    from qbench.optimizations.parallel.groups import Traffic


class Stages:
    """Says which stage a run is in, and measures it. `start` begins the measuring."""

    def __init__(self, recorder: Recorder, link: Link) -> None:
        self.recorder, self.link = recorder, link
        self.name = "start"
        self._peaks: dict[str, Peak] = {}
        self.traffic: Traffic | None = None  # between the ranks of a run on several GPUs

    def start(self, device: str) -> None:
        """Meters touch the device, so what has to be set before it wakes up is set by then."""
        from qbench.meters.clock import Clock
        from qbench.meters.memory import PeakMeter

        self._clock, self._meter = Clock(device), PeakMeter(device)

    def enter(
        self, stage: str, done: int | None = None, total: int | None = None, unit: str = "video"
    ) -> None:
        self.name = stage
        self.link.emit(StageEntered(stage, done, total, unit))

    def leave(self, stage: str, spared_s: float = 0.0) -> None:
        """End a stage that happens once, and record it.

        spared_s: what it would have taken longer, had an earlier run not done a part of it, or
            shorter, had it needed no process of its own.
        """
        seconds = self._clock.lap() + spared_s
        self.recorder.stage(stage, Stage(seconds=[seconds], peak=self._meter.lap()))

    # Stages of a video, many times over ----------------------------------------------------------

    def begin_video(self) -> None:
        self._clock.lap()
        self._meter.lap()

    def end_part(self, stage: str) -> float:
        """Seconds of a video's stage; its peak is kept with the largest so far."""
        seconds, peak = self._clock.lap(), self._meter.lap()
        self._peaks[stage] = peak.larger(self._peaks[stage]) if stage in self._peaks else peak
        self._clock.lap()  # reading the meters is not part of the next stage
        return seconds

    def forget_peaks(self) -> None:
        """What came before is not steady."""
        self._peaks.clear()
        self._meter.lap()

    def peak(self, stage: str) -> Peak:
        """The largest peak of this stage since `forget_peaks`."""
        return self._peaks[stage]

    def peak_since(self) -> Peak:
        """The peak since a stage last ended."""
        return self._meter.lap()
