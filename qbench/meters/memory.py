"""Peak memory of a stretch of work, and the size of weights as they are stored.

On a GPU: what torch's allocator handed out and reserved, and what the driver counts for this
process. On a CPU: the peak resident set of this process, libraries included.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from qbench.fields import Bytes

if TYPE_CHECKING:
    from torch import Tensor

# What CUDA takes of a card beside torch's pool: its context and the kernels loaded into it. 0.67
# GiB by the driver's count at the end of the published runs on an H200.
CONTEXT_BYTES = int(0.7 * 2**30)


class Peak(BaseModel):
    """Bytes at the peak of one stage; null where the machine cannot tell."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    allocated_bytes: Bytes | None = None
    reserved_bytes: Bytes | None = None
    driver_bytes: Bytes | None = None
    resident_bytes: Bytes | None = None

    def larger(self, other: Peak) -> Peak:
        """Field by field the larger of two peaks."""
        return largest([self, other])


def largest(peaks: Sequence[Peak]) -> Peak:
    """Field by field the largest of the peaks."""
    found: dict[str, int | None] = {}
    for name in Peak.model_fields:
        known = [size for peak in peaks if (size := getattr(peak, name)) is not None]
        found[name] = max(known, default=None)
    return Peak(**found)


class PeakMeter:
    """`lap()` gives the peak since the last lap and starts over."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._reset()

    def _reset(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        # '5' resets the peak resident set (man 5 proc); refused on some kernels and absent
        # elsewhere, where the figure is then the peak of the process so far.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def lap(self) -> Peak:
        peak = reached(self._cuda)
        self._reset()
        return peak


def reached(cuda: bool) -> Peak:
    """The peak since a meter last started over; reading it changes nothing."""
    if not cuda:
        return Peak(resident_bytes=_peak_resident_bytes())
    import torch

    return Peak(
        allocated_bytes=torch.cuda.max_memory_allocated(),
        reserved_bytes=torch.cuda.max_memory_reserved(),
        driver_bytes=_driver_bytes(),
        resident_bytes=_peak_resident_bytes(),
    )


def _peak_resident_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _driver_bytes() -> int | None:
    """What the driver counts for this process, its context and every library's pools included."""
    import os

    try:
        import pynvml

        pynvml.nvmlInit()
        total = 0
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.pid == os.getpid() and process.usedGpuMemory:
                    total += process.usedGpuMemory
        return total or None
    except Exception:  # no NVML, or a container in which process ids differ: no figure, no crash
        return None


def stored_bytes(module: Any) -> int:
    """Bytes that the module's parameters and buffers hold, packed and quantized ones as packed."""
    if hasattr(module, "stored_bytes"):
        return int(module.stored_bytes)
    tensors = [*module.parameters(), *module.buffers()]
    return sum(_tensor_bytes(tensor) for tensor in tensors)


def _tensor_bytes(tensor: Tensor) -> int:
    inner = getattr(tensor, "__tensor_flatten__", None)
    if inner is None:
        return int(tensor.numel() * tensor.element_size())
    names, _ = inner()
    return sum(_tensor_bytes(getattr(tensor, name)) for name in names)
