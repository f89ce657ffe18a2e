"""An exported graph computed in FP32 on a CPU, whatever the type that it was exported in.

Constants keep the values that their own type gave them, and QuantizeLinear rounds as it did; only
sums and products are of FP32. So it proves a graph for TensorRT on a machine that has no GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto
    from torch import Tensor

    from qbench.engines.base import Run
    from qbench.engines.manifest import TensorSpec

TYPED = ("to", "dtype", "softmax_precision")  # attributes whose value is the number of a type


def widened(path: Path, inputs: Sequence[TensorSpec]) -> Run:
    """The graph as a function of its tensors; its files are removed."""
    import onnx
    import onnxruntime as ort
    import torch

    model = onnx.load(path)
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    widen(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # ONNX Runtime would join pairs of FP8 into a GEMM that takes no FP8, and refuse it.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    with tempfile.TemporaryDirectory(prefix="qbench-") as scratch:
        place = Path(scratch) / path.name
        onnx.save(model, place, save_as_external_data=True, location=f"{path.name}.data")
        del model
        session = ort.InferenceSession(str(place), options, providers=["CPUExecutionProvider"])
    taken = {one.name for one in session.get_inputs()}
    names = [spec.name for spec in inputs if spec.name in taken]

    def run(tensors: Mapping[str, Tensor]) -> Tensor:
        given = {
            name: (value.float() if value.is_floating_point() else value).cpu().numpy()
            for name, value in tensors.items()
            if name in names
        }
        return torch.from_numpy(session.run(None, given)[0])

    return run


def widen(model: ModelProto) -> None:
    """FP16 and BF16 become FP32, in place: constants, casts, inputs and outputs."""
    from onnx import TensorProto

    narrow = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    _widen(model.graph, narrow)
    del model.graph.value_info[:]
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type in narrow:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _widen(graph: GraphProto, narrow: tuple[int, ...]) -> None:
    from onnx import AttributeProto, TensorProto

    for tensor in graph.initializer:
        _wide(tensor, narrow)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _wide(attribute.t, narrow)
            elif attribute.type == AttributeProto.GRAPH:
                _widen(attribute.g, narrow)
            elif attribute.name in TYPED and attribute.i in narrow:
                attribute.i = TensorProto.FLOAT


def _wide(tensor: TensorProto, narrow: tuple[int, ...]) -> None:
    import numpy as np
    from onnx import numpy_helper

    if tensor.data_type in narrow:
        wide = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
