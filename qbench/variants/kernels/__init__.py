"""Kernels that qbench brings itself, compiled by NVRTC at first use: no nvcc, no build step."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def build(file: str, *names: str, capability: str | None = None) -> list[Any]:
    """The kernels of these names in a source beside this file, for the current device.

    `capability` where the source needs a certain target, such as '90a'.
    """
    from torch.cuda import _compile_kernel

    here = Path(__file__).parent
    source = (here / "common.cu").read_text() + (here / file).read_text()
    return [_compile_kernel(source, name, compute_capability=capability) for name in names]
