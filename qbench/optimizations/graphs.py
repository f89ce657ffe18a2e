"""A call of the denoiser as one CUDA graph.

Launching a kernel takes the host a few microseconds, and exchanging tensors between ranks ten times
as many. Where that takes longer than the GPU computes, the GPU waits. A graph is captured once for
inputs of the same shapes, and replaying it is one launch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.optimizations import schemes
from qbench.optimizations.changes import Changes, Forward
from qbench.optimizations.rules import ModelFacts, Rule, always, clash, never
from qbench.recipe.schema import Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.utils._pytree import TreeSpec

    from qbench.optimizations.parallel.groups import Exchanged, Ranks, Traffic
    from qbench.pipelines.base import VideoPipeline


def apply(video: VideoPipeline, ranks: Ranks | None = None) -> Changes:
    """Capture the denoiser's calls as they are now: what comes around it later stays outside.

    ranks: that exchange tensors within a call.
    """
    changes = Changes("cuda_graph")
    graphs = _Graphs(video.denoiser.forward, ranks.traffic if ranks else None)
    if ranks:
        # NCCL waits for the graphs that its messages were captured in before it ends.
        ranks.on_leaving(graphs.release)
    changes.replace(video.denoiser, "forward", graphs)
    changes.on_undo(graphs.release)
    return changes


@dataclass(frozen=True)
class _Captured:
    """A graph, where it reads and writes, and what its ranks exchange in it."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    outputs: list[Tensor]
    finish: Callable[[list[Tensor]], object]
    exchanged: Exchanged | None


class _Graphs:
    """A function of tensors on one GPU, captured for each set of shapes as it is first called."""

    def __init__(self, inner: Forward, traffic: Traffic | None) -> None:
        self._inner, self._traffic = inner, traffic
        self._known: dict[object, _Captured] = {}

    def __call__(self, *args: object, **kwargs: object) -> object:
        import torch
        from torch.utils import _pytree as pytree

        leaves, shape = pytree.tree_flatten((args, kwargs))
        given = [x for x in leaves if isinstance(x, torch.Tensor)]
        key = shape, tuple(map(_kind, leaves))
        if key not in self._known:
            self._known[key] = self._capture(leaves, shape, given)
        captured = self._known[key]
        for held, x in zip(captured.inputs, given, strict=True):
            held.copy_(x)
        captured.graph.replay()
        if self._traffic and captured.exchanged:
            self._traffic.again(captured.exchanged)
        # The next replay writes there again, and whoever asked may still hold what this one wrote.
        return captured.finish([x.clone() for x in captured.outputs])

    def release(self) -> None:
        """Let go of the graphs and of the memory that they work in."""
        import torch

        torch.cuda.synchronize()
        for captured in self._known.values():
            captured.graph.reset()
        self._known.clear()

    def _capture(self, leaves: list[object], shape: TreeSpec, given: list[Tensor]) -> _Captured:
        """Call once, so that all that is compiled, allocated or agreed upon once is; then capture.

        The call reads the very tensors that the graph will, for compiled code looks at strides.
        """
        import torch
        from torch.utils import _pytree as pytree

        if any(x.device.type != "cuda" for x in given):
            raise RuntimeError("variant.cuda_graph: the denoiser is given tensors of the host's")
        inputs = [x.clone(memory_format=torch.contiguous_format) for x in given]
        held = iter(inputs)
        fixed = [next(held) if isinstance(x, torch.Tensor) else x for x in leaves]
        args, kwargs = pytree.tree_unflatten(fixed, shape)
        self._inner(*args, **kwargs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        pool = next((one.graph.pool() for one in self._known.values()), None)
        # Only what this thread does is looked at: NCCL's watchdog asks the GPU in another.
        capturing = torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
        counting = self._traffic.captured() if self._traffic else contextlib.nullcontext()
        with counting as exchanged, capturing:
            out = self._inner(*args, **kwargs)
        results, form = pytree.tree_flatten(out)
        places = [i for i, x in enumerate(results) if isinstance(x, torch.Tensor)]

        def finish(tensors: list[Tensor]) -> object:
            whole = list(results)
            for place, x in zip(places, tensors, strict=True):
                whole[place] = x
            return pytree.tree_unflatten(whole, form)

        return _Captured(graph, inputs, [results[i] for i in places], finish, exchanged)


def _kind(leaf: object) -> object:
    """What of an argument a graph is captured for: a tensor's form, and anything else as it is."""
    import torch

    if isinstance(leaf, torch.Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    return leaf


def _captures(variant: Variant) -> bool:
    return variant.cuda_graph


def _is_packed_by_quanto(variant: Variant) -> bool:
    wanted = variant.quantize
    return (
        wanted is not None
        and wanted.backend == "quanto"
        and wanted.scheme in ("int4_weight_only", "int2_weight_only")
    )


def _reads_inputs(variant: Variant) -> bool:
    """Whether GEMMs that nothing compiles read their inputs' values on the host.

    torchao's of INT8 inputs do: `safe_int_mm` (torchao/kernel/intmm.py, 0.18) has an input printed
    to find out whether it is one of the compiler's.
    """
    wanted = variant.quantize
    return (
        variant.cuda_graph
        and wanted is not None
        and wanted.backend == "torchao"
        and any(one.activations == "int8" for one in schemes.of_layers(wanted))
    )


def _compiles_all_that_read(variant: Variant, model: ModelFacts) -> bool:
    assert variant.quantize is not None
    return schemes.of_int8_inputs(variant.quantize, model) <= model.in_blocks


_NOT_COMPILED = (
    "torchao's INT8 GEMMs read their inputs on the host where they are not compiled, which no "
    "graph captures: compile the blocks and quantize nothing else (compile: {}, quantize.include: "
    "[block], exclude: [time_embedding, norm]), choose int8_weight_only, or leave out cuda_graph"
)
RULES: tuple[Rule, ...] = (
    Rule(
        "CUDA graphs",
        _captures,
        lambda m: m.cuda,
        "cuda_graph captures what a GPU computes, and there is none",
    ),
    clash(
        "CUDA graphs and those of torch.compile",
        lambda v: (
            _captures(v)
            and v.compile is not None
            and (v.compile.captures_graphs or v.compile.scope == "model")
        ),
        "cuda_graph captures a whole call, with the compiled blocks that it runs: compile with "
        "scope blocks and a mode that captures nothing",
    ),
    clash(
        "CUDA graphs and caches",
        lambda v: _captures(v) and v.cache is not None,
        "a cache decides on the host what each step computes, and a captured graph computes the "
        "same in all: choose one of cache and cuda_graph",
    ),
    clash(
        "CUDA graphs and offload",
        lambda v: _captures(v) and v.memory.offload is not None,
        "offload moves weights, and a captured graph reads them where they were: choose one of "
        "memory.offload and cuda_graph",
    ),
    clash(
        "CUDA graphs and ranges of timesteps",
        lambda v: (
            _captures(v)
            and v.quantize is not None
            and v.quantize.calibration is not None
            and v.quantize.calibration.ranges is not None
        ),
        "calibration.ranges choose weights by the timestep on the host, and a captured graph has "
        "those of one range: choose one of the two",
    ),
    clash(
        "CUDA graphs and optimum-quanto's packed weights",
        lambda v: v.captures_graphs and _is_packed_by_quanto(v),
        "optimum-quanto launches kernels for INT4 and INT2 weights on the default stream, which no "
        "graph captures, so that a replay computes something else: choose one of the two, or "
        "another backend",
    ),
    Rule(
        "CUDA graphs and torchao's INT8 GEMMs",
        lambda v: _reads_inputs(v) and v.compile is None,
        never,
        _NOT_COMPILED,
    ),
    Rule(
        "CUDA graphs and torchao's INT8 GEMMs outside of compiled blocks",
        lambda v: _reads_inputs(v) and v.compile is not None,
        always,
        _NOT_COMPILED,
        fits=_compiles_all_that_read,
    ),
)
