"""Kernels that qbench brings itself, compiled by NVRTC at first use: no nvcc, no build step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Kernel = Any  # what torch compiles by NVRTC, which has no types
HOPPER = "90a"  # the target whose instructions hopper.cu has


def build(
    file: str, *names: str, capability: str | None = None, defines: dict[str, int] | None = None
) -> list[Kernel]:
    """The kernels of these names in a source beside this file, for the current device.

    `capability` where the source needs a certain target, and `defines` what it is compiled for.
    """
    from torch.cuda import _compile_kernel

    here = Path(__file__).parent
    files = ["common.cu", *(["hopper.cu"] if capability == HOPPER else []), file]
    lines = [f"#define {name} {value}\n" for name, value in (defines or {}).items()]
    source = "".join([*lines, *((here / name).read_text() for name in files)])
    return [_compile_kernel(source, name, compute_capability=capability) for name in names]
