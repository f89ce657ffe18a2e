"""torch.compile over the denoiser's repeated blocks, or over all of it."""

from __future__ import annotations

import functools
import os
import platform
from typing import TYPE_CHECKING

from qbench import cache
from qbench.optimizations.changes import Changes
from qbench.optimizations.rules import Rule
from qbench.recipe.schema import Compile

if TYPE_CHECKING:
    from qbench.optimizations.changes import Forward
    from qbench.pipelines.base import Module, VideoPipeline

BATCH_SIZES = 3  # at most, in a run: one video, a batch, a smaller one
KEPT = "TORCHINDUCTOR_CACHE_DIR"


def apply(video: VideoPipeline, wanted: Compile, hooked: bool) -> Changes:
    """Wrap in place; the compiler itself runs at the first call.

    Regional compilation compiles one block and reuses it for its twins. diffusers' own helper needs
    a `_repeated_blocks` that CogVideoX's transformer does not have, so the family names them. A
    UNet's come in more shapes than torch compiles of one function before it gives up and runs the
    rest as they are, which would be measured as compiled: the limit is raised, and is an error. Of
    blocks that will be `hooked` (by a cache, by group offload) only the forward is compiled: hooks
    come around it later, since a hook that is traced makes every block a program of its own.

    CogVideoX's first block is given a part of a longer tensor, with gaps in memory, for which torch
    compiles a second program: a third of the first call on a CPU. A copy closes the gaps there; on
    a GPU, where memory is what runs out first, it would be one more tensor of all tokens.
    """
    import torch._inductor.config

    from qbench.optimizations import int8_products

    changes = Changes("compile")
    module = video.denoiser
    for name, value in int8_products.settings(module.device.type).items():
        _set(changes, torch._inductor.config, name, value)
    compiled = functools.partial(
        torch.compile, mode=wanted.mode, dynamic=False, fullgraph=wanted.fullgraph
    )
    if wanted.scope == "model":
        _compile(module, wanted, changes)
        return changes
    parts = video.compiled_parts()
    limits = torch._dynamo.config
    _set(changes, limits, "recompile_limit", max(limits.recompile_limit, len(parts) * BATCH_SIZES))
    _set(changes, limits, "fail_on_recompile_limit_hit", True)
    closed = _closed if module.device.type == "cpu" else (lambda call: call)
    for block in parts:
        if hooked:
            changes.replace(block, "forward", closed(compiled(block.forward)))
        else:
            _compile(block, wanted, changes)
            block._compiled_call_impl = closed(block._compiled_call_impl)
    return changes


def _set(changes: Changes, settings: object, name: str, value: object) -> None:
    """As `Changes.replace`, which looks where torch's settings do not keep their values."""
    changes.on_undo(functools.partial(setattr, settings, name, getattr(settings, name)))
    setattr(settings, name, value)


def _compile(module: Module, wanted: Compile, changes: Changes) -> None:
    changes.replace(module, "_compiled_call_impl", None)  # torch's own place for it
    module.compile(mode=wanted.mode, dynamic=False, fullgraph=wanted.fullgraph)


def _closed(call: Forward) -> Forward:
    """`call`, whose tensors have one layout for each of their shapes, but for permuted axes."""
    import torch

    def without_gaps(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        span = 1 + sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
        # A contiguous one may have any stride along an axis of one, and torch compiles for it.
        if value.is_contiguous() or span > value.numel():
            return value.reshape(-1).view(value.shape)
        return value

    def closed(*args: object, **kwargs: object) -> object:
        return call(*map(without_gaps, args), **{k: without_gaps(v) for k, v in kwargs.items()})

    return closed


def know_cpu() -> None:
    """Have inductor find out which instruction sets it can use here, and keep that for all runs.

    It compiles and loads a program for each, some seven seconds on one core, so here on all cores
    at once. That is a fact of the machine and no cost of the variant that happens to be compiled
    first. What it keeps is named for the compiler, torch and instruction set.
    """
    from concurrent.futures import ThreadPoolExecutor

    from torch._inductor import cpu_vec_isa

    own = os.environ.get(KEPT)
    os.environ[KEPT] = str(cache.folder() / "inductor")
    try:
        if platform.machine() in ("x86_64", "AMD64"):
            flags = set(cpu_vec_isa.x86_isa_checker())
            sets = cpu_vec_isa.supported_vec_isa_list
            with ThreadPoolExecutor() as pool:
                list(pool.map(bool, [one for one in sets if set(str(one).split()) <= flags]))
        cpu_vec_isa.valid_vec_isa_list()
    finally:
        if own is None:
            del os.environ[KEPT]
        else:
            os.environ[KEPT] = own


RULES: tuple[Rule, ...] = (
    Rule(
        "torch.compile",
        lambda v: v.compile is not None,
        lambda m: m.cuda or m.compiler,
        "torch.compile on a CPU needs a C++ compiler (g++), and none was found",
    ),
)
