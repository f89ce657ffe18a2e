"""Exported graphs without their weights, kept for whoever exports the same denoiser again.

torch.onnx takes most of the time of building an engine, and weights are only copied into what it
makes. So recipes that differ in what becomes of the graph afterwards share one export of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qbench import subprocesses

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto
    from torch import Tensor, nn

    from qbench.engines.inputs import Signature
    from qbench.pipelines.base import Module

FOLDER = "graphs"  # in the cache folder
MOST = 16  # graphs that are kept
LIBRARIES = ("torch", "diffusers", "onnx", "onnxscript", "onnx-ir")
SECONDS = "qbench.seconds"  # of the export, in the graph's metadata
WEIGHTS = "qbench.weights"  # name in the graph -> parameter, and whether it is transposed


def place(module: Module, signature: Signature, example: Mapping[str, Tensor]) -> Path | None:
    """Where the graph of such an export is kept; None of a module that something was done to.

    example: the tensors of one call by name, which the batch is free of.
    """
    import torch

    from qbench import cache
    from qbench.meters import environment

    if not _plain(module):
        return None
    weights = {name: (str(p.dtype), list(p.shape)) for name, p in module.named_parameters()}
    buffers = hashlib.sha256()
    for name, value in module.named_buffers():
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        buffers.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        buffers.update(content.numpy().tobytes())
    facts = [
        environment.code(),
        environment.libraries(LIBRARIES),
        f"{type(module).__module__}.{type(module).__qualname__}",
        repr(module),
        repr(dict(module.config)),
        module.device.type,
        [type(layer.processor).__qualname__ for layer in _attending(module)],
        weights,
        buffers.hexdigest(),
        dict(signature.groups),
        sorted(signature.batched),
        {name: (str(value.dtype), list(value.shape)) for name, value in example.items()},
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return cache.folder() / FOLDER / f"{digest[:32]}.onnx"


def _attending(module: Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if hasattr(layer, "processor")]


def _plain(module: Module) -> bool:
    """Whether the class and the shapes of its weights say all that the module computes."""
    import torch

    for layer in module.modules():
        if "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
            return False
    values = [*module.parameters(), *module.buffers()]
    if any(type(value) not in (torch.Tensor, torch.nn.Parameter) for value in values):
        return False
    return not any(vars(layer.processor) for layer in _attending(module))


def made_apart(
    module: Module,
    signature: Signature,
    example: Mapping[str, Tensor],
    graph: Path,
    kept: Path,
) -> float:
    """Export in a process of its own, and keep the graph if it can be; seconds of the export.

    What torch.onnx leaves in a process's memory would else be in the figures of the run that comes
    first, and of no other.
    """
    import torch

    if module.device.type == "cpu":  # elsewhere the memory that is reported is the device's
        job = graph.with_suffix(".job")
        try:
            torch.save((module, signature, dict(example), graph, kept), job)
            done = subprocesses.run(__name__, str(job))
        finally:
            job.unlink(missing_ok=True)
        if done.returncode == 0:
            return float(done.stdout.split()[-1])
    return _timed(module, signature, example, graph, kept)  # which says what is wrong


def _timed(
    module: Module, signature: Signature, example: Mapping[str, Tensor], graph: Path, kept: Path
) -> float:
    from qbench.engines import onnx

    began = time.perf_counter()
    onnx.export_here(module, signature, example, graph)
    seconds = time.perf_counter() - began
    keep(graph, module, seconds, kept)
    return seconds


def keep(graph: Path, module: Module, seconds: float, kept: Path) -> None:
    """Keep what was exported, if each weight of the module is in it as it is, or transposed.

    seconds: that the export took.
    """
    import onnx

    model = onnx.load(graph)
    found = _weights(model, module)
    if found is None:
        return
    for one in model.graph.initializer:
        if one.name in found:
            one.ClearField("raw_data")
    for key, value in ((SECONDS, repr(seconds)), (WEIGHTS, json.dumps(found))):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    with contextlib.suppress(OSError):  # where it cannot be kept, it is exported again
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_bytes(model.SerializeToString())
        partial.replace(kept)
        others = sorted(kept.parent.glob("*.onnx"), key=lambda path: path.stat().st_mtime)
        for path in others[:-MOST]:
            path.unlink(missing_ok=True)


def fill(kept: Path, module: Module, graph: Path) -> float | None:
    """Write the kept graph with the module's weights; seconds that its export took.

    None where none is kept, or none that can be read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(kept)
        facts = {entry.key: entry.value for entry in model.metadata_props}
        seconds, found = float(facts[SECONDS]), json.loads(facts[WEIGHTS])
    except (OSError, DecodeError, KeyError, ValueError):
        return None
    weights = dict(module.named_parameters())
    for one in model.graph.initializer:
        if one.name in found:
            name, transposed = found[one.name]
            one.raw_data = _laid(one.name, weights[name], transposed).raw_data
    own = [entry for entry in model.metadata_props if entry.key not in (SECONDS, WEIGHTS)]
    del model.metadata_props[:]
    model.metadata_props.extend(own)
    onnx.save(model, graph)
    return seconds


def _laid(name: str, weight: Tensor, transposed: bool) -> TensorProto:
    from qbench.engines.onnx_static import constant

    value = weight.detach().cpu()
    return constant(name, value.T if transposed else value)


def _weights(model: ModelProto, module: Module) -> dict[str, tuple[str, bool]] | None:
    """Tensors of the graph that are the module's weights: which one, and whether transposed.

    None where one is missing, so that something may have been computed of it, or where two that
    are equal cannot be told apart.
    """
    named: dict[tuple[int, tuple[int, ...], bytes], list[tuple[str, bool]]] = {}
    for name, weight in module.named_parameters():
        for transposed in (False, True) if weight.dim() == 2 else (False,):
            made = _laid("", weight, transposed)
            key = (made.data_type, tuple(made.dims), made.raw_data)
            named.setdefault(key, []).append((name, transposed))
    found: dict[str, tuple[str, bool]] = {}
    for one in model.graph.initializer:
        candidates = named.get((one.data_type, tuple(one.dims), one.raw_data), [])
        by_name = [c for c in candidates if one.name == f"module.{c[0]}" and not c[1]]
        if candidates:
            [chosen, *others] = by_name or candidates
            if others:
                return None
            found[one.name] = chosen
    uses = Counter(name for name, _ in found.values())
    if any(uses[name] != 1 for name, _ in module.named_parameters()):
        return None
    return found


def _main() -> None:
    """The process of `made_apart`: its job is a file that only its parent has written."""
    import torch

    print(_timed(*torch.load(sys.argv[1], weights_only=False)))


if __name__ == "__main__":
    _main()
