"""Wall time of a stretch of work, with the device idle at both ends.

Host time between two synchronisations holds all streams' work, which events on one stream miss.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Clock:
    """`lap()` gives the seconds since the last lap, once the device has finished its work."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._last = self._now()

    def _now(self) -> float:
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self) -> float:
        now = self._now()
        spent, self._last = now - self._last, now
        return spent


class UnitTimer:
    """One step or video at a time, by the device's own clock and by the host's."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._clock = Clock(device)

    def begin(self) -> None:
        self._clock.lap()
        if self._cuda:
            import torch

            self._start = torch.cuda.Event(enable_timing=True)
            self._start.record()

    def end(self) -> tuple[float, float]:
        """Seconds by the device's events, and by the host between two synchronisations."""
        if not self._cuda:
            host = self._clock.lap()
            return host, host
        import torch

        stop = torch.cuda.Event(enable_timing=True)
        stop.record()
        host = self._clock.lap()
        return self._start.elapsed_time(stop) / 1000, host


def sample(call: Callable[[], object], device: str, warmup: int, repeats: int) -> list[float]:
    """Device seconds of each of `repeats` calls, after `warmup` more."""
    timer, times = UnitTimer(device), []
    for turn in range(warmup + repeats):
        timer.begin()
        call()
        seconds, _ = timer.end()
        if turn >= warmup:
            times.append(seconds)
    return times


class StepTimes:
    """The seconds of each denoise step, read without making the device wait.

    On a GPU an event is recorded as each step is queued, and read once all have run.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self.mark()

    def mark(self) -> None:
        if self._cuda:
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """One figure a step; call once the device has finished."""
        if self._cuda:
            return [start.elapsed_time(end) / 1000 for start, end in pairwise(self._events)]
        return [end - start for start, end in pairwise(self._times)]
