"""Static INT8 for ONNX Runtime: activations quantized by ranges known beforehand.

Linears that see a row a token get the QDQ form that ONNX Runtime computes as an INT8 GEMM: weights
per output channel and symmetric, activations per tensor and asymmetric, U8 and S8, which is the
faster pair on x86. Linears that see one row a video (time embedding and modulation) are small GEMMs
of large weights: those are stored in INT8 in blocks and their inputs stay as they are, for as a
whole they cost 17 % of error when quantized by static ranges.

Channels are balanced first, as SmoothQuant does (Xiao et al. 2023, equation 4), where a norm and a
modulation come before the linear; after attention and after GELU that made it worse. Its product is
a node of its own: folded into the norm's weights and the modulation's shift it was no faster.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.optimizations import quantization

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import GraphProto, NodeProto, TensorProto
    from torch import Tensor, nn

    from qbench.engines.inputs import Signature
    from qbench.pipelines.base import Module
    from qbench.recipe.schema import Quantize

ROWS = 1024  # tokens kept of each linear's input in each call
TAIL = 0.0001  # of values past either end of the range, which are clipped
BALANCE = 0.5  # SmoothQuant's alpha
BLOCK = 32  # weights that share a scale where inputs are not quantized
BALANCED_OPS = ("Concat", "Add")  # what the input of a balanced linear comes out of: a modulation


@dataclass(frozen=True)
class Seen:
    """What a linear was given along the trajectories: (rows, channels), and whether per token."""

    rows: NDArray[np.float32]
    per_token: bool


def observed(
    module: Module,
    signature: Signature,
    calls: Sequence[Mapping[str, Tensor]],
    wanted: Quantize,
) -> dict[str, Seen]:
    """Inputs of the chosen linears over `calls`, a sample of the tokens of each.

    calls: of the denoiser, their tensors by name.
    """
    import torch

    kept: dict[str, list[Tensor]] = {}
    per_token: dict[str, bool] = {}

    def see(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows = given[0].detach().reshape(-1, given[0].shape[-1])
            every = max(1, len(rows) // ROWS)
            kept.setdefault(name, []).append(rows[::every].float().cpu())
            per_token[name] = given[0].dim() > 2

        return hook

    linears = quantization.chosen(module, wanted)
    hooks = [layer.register_forward_pre_hook(see(name)) for name, layer in linears.items()]
    try:
        with torch.no_grad():
            for call in calls:
                tensors = tuple(call[name].to(module.device) for name in signature.names)
                module(**signature.nested(tensors), return_dict=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Seen(torch.cat(rows).numpy(), per_token[name]) for name, rows in kept.items()}


def quantize(path: Path, seen: Mapping[str, Seen], large: bool) -> None:
    """Quantize the exported model in place: the linears that `seen` names.

    large: whether weights lie beside the model, as they must past 2 GB.
    """
    import onnx

    model = onnx.load(path)
    graph = model.graph
    del graph.value_info[:]
    editor = _Editor(graph, seen)
    nodes = [made for node in graph.node for made in editor.replaced(node)]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    tensors = [one for one in [*graph.initializer, *editor.tensors] if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    if all(one.domain != "com.microsoft" for one in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    for data in path.parent.glob(f"{path.name}.data*"):
        data.unlink()
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")


class _Editor:
    """Makes the quantized nodes of a graph, and the tensors that they need."""

    def __init__(self, graph: GraphProto, seen: Mapping[str, Seen]) -> None:
        from onnx import numpy_helper

        self._seen = seen
        self._constants = {one.name: one for one in graph.initializer}
        self._array = numpy_helper.to_array
        self._makers = {name: node.op_type for node in graph.node for name in node.output}
        self._linears = {
            node.name: name
            for node in graph.node
            if node.op_type in ("MatMul", "Gemm")
            and node.input[1] in self._constants
            and (name := _linear(node)) in seen
        }
        self._users: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            if node.name in self._linears:
                self._users.setdefault(node.input[0], []).append(node)
        self._balance: dict[str, NDArray[np.float32] | None] = {}
        self.tensors: list[TensorProto] = []

    def replaced(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that stand for this one."""
        name = self._linears.get(node.name)
        if name is None:
            return [node]
        if node.op_type == "Gemm" or not self._seen[name].per_token:
            return self._weights_alone(node)
        made = [] if node.input[0] in self._balance else self._input(node.input[0], name)
        return [*made, *self._product(node)]

    def _input(self, name: str, linear: str) -> list[NodeProto]:
        """The input balanced where that helps, and quantized, once for all that share it."""
        import numpy as np
        from onnx import helper

        rows, made, source = self._seen[linear].rows, [], name
        balance = None
        if self._makers.get(name) in BALANCED_OPS:
            weights = np.max([np.abs(self._weight(n)).max(1) for n in self._users[name]], axis=0)
            most = np.abs(rows).max(0)
            balance = most.clip(1e-5) ** BALANCE / weights.clip(1e-5) ** (1 - BALANCE)
            balance /= np.exp(np.log(balance).mean())
            source = f"{name}_balanced"
            inverse = self._keep(f"{name}_balance", (1 / balance).astype(np.float32))
            made.append(helper.make_node("Mul", [name, inverse], [source], name=source))
            rows = rows / balance
        self._balance[name] = balance
        low = min(0.0, float(np.quantile(rows, TAIL)))
        high = max(0.0, float(np.quantile(rows, 1 - TAIL)))
        scale = max(high - low, 1e-9) / 255
        parameters = [
            self._keep(f"{name}_scale", np.asarray(scale, np.float32)),
            self._keep(f"{name}_zero", np.asarray(round(-low / scale), np.uint8)),
        ]
        short, wide = f"{name}_u8", f"{name}_quantized"
        for op, given, result in (
            ("QuantizeLinear", source, short),
            ("DequantizeLinear", short, wide),
        ):
            made.append(helper.make_node(op, [given, *parameters], [result], name=result))
        return made

    def _product(self, node: NodeProto) -> list[NodeProto]:
        import numpy as np
        from onnx import NodeProto, helper

        weight, balance = self._weight(node), self._balance[node.input[0]]
        if balance is not None:
            weight = weight * balance[:, None]
        scale = (np.abs(weight).max(0) / 127).clip(1e-12).astype(np.float32)
        parts = [
            self._keep(f"{node.name}_s8", np.round(weight / scale).clip(-127, 127).astype(np.int8)),
            self._keep(f"{node.name}_scale", scale),
            self._keep(f"{node.name}_zero", np.zeros(len(scale), np.int8)),
        ]
        wide = f"{node.name}_weight"
        made = NodeProto()
        made.CopyFrom(node)
        made.input[0], made.input[1] = f"{node.input[0]}_quantized", wide
        return [helper.make_node("DequantizeLinear", parts, [wide], name=wide, axis=1), made]

    def _weights_alone(self, node: NodeProto) -> list[NodeProto]:
        """Weights in INT8, in blocks along the input; not where the blocks do not come out even."""
        import numpy as np
        from onnx import helper

        weight = self._weight(node).T  # (output, input)
        outputs, inputs = weight.shape
        if inputs % BLOCK:
            return [node]
        blocks = weight.reshape(outputs, inputs // BLOCK, BLOCK)
        scale = (np.abs(blocks).max(-1) / 127).clip(1e-12).astype(np.float32)
        short = (np.round(blocks / scale[..., None]) + 128).clip(0, 255).astype(np.uint8)
        given = [
            node.input[0],
            self._keep(f"{node.name}_u8", short),
            self._keep(f"{node.name}_scale", scale.reshape(-1)),
        ]
        bias = list(node.input[2:])
        product = f"{node.name}_product" if bias else node.output[0]
        made = [
            helper.make_node(
                "MatMulNBits", given, [product], name=f"{node.name}_nbits", domain="com.microsoft",
                K=inputs, N=outputs, bits=8, block_size=BLOCK, accuracy_level=4,
            )
        ]  # fmt: skip
        if bias:
            made.append(
                helper.make_node("Add", [product, *bias], list(node.output), name=node.name)
            )
        return made

    def _weight(self, node: NodeProto) -> NDArray[np.float32]:
        """(input, output)"""
        found = self._array(self._constants[node.input[1]])
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        return found.T if transposed else found

    def _keep(self, name: str, value: NDArray[np.generic]) -> str:
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(value, name))
        return name


def _linear(node: NodeProto) -> str:
    """The name of the linear that a node was exported of; empty where the exporter left none."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]).removeprefix("module.") if len(scopes) > 1 else ""
    return ""
