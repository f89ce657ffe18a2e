"""Quantized linears as runtimes take them: ONNX Runtime on a CPU, and TensorRT.

ONNX Runtime has a GEMM of U8 and S8, the faster pair on x86, which scales and adds the bias as it
stores; written as QuantizeLinear and DequantizeLinear the same graph leaves the bias to a node of
its own. TensorRT takes QuantizeLinear and DequantizeLinear alone: symmetric, in INT8 or in FP8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from onnx import NodeProto
    from torch import Tensor

    from qbench.engines.onnx_static import Editor, Linear, Nodes
    from qbench.engines.static_seen import Seen

TAIL = 0.0001  # of values past either end of an integer's range, which are clipped
BLOCK = 32  # weights that share a scale where inputs are not quantized
FP8_MOST = 448.0  # the largest value of E4M3
MICROSOFT = "com.microsoft"


class Integers:
    """For ONNX Runtime on a CPU: weights per output channel, activations per tensor from 0 up.

    An activation's range follows the time step; see `static_seen`.
    """

    def rounded(self, seen: Seen, weight: Tensor) -> Tensor:
        import torch

        scale, zero = (
            torch.from_numpy(one[seen.when][:, None]).to(weight.device)
            for one in self._ranges(seen)
        )
        rows = torch.from_numpy(seen.rows).to(weight.device)
        short = torch.minimum(torch.maximum((rows / scale).round(), -zero), 255 - zero) * scale
        stored, each = _int8(weight, torch.float32)
        return short @ (stored.float() * each)

    def _ranges(self, seen: Seen) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The step at each time step, and which number is zero. Nothing that was seen is clipped:

        what few tokens are far out, many products depend on.
        """
        import numpy as np

        low, high = seen.low.min(1).clip(max=0), seen.high.max(1).clip(min=0)
        scales = ((high - low) / 255).clip(1e-9).astype(np.float32)
        return scales, (-low / scales).round()

    def input(self, edit: Editor, source: str, name: str, seen: Seen) -> Nodes:
        parameters = edit.schedule.add(name, seen.timesteps, *self._ranges(seen))
        return [node("QuantizeLinear", [source, *parameters], [f"{name}_u8"])]

    def small(self, edit: Editor, linear: Linear) -> Nodes:
        """Weights in INT8, in blocks along the input; not where these do not come out even."""
        import torch

        inputs, outputs = linear.weight.shape
        if inputs % BLOCK:
            return linear.nodes
        blocks = torch.from_numpy(linear.weight.T.copy()).reshape(outputs, inputs // BLOCK, BLOCK)
        scale = (blocks.abs().amax(-1) / 127).clamp(min=1e-12)
        short = (blocks / scale[..., None]).round() + 128
        name = linear.node.name
        given = [
            linear.given,
            edit.keep(f"{name}_u8", short.clamp(0, 255).to(torch.uint8)),
            edit.keep(f"{name}_scale", scale.flatten()),
            "",  # 128 is zero
            "",
            linear.bias,
        ]
        sizes = {"K": inputs, "N": outputs, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
        return [node("MatMulNBits", given, [linear.output], linear.node, MICROSOFT, sizes)]

    def product(self, edit: Editor, linear: Linear) -> Nodes:
        import torch

        weight, scale = _int8(torch.from_numpy(linear.weight), torch.float32)
        name, given = linear.node.name, linear.given
        inputs = [
            f"{given}_u8",
            edit.keep(f"{name}_s8", weight),
            f"{given}_scale",
            edit.keep(f"{name}_scale", scale),
            f"{given}_zero",
            "",  # weights are symmetric
            linear.bias,
        ]
        return [node("MatMulIntegerToFloat", inputs, [linear.output], linear.node, MICROSOFT)]


@dataclass(frozen=True)
class Symmetric:
    """For TensorRT: pairs of QuantizeLinear and DequantizeLinear around what stays a MatMul.

    TensorRT takes constant scales alone, so a range is that of all time steps.

    INT8 weights have a scale for each output channel, FP8 ones a scale for the tensor. Scales are
    of the graph's own type, as a strongly typed network wants them. Small linears stay as they are.
    """

    number: Literal["int8", "fp8"]

    def rounded(self, seen: Seen, weight: Tensor) -> Tensor:
        import torch

        rows = torch.from_numpy(seen.rows).to(weight.device)
        scale = self._scale(seen, rows)
        short = rows / scale
        if self.number == "int8":
            short = short.round().clamp(-128, 127)
        else:
            short = short.clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn).float()
        stored, scales = self._stored(weight, torch.float32)
        return short * scale @ (stored.float() * scales)

    def _scale(self, seen: Seen, rows: Tensor) -> float:
        """rows: those of `seen`."""
        if self.number == "int8":
            most = _ends(rows) / 127
        else:
            most = float(max(seen.high.max(), -seen.low.min())) / FP8_MOST
        return max(most, TINY)

    def _stored(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return (_int8 if self.number == "int8" else _fp8)(weight, dtype)

    def input(self, edit: Editor, source: str, name: str, seen: Seen) -> Nodes:
        import torch

        kind = torch.int8 if self.number == "int8" else torch.float8_e4m3fn
        scale = self._scale(seen, torch.from_numpy(seen.rows))
        parameters = [
            edit.keep(f"{name}_scale", torch.tensor(scale).to(edit.dtype(name))),
            edit.keep(f"{name}_zero", torch.tensor(0.0).to(kind)),
        ]
        short, wide = f"{name}_short", f"{name}_quantized"
        return [
            node("QuantizeLinear", [source, *parameters], [short]),
            node("DequantizeLinear", [short, *parameters], [wide]),
        ]

    def product(self, edit: Editor, linear: Linear) -> Nodes:
        import torch
        from onnx import NodeProto

        name, dtype = linear.node.name, edit.dtype(linear.given)
        weight, scale = self._stored(torch.from_numpy(linear.weight), dtype)
        parts = [
            edit.keep(f"{name}_stored", weight),
            edit.keep(f"{name}_scale", scale),
            edit.keep(f"{name}_zero", scale.new_zeros(scale.shape).to(weight.dtype)),
        ]
        per_output = {"axis": 1} if scale.dim() else None
        wide = f"{name}_weight"
        made = NodeProto()
        made.CopyFrom(linear.node)
        made.input[0], made.input[1] = f"{linear.given}_quantized", wide
        made.output[0] = f"{name}_product" if linear.bias else linear.output
        nodes = [node("DequantizeLinear", parts, [wide], attributes=per_output), made]
        if linear.bias:
            nodes.append(node("Add", [made.output[0], linear.bias], [linear.output]))
        return nodes

    def small(self, edit: Editor, linear: Linear) -> Nodes:
        return linear.nodes


TINY = 1e-6  # a scale of zero divides by zero; FP16 has no much smaller one


def _ends(rows: Tensor) -> float:
    """The larger of both ends of an integer's range, as quantiles interpolate."""
    flat = rows.flatten()
    place = TAIL * (len(flat) - 1)
    below = int(place)
    count = min(below + 2, len(flat))
    ends = [flat.topk(count).values, -flat.topk(count, largest=False).values]
    return max(float(one[below].lerp(one[count - 1], place - below)) for one in ends)


def _int8(plain: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(input, output) as INT8 and a scale of `dtype` for each output."""
    import torch

    scale = (plain.abs().amax(0) / 127).clamp(min=TINY).to(dtype)
    return (plain / scale.float()).round().clamp(-127, 127).to(torch.int8), scale


def _fp8(plain: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """As E4M3, and one scale of `dtype`."""
    import torch

    scale = (plain.abs().amax() / FP8_MOST).clamp(min=TINY).to(dtype)
    short = (plain / scale.float()).clamp(-FP8_MOST, FP8_MOST)
    return short.to(torch.float8_e4m3fn), scale


def node(
    op: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    of: NodeProto | None = None,
    domain: str = "",
    attributes: Mapping[str, int] | None = None,
) -> NodeProto:
    """A node named after its first output, or standing for the node `of`."""
    from onnx import helper

    name = of.name if of is not None else outputs[0]
    made = helper.make_node(op, inputs, outputs, name=name, domain=domain)
    for key, value in (attributes or {}).items():
        made.attribute.append(helper.make_attribute(key, value))
    if of is not None:
        made.metadata_props.extend(of.metadata_props)
    return made
