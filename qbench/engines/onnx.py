"""Exporting the denoiser to ONNX."""

from __future__ import annotations

import gc
import logging
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.errors import Unsupported
from qbench.optimizations.rules import Rule
from qbench.recipe.schema import Variant

if TYPE_CHECKING:
    from onnx import NodeProto
    from torch import Tensor

    from qbench.engines.inputs import Signature
    from qbench.meters.profile import Layer
    from qbench.pipelines.base import Module

# From opset 23 on, attention stays one node. Below, it is written out as MatMul and Softmax, whose
# score tensor at video lengths passes 2^31 elements, where ONNX Runtime has returned wrong results.
OPSET = 23
OUTPUT = "prediction"  # not "sample": that is what a UNet is given
TIMED = "_kernel_time"  # what ONNX Runtime's profile appends to the name of a node
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter writes a node's modules
MAX_BYTES = 1_900_000_000  # of weights in the model's own file
PACKAGES = ("onnx", "onnxscript")


def exporter(engine: str, applies: Callable[[Variant], bool]) -> Rule:
    """What an engine that is built of ONNX needs for the export."""
    return Rule(
        f"ONNX export for {engine}",
        applies,
        lambda m: m.packages.issuperset(PACKAGES),
        "onnx and onnxscript are not installed: pip install 'qbench[onnx]'",
    )


def is_large(module: Module) -> bool:
    """Whether its weights pass the 2 GB that one ONNX file holds."""
    size: int = sum(p.numel() * p.element_size() for p in module.parameters())
    return size > MAX_BYTES


def export(
    module: Module, signature: Signature, example: Mapping[str, Tensor], path: Path
) -> float:
    """Write `module` as ONNX; weights beside it where they pass 2 GB.

    Its inputs have the names of `signature`, and a free first axis where they grow with a batch.
    example: one call's tensors by name.
    Returns the seconds by which it would have taken longer, had it exported here and now: what an
    earlier export spared, less what a process of its own took.
    """
    from qbench.engines import onnx_kept

    path.parent.mkdir(parents=True, exist_ok=True)
    kept = None if is_large(module) else onnx_kept.place(module, signature, example)
    began = time.perf_counter()
    if kept is None:
        export_here(module, signature, example, path)
        return 0.0
    seconds = onnx_kept.fill(kept, module, path)
    if seconds is None:
        seconds = onnx_kept.made_apart(module, signature, example, path, kept)
        onnx_kept.fill(kept, module, path)  # as whoever comes next, so that runs have one memory
    return seconds - (time.perf_counter() - began)


def export_here(
    module: Module, signature: Signature, example: Mapping[str, Tensor], path: Path
) -> None:
    """`export` in this process, which keeps some 150 MiB of what torch.onnx needed for it."""
    import torch

    from qbench.engines.inputs import for_export

    collecting = gc.isenabled()
    positional, tensors, free = for_export(module, signature, example)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    gc.disable()  # it looks through millions of the exporter's objects, a sixth of the time
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                positional,
                tensors,
                str(path),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(signature.names),
                output_names=[OUTPUT],
                dynamic_shapes=free,
                external_data=is_large(module),
                verbose=False,
            )
    finally:
        if collecting:
            gc.enable()
    assert made is not None
    fixed = [
        value.shape[axis]
        for value, axes in zip(made.model.graph.inputs, free[0], strict=True)
        for axis in axes or ()
        if value.shape is not None and isinstance(value.shape[axis], int)
    ]
    if fixed:  # torch.onnx says nothing of it, and ONNX Runtime refuses every other batch
        raise Unsupported(
            f"torch {torch.__version__} exports this model for a batch of {fixed[0]} alone: "
            "another release may leave it free"
        )


def layers(events: Sequence[Mapping[str, object]], path: Path) -> list[Layer]:
    """What ONNX Runtime's profile says of each node, by the denoiser's name of the layer.

    events: its trace, in Chrome's format. path: of the graph, whose nodes know the module that they
        come from; those that ONNX Runtime made have names of its own.
    """
    import onnx

    from qbench.meters.profile import Layer

    graph = onnx.load(path, load_external_data=False).graph
    scopes = {node.name: _scope(node) for node in graph.node}
    found = []
    for event in events:
        name, args = str(event.get("name")), event.get("args")
        if event.get("cat") != "Node" or not name.endswith(TIMED) or not isinstance(args, dict):
            continue
        name = name.removesuffix(TIMED)
        given = {kind for one in args.get("input_type_shape", []) for kind in one}
        found.append(
            Layer(
                name=scopes.get(name) or name,
                kind=str(args["op_name"]),
                precision=", ".join(sorted(given)),
                seconds=float(str(event["dur"])) / 1e6,
            )
        )
    return found


def _scope(node: NodeProto) -> str:
    """The module that the exporter made the node of; empty where it does not say."""
    said = {item.key: item.value for item in node.metadata_props}.get(SCOPES, "[]")
    scopes = re.findall(r"'module\.([^']*)'", said)
    return scopes[-1] if scopes else ""
