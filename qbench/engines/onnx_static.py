"""Static quantization of an exported graph: inputs of linears have ranges known beforehand.

Which nodes stand for a quantized linear is the runtime's `Form`; what is the same for all of them
is here. What linears are given is in `static_seen`, the balance of channels in `static_balance`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qbench.engines import static_balance
from qbench.engines.static_schedule import Schedule

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from onnx import GraphProto, NodeProto, TensorProto
    from torch import Tensor

    from qbench.engines.static_seen import Seen


@dataclass(frozen=True)
class Linear:
    """A linear of the graph, with the sum of its bias where that is a node of its own.

    weight: (input, output), balanced where the input is.
    bias: name of a tensor; empty where there is none.
    nodes: it as it was exported.
    """

    node: NodeProto
    nodes: Nodes
    given: str
    weight: NDArray[np.float32]
    bias: str
    output: str


class Form(Protocol):
    """How one runtime computes a quantized linear: its rounding, and the nodes of a graph."""

    def rounded(self, seen: Seen, weight: Tensor) -> Tensor:
        """The product of `seen.rows` and (input, output), both rounded as they will be.

        weight: FP32, on the device that computes it.
        """

    def input(self, edit: Editor, source: str, name: str, seen: Seen) -> Nodes:
        """Quantize the tensor `source`, once for all linears that are given `name`."""

    def product(self, edit: Editor, linear: Linear) -> Nodes:
        """A linear of tokens, whose input is quantized."""

    def small(self, edit: Editor, linear: Linear) -> Nodes:
        """A linear of one row a video (time embedding, modulation): few products, many weights.

        As a whole these cost 17 % of error when quantized by static ranges.
        """


Nodes = list["NodeProto"]


def quantize(path: Path, seen: Mapping[str, Seen], form: Form, large: bool) -> None:
    """Quantize the exported model in place: the linears that `seen` names.

    large: whether weights lie beside the model, as they must past 2 GB.
    """
    import onnx

    if not seen:
        raise ValueError("nothing was seen of the linears, so none would be quantized")
    model = onnx.load(path)
    graph = model.graph
    del graph.value_info[:]
    edit = Editor(graph, seen, form)
    nodes = [made for node in graph.node for made in edit.replaced(node)]
    nodes = [*edit.schedule.nodes(), *nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    tensors = [one for one in [*graph.initializer, *edit.tensors] if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    known = {one.domain for one in model.opset_import}
    for domain in {node.domain for node in nodes} - known - {""}:
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    for data in path.parent.glob(f"{path.name}.data*"):
        data.unlink()
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")


class Editor:
    """Makes the quantized nodes of a graph, and the tensors that they need."""

    def __init__(self, graph: GraphProto, seen: Mapping[str, Seen], form: Form) -> None:
        self._seen, self._form = seen, form
        self._constants = {one.name: one for one in graph.initializer}
        self._makers = {name: node.op_type for node in graph.node for name in node.output}
        self._layers = {
            node.name: name
            for node in graph.node
            if node.op_type in ("MatMul", "Gemm")
            and node.input[1] in self._constants
            and (name := _layer(node)) in seen
        }
        self._sharing: dict[str, Nodes] = {}
        for node in graph.node:
            if node.name in self._layers:
                self._sharing.setdefault(node.input[0], []).append(node)
        self._sums = self._biases(graph)
        self._summed = {one.name for one in self._sums.values()}
        self._balance: dict[str, NDArray[np.float32] | None] = {}
        self.tensors: list[TensorProto] = []
        self.schedule = Schedule(self.keep)

    def replaced(self, node: NodeProto) -> Nodes:
        """The nodes that stand for this one."""
        if node.name in self._summed:  # in the linear before it
            return []
        layer = self._layers.get(node.name)
        if layer is None:
            return [node]
        given = node.input[0]
        per_token = node.op_type == "MatMul" and self._seen[layer].per_token
        if not per_token:
            return self._form.small(self, self._linear(node, None))
        made = [] if given in self._balance else self._quantized(given, layer)
        return [*made, *self._form.product(self, self._linear(node, self._balance[given]))]

    def keep(self, name: str, value: Tensor) -> str:
        """A constant of the graph, by its name."""
        self.tensors.append(constant(name, value))
        return name

    def dtype(self, given: str) -> torch.dtype:
        """In which the linears that are given this tensor were exported."""
        weights = self._constants[self._sharing[given][0].input[1]]
        return _kinds()[weights.data_type]

    def _quantized(self, name: str, layer: str) -> Nodes:
        """The input balanced where that helps, and quantized, once for all that share it."""
        import torch
        from onnx import helper

        seen, made, source, factors = self._seen[layer], [], name, None
        if not seen.balanced:
            weights = [torch.from_numpy(self._weight(node)) for node in self._sharing[name]]
            half, worth = self.dtype(name) != torch.float32, static_balance.WORTH
            factors = static_balance.balance(self._form, seen, weights, half, worth)
        if factors is not None:
            source = f"{name}_balanced"
            kept = self.keep(f"{name}_balance", torch.from_numpy(factors).to(self.dtype(name)))
            made.append(helper.make_node("Mul", [name, kept], [source], name=source))
            seen = seen.times(factors)
        self._balance[name] = factors
        return [*made, *self._form.input(self, source, name, seen)]

    def _linear(self, node: NodeProto, balance: NDArray[np.float32] | None) -> Linear:
        weight = self._weight(node)
        if balance is not None:
            weight = weight / balance[:, None]
        add = self._sums.get(node.name)
        bias = node.input[2] if len(node.input) > 2 else ""
        if add is not None:
            bias = add.input[1] if add.input[0] == node.output[0] else add.input[0]
        nodes = [node] if add is None else [node, add]
        return Linear(node, nodes, node.input[0], weight, bias, nodes[-1].output[0])

    def _biases(self, graph: GraphProto) -> dict[str, NodeProto]:
        """By the name of a linear, the node that adds a bias to it and to nothing else."""
        users: dict[str, Nodes] = {}
        for node in graph.node:
            for name in node.input:
                users.setdefault(name, []).append(node)
        found = {}
        for node in graph.node:
            after = users.get(node.output[0], []) if node.name in self._layers else []
            if len(after) == 1 and after[0].op_type == "Add":
                [other] = [n for n in after[0].input if n != node.output[0]] or [""]
                if other in self._constants and len(self._constants[other].dims) == 1:
                    found[node.name] = after[0]
        return found

    def _weight(self, node: NodeProto) -> NDArray[np.float32]:
        """(input, output)"""
        import numpy as np
        from onnx import numpy_helper

        found = numpy_helper.to_array(self._constants[node.input[1]]).astype(np.float32)
        transposed = any(one.name == "transB" and one.i for one in node.attribute)
        return found.T if transposed else found


def constant(name: str, value: Tensor) -> TensorProto:
    """A tensor of ONNX from one of torch, of any type that both have."""
    import torch
    from onnx import helper

    [kind] = [code for code, dtype in _kinds().items() if dtype == value.dtype]
    raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return helper.make_tensor(name, kind, list(value.shape), raw, raw=True)


def _kinds() -> dict[int, torch.dtype]:
    """ONNX's types of tensors by their number."""
    import torch
    from onnx import TensorProto

    return {
        TensorProto.FLOAT: torch.float32,
        TensorProto.FLOAT16: torch.float16,
        TensorProto.BFLOAT16: torch.bfloat16,
        TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
        TensorProto.INT8: torch.int8,
        TensorProto.UINT8: torch.uint8,
    }


def _layer(node: NodeProto) -> str:
    """The name of the linear that a node was exported of; empty where the exporter left none."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]).removeprefix("module.") if len(scopes) > 1 else ""
    return ""
