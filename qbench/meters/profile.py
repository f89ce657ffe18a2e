"""Where a step's time goes: kernels of one profiler trace, sorted into four classes.

`gemm` holds matrix multiplications and convolutions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from qbench.fields import Count, Line, Seconds

Class = Literal["gemm", "attention", "pointwise", "movement"]
KEPT = 40  # kernels in a profile, by time; the rest is summed
# First match wins. Names are those of CUDA kernels, and of torch's own operators on a CPU.
CLASSES: tuple[tuple[Class, str], ...] = (
    # Inductor names a kernel after all that it fused; only its templates are GEMM.
    ("pointwise", r"^triton_(poi|red|per)"),
    ("attention", r"attend|attention|flash|fmha|sdpa|_attn|\battn|mha_|scaled_dot|^pack$|^stats$"),
    (
        "gemm",
        r"gemm|nvjet|cutlass|cublas|xmma|wgmma|conv|addmm|\bbmm|::mm\b|_mm\b|matmul|linear|gemv"
        r"|mkldnn|onednn|_dot_|splitk|int_mm|marlin|^triton_tem",
    ),
    ("movement", r"memcpy|memset|copy|::cat|^cat|contiguous|_to\b|::to$|clone|transpose|fill"),
    ("pointwise", r""),
)


class Kernel(BaseModel):
    """The class follows from the name, so that what is on file is sorted by today's patterns."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    name: Line
    calls: Count
    seconds: Seconds

    @property
    def kind(self) -> Class:
        return classify(self.name)


class Layer(BaseModel):
    """What an engine's runtime says of one layer: the denoiser's name of it where it is known."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    name: Line
    kind: Line  # the operator, as the runtime names it
    precision: Line  # of its inputs, as the runtime names it
    seconds: Seconds


class Profile(BaseModel):
    """One denoise step under the profiler. On a GPU its device time; on a CPU its own time.

    layers: the longest, where an engine's runtime has a profiler of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    wall_s: Seconds  # with the profiler's own cost
    kernels: Annotated[tuple[Kernel, ...], Field(max_length=1000)]
    other_s: Seconds = 0.0  # of kernels past the KEPT longest
    layers: Annotated[tuple[Layer, ...], Field(max_length=1000)] = ()

    def seconds(self) -> dict[Class, float]:
        """By class; what is past the longest kernels counts as pointwise."""
        total: dict[Class, float] = {name: 0.0 for name, _ in CLASSES}
        for kernel in self.kernels:
            total[kernel.kind] += kernel.seconds
        total["pointwise"] += self.other_s
        return total


def classify(name: str) -> Class:
    plain = name.lower()
    return next(kind for kind, pattern in CLASSES if re.search(pattern, plain))


def of_layers(layers: Sequence[Layer], wall_s: float) -> Profile:
    """A step by what an engine's runtime says: its operators in the place of kernels."""
    total: dict[tuple[str, str], list[float]] = {}
    for layer in layers:
        total.setdefault((layer.kind, layer.precision), []).append(layer.seconds)
    kernels = [
        Kernel(name=f"{kind} ({precision})", calls=len(seconds), seconds=sum(seconds))
        for (kind, precision), seconds in total.items()
    ]
    return _longest(kernels, wall_s, longest_layers(layers))


def longest_layers(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """The KEPT longest; calls of one layer are summed."""
    total: dict[tuple[str, str, str], float] = {}
    for layer in layers:
        key = layer.name, layer.kind, layer.precision
        total[key] = total.get(key, 0.0) + layer.seconds
    return tuple(
        Layer(name=name, kind=kind, precision=precision, seconds=seconds)
        for (name, kind, precision), seconds in sorted(total.items(), key=lambda one: -one[1])[
            :KEPT
        ]
    )


def _longest(kernels: list[Kernel], wall_s: float, layers: tuple[Layer, ...] = ()) -> Profile:
    kernels.sort(key=lambda kernel: -kernel.seconds)
    rest = sum(kernel.seconds for kernel in kernels[KEPT:])
    return Profile(wall_s=wall_s, kernels=tuple(kernels[:KEPT]), other_s=rest, layers=layers)


def take(step: Callable[[], object], device: str) -> Profile:
    """Run `step` once under torch's profiler."""
    import time

    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = device.startswith("cuda")
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as trace:
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    found = []
    for event in trace.key_averages():
        micros = event.self_device_time_total if cuda else event.self_cpu_time_total
        if micros > 0 and not event.key.startswith(("cuda", "ProfilerStep", "Activity")):
            found.append(
                Kernel(
                    name=event.key[:160],
                    calls=event.count,
                    seconds=micros / 1e6,
                )
            )
    return _longest(found, wall)
