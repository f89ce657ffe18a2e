"""Attention that leaves out blocks of keys: when it does, and how much of it was computed.

The kernels do the skipping (`kernels/fp8_attention.py`); docs/kernels.md says what is known of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from qbench.optimizations.rules import Rule, clash
from qbench.recipe.schema import SparseAttention, Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qbench.optimizations.changes import Changes
    from qbench.optimizations.kernels.fp8_attention import Skip
    from qbench.pipelines.attention import Kernel
    from qbench.pipelines.base import VideoPipeline

    Skipping = Callable[[Tensor, Tensor, Tensor, Skip], Tensor]


class Sparse:
    """The attention of one denoiser, and its blocks counted from the first call on."""

    def __init__(self, wanted: SparseAttention, kernel: str) -> None:
        from qbench.optimizations.kernels import fp8_attention

        self.wanted = wanted
        self.dense = wanted.dense_share > 0
        self._blocks = {True: 0, False: 0}  # of steps that leave out nothing, and of the others
        self._computed: dict[tuple[torch.device, bool], Tensor] = {}
        functions: dict[str, Skipping] = {
            "fp8": fp8_attention.attend_skipping,
            "fp8-reference": fp8_attention.reference,
        }
        self._kernel = functions[kernel]
        number = len(_LIVE)
        _LIVE.append(self)
        operator = _operator()
        self.attend: Kernel = lambda q, k, v: operator(q, k, v, number)

    def compute(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention, (batch, tokens, heads, channels) in and out, as the current step has it."""
        import torch

        from qbench.optimizations.kernels import fp8_attention

        key = q.device, self.dense
        if key not in self._computed:
            self._computed[key] = torch.zeros(1, dtype=torch.int64, device=q.device)
        self._blocks[self.dense] += fp8_attention.blocks(q, k)
        threshold = 0.0 if self.dense else self.wanted.threshold
        return self._kernel(q, k, v, fp8_attention.Skip(threshold, self._computed[key]))

    def follow(self, video: VideoPipeline, changes: Changes) -> None:
        """Tell by the denoiser's timesteps which steps leave out nothing, where some do."""
        if not self.wanted.dense_share:
            return
        from qbench.optimizations.timesteps import on_timestep

        passed, last = 0, -math.inf

        def enter(timestep: float) -> None:
            nonlocal passed, last
            if timestep != last:  # they fall along a video; both halves of guidance have the same
                passed = passed + 1 if timestep < last else 0
            last = timestep
            steps = len(video.pipe.scheduler.timesteps)
            # Less what multiplying rounds up, or 0.07 of 100 steps would be 8.
            self.dense = passed < math.ceil(self.wanted.dense_share * steps - 1e-9)

        changes.on_undo(on_timestep(video.denoiser, enter).remove)

    def facts(self) -> dict[str, float]:
        """For the record: the share of blocks computed, of all steps and of those that skip."""
        total = {True: 0, False: 0}
        for (_, dense), computed in self._computed.items():
            total[dense] += int(computed.item())
        found = {}
        if blocks := sum(self._blocks.values()):
            found["attention_density"] = sum(total.values()) / blocks
        if self.wanted.dense_share and self._blocks[False]:
            found["attention_density_of_sparse_steps"] = total[False] / self._blocks[False]
        return found


_LIVE: list[Sparse] = []


@functools.cache
def _operator() -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """One node for torch.compile. What it counts is not among its results."""
    from torch.library import custom_op

    @custom_op(
        "qbench::sparse_attention",
        mutates_args=(),
        schema="(Tensor q, Tensor k, Tensor v, int number) -> Tensor",
    )
    def operator(q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
        return _LIVE[number].compute(q, k, v).contiguous()

    @operator.register_fake
    def _(q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
        return q.new_empty(q.shape)

    return operator


def _sparse(variant: Variant) -> bool:
    return variant.sparse_attention is not None


RULES: tuple[Rule, ...] = (
    clash(
        "sparse attention and several GPUs",
        lambda v: _sparse(v) and v.parallel is not None,
        "sparse_attention counts its blocks on one GPU, and parallel would have several share "
        "them: choose one of the two",
    ),
    clash(
        "sparse attention and CUDA graphs",
        lambda v: _sparse(v) and v.captures_graphs,
        "sparse_attention counts its blocks and its steps on the host, which a captured graph "
        "replays without: compile with mode default, and leave out cuda_graph",
    ),
    clash(
        "dense steps and a model compiled whole",
        lambda v: (
            v.sparse_attention is not None
            and v.sparse_attention.dense_share > 0
            and v.compile is not None
            and v.compile.scope == "model"
        ),
        "sparse_attention.dense_share looks at the timestep before each call, which one compiled "
        "program cannot: compile with scope blocks",
    ),
)
