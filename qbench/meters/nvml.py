"""NVML: what the GPU reports while it works: power, energy, clocks, temperature, throttling."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from qbench.fields import Finite, NonNegative, Word

EVERY_S = 0.05
# Of NVML's reasons only those that slow a busy GPU down; being idle is none.
REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class Gauges(BaseModel):
    """Readings over the timed units of a run; null where the GPU does not tell."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    energy_j: Annotated[list[Finite], Field(max_length=10_000)] = []  # of each timed unit
    power_w: NonNegative | None = None  # mean of the readings
    sm_clock_mhz: NonNegative | None = None  # mean
    sm_clock_lowest_mhz: NonNegative | None = None
    temperature_c: Finite | None = None  # highest
    # Reason: share of the readings.
    throttled: Annotated[dict[Word, NonNegative], Field(max_length=20)] = {}

    def mean_energy_j(self) -> float | None:
        return sum(self.energy_j) / len(self.energy_j) if self.energy_j else None


class GaugeMeter:
    """Reads NVML from a thread between `begin()` and `end()`; without NVML it reads nothing."""

    def __init__(self, device: str) -> None:
        self._handle = _handle() if device.startswith("cuda") else None
        self._energy: list[float] = []
        self._readings: list[tuple[float, float, float, int]] = []
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """A timed video or step begins."""
        if self._handle is None:
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(self._stop,), daemon=True)
        self._before = self._joules()
        self._thread.start()

    def end(self) -> None:
        if self._thread is None:
            return
        after = self._joules()
        self._stop.set()
        self._thread.join()
        self._thread = None
        if self._before is not None and after is not None:
            self._energy.append(after - self._before)

    def gauges(self) -> Gauges:
        if not self._readings:
            return Gauges(energy_j=self._energy)
        power, clock, heat, reasons = zip(*self._readings, strict=True)
        n = len(power)
        shares = {name: sum(bool(r & bit) for r in reasons) / n for bit, name in REASONS.items()}
        return Gauges(
            energy_j=self._energy,
            power_w=sum(power) / n,
            sm_clock_mhz=sum(clock) / n,
            sm_clock_lowest_mhz=min(clock),
            temperature_c=max(heat),
            throttled={name: share for name, share in shares.items() if share},
        )

    def _watch(self, stop: threading.Event) -> None:
        import pynvml

        while not stop.wait(EVERY_S):
            with contextlib.suppress(pynvml.NVMLError):
                self._readings.append(
                    (
                        pynvml.nvmlDeviceGetPowerUsage(self._handle) / 1000,
                        pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM),
                        pynvml.nvmlDeviceGetTemperature(self._handle, pynvml.NVML_TEMPERATURE_GPU),
                        pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle),
                    )
                )

    def _joules(self) -> float | None:
        import pynvml

        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except pynvml.NVMLError:
            return None


def _handle() -> object | None:
    """NVML's handle of torch's current device, or None where there is no NVML."""
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        identity = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}".encode())
    except Exception:  # a figure less in the record, never a failed run
        return None


def visible(wanted: int) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls the first GPUs that CUDA may see, at most so many."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return tuple(filter(None, (name.strip() for name in said.split(","))))[:wanted]
    return tuple(map(str, range(min(wanted, len(_uuids()) or wanted))))


def identities(names: Iterable[str]) -> list[str]:
    """The UUIDs of GPUs that CUDA_VISIBLE_DEVICES calls so, by number or by a UUID's beginning.

    The name itself where NVML knows none, or is not there.
    """
    known = _uuids()
    by_number = {str(number): uuid for number, uuid in enumerate(known)}

    def of(name: str) -> str:
        return by_number.get(name) or next((u for u in known if u.startswith(name)), name)

    return [of(name) for name in names]


def _uuids() -> list[str]:
    """Of this machine's GPUs, as NVML orders them."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    except Exception:  # no pynvml, no driver: then a GPU goes by what it is called
        return []
