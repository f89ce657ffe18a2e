"""Kernels over rows of activations, each compiled for the width of its rows (`rows.cu`).

With the width known, all loads of a row are issued before the first is waited for; where it is an
argument, the compiler waits for each before the next.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch

from qbench.optimizations.kernels import Kernel, build

MOST = 16384  # values a row


class RowKernel(NamedTuple):
    """A compiled kernel and how it is launched."""

    run: Kernel
    lanes: int  # threads that share a row

    @property
    def threads(self) -> int:
        return 256 if self.lanes == 32 else self.lanes

    def blocks(self, rows: int) -> int:
        return -(-rows // (self.threads // self.lanes))


def takes(columns: int) -> bool:
    return columns % 8 == 0 and 0 < columns <= MOST


def lanes(columns: int) -> int:
    """How many threads share a row: a warp up to 2,048 values, then one for every 1,280."""
    return 32 if columns <= 2048 else 32 * -(-columns // 1280)


def kernel(
    file: str,
    name: str,
    columns: int,
    x: torch.Tensor,
    defines: Mapping[str, int],
    after: tuple[str, ...] = (),
) -> RowKernel:
    """The kernel for rows of so many values of the type of `x`, on its device.

    defines: what else it is compiled for. after: the sources that stand before it.

    Raises ValueError for rows that are too wide, or not a multiple of 16 bytes.
    """
    if not takes(columns):
        raise ValueError(f"rows of a multiple of 8 and at most {MOST} values, not {columns}")
    shared = lanes(columns)
    known = {"COLUMNS": columns, "LANES": shared, "IS_BF16": int(x.dtype == torch.bfloat16)}
    run = _kernel(file, name, x.device.index or 0, tuple({**known, **defines}.items()), after)
    return RowKernel(run, shared)


@functools.cache
def _kernel(
    file: str, name: str, _: int, defines: tuple[tuple[str, int], ...], after: tuple[str, ...]
) -> Kernel:
    (run,) = build(file, name, defines=dict(defines), after=("rows.cu", *after))
    return run
