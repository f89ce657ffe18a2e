"""AOTInductor by blocks: the repeated block is compiled once, and its package serves all of them.

It compiles in a fraction of the time of the whole, and what stands around the blocks stays
PyTorch's. Each block gives the package weights of its own, from safetensors.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines import aoti, weights
from qbench.engines.base import run_of
from qbench.errors import Unsupported
from qbench.pipelines.blocks import blocks_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from qbench.engines.base import Run
    from qbench.engines.inputs import Signature
    from qbench.engines.manifest import Interface
    from qbench.optimizations.changes import Forward
    from qbench.pipelines.base import Module, VideoPipeline

Given = tuple[tuple[object, ...], dict[str, object]]  # positional and keyword arguments


def exported(
    video: VideoPipeline, signature: Signature, example: Mapping[str, Tensor]
) -> ExportedProgram:
    """The first block as a program whose batch is free. Raises Unsupported for blocks that differ.

    example: one call of the denoiser, its tensors by name.
    """
    import torch
    from torch.utils import _pytree

    blocks = blocks_of(video.denoiser)
    first = blocks[0]
    if any(_layout(block) != _layout(first) for block in blocks):
        raise Unsupported(
            "engine_options.scope: this model's blocks come in several sizes: choose model"
        )
    two, four = (_given(video.denoiser, first, signature, example, n) for n in (2, 4))
    small, large = (_pytree.tree_leaves(given) for given in (two, four))
    free = [_grown(*pair) for pair in zip(small, large, strict=True)]
    args, kwargs = _pytree.tree_unflatten(free, _pytree.tree_structure(two))
    shapes = _by_parameter(first, args, kwargs)
    return torch.export.export(first, two[0], two[1], dynamic_shapes=shapes)


def _grown(small: object, large: object) -> dict[int, object] | None:
    """The axes that grew with the batch, as torch.export takes them."""
    import torch

    if not isinstance(small, torch.Tensor) or not isinstance(large, torch.Tensor):
        return None
    grown = [axis for axis in range(small.dim()) if small.shape[axis] != large.shape[axis]]
    return dict.fromkeys(grown, torch.export.Dim.DYNAMIC)


def open(package: Path, folder: Path, shell: Module, written: Interface) -> Run:
    """The denoiser with its blocks' forward from the package, as a function of its tensors."""
    module = _module(folder, shell, written)
    for block in blocks_of(module):
        compiled = aoti.load(package)
        held = {name: value.detach() for name, value in weights.tensors(block).items()}
        compiled.load_constants(held, check_full_update=True, user_managed=True)
        block.forward = functools.partial(_called, compiled)

    return run_of(module, written)


def _called(compiled: Forward, *args: object, **kwargs: object) -> object:
    args, kwargs = _contiguous((args, kwargs))
    return compiled(*args, **kwargs)


def _contiguous(given: Given) -> Given:
    """Arguments as a package reads them, without a check."""
    import torch
    from torch.utils import _pytree

    def lain(value: object) -> object:
        return value.contiguous() if isinstance(value, torch.Tensor) else value

    made: Given = _pytree.tree_map(lain, given)
    return made


def _module(folder: Path, shell: Module, written: Interface) -> Module:
    """The denoiser with the weights of the folder, whatever `shell` holds."""
    import torch

    with torch.device("meta"):
        module = type(shell).from_config(dict(shell.config))
    weights.fill(module, weights.load(folder, written.target.device), folder)
    return module.eval().requires_grad_(False)


def _layout(block: nn.Module) -> tuple[object, ...]:
    shapes = tuple((name, tuple(value.shape)) for name, value in block.state_dict().items())
    return type(block), shapes


def _given(
    module: Module, block: nn.Module, signature: Signature, example: Mapping[str, Tensor], many: int
) -> Given:
    """What the block is given in a call of the denoiser with `many` times the example's batch."""
    import torch

    class Seen(Exception):
        """Ends the call once the block was reached."""

    given: list[Given] = []

    def see(_: object, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        given.append(_contiguous((args, kwargs)))
        raise Seen

    hook = block.register_forward_pre_hook(see, with_kwargs=True)
    tensors = tuple(
        torch.cat([example[name]] * many) if name in signature.batched else example[name]
        for name in signature.names
    )
    try:
        module(**signature.nested(tensors), return_dict=False)
    except Seen:
        pass
    finally:
        hook.remove()
    return given[0]


def _by_parameter(
    block: nn.Module, args: object, kwargs: Mapping[str, object]
) -> dict[str, object]:
    """Free axes by the names of the block's parameters, as torch.export takes them."""
    import inspect

    assert isinstance(args, tuple)
    names = list(inspect.signature(block.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}
