"""Scales and zero points that follow the time step, as nodes of a graph.

They are made once a call, for all inputs that are quantized by them, out of a table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.engines.static_forms import node
from qbench.engines.static_seen import TIME

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import NodeProto
    from torch import Tensor

    Values = NDArray[np.float32]


PREFIX = "schedule_"  # of all names that it makes


@dataclass(frozen=True)
class _Timed:
    """Names of a scale and a zero point, and their values at each time step."""

    scale: str
    zero: str
    timesteps: Values
    scales: Values
    zeros: Values


class Schedule:
    """Linear in the time step between the known ones, and constant past the first and the last.

    Of videos at several time steps in one batch the noisiest counts, whose ranges are the widest.
    keep: makes a constant of the graph and gives its name.
    """

    def __init__(self, keep: Callable[[str, Tensor], str]) -> None:
        self._keep = keep
        self._timed: list[_Timed] = []

    def add(self, name: str, timesteps: Values, scales: Values, zeros: Values) -> list[str]:
        """The names of a scale in FP32 and a zero point of uint8.

        timesteps, scales, zeros: as many of each; one alone is a constant.
        """
        import torch

        names = [f"{name}_scale", f"{name}_zero"]
        if len(timesteps) == 1:
            self._keep(names[0], torch.tensor(float(scales[0])))
            self._keep(names[1], torch.tensor(int(zeros[0]), dtype=torch.uint8))
        else:
            self._timed.append(_Timed(names[0], names[1], timesteps, scales, zeros))
        return names

    def nodes(self) -> list[NodeProto]:
        """What makes all of them. It stands before anything that reads them."""
        import numpy as np
        import torch
        from onnx import TensorProto

        timed = self._timed
        if not timed:
            return []
        known = timed[0].timesteps
        assert all(np.array_equal(one.timesteps, known) for one in timed)
        table = np.stack([*(one.scales for one in timed), *(one.zeros for one in timed)], axis=1)

        def kept(name: str, value: Values) -> str:
            return self._keep(f"{PREFIX}{name}", torch.from_numpy(value).float())

        def made(op: str, inputs: Sequence[str], name: str, **attributes: int) -> NodeProto:
            return node(op, inputs, [PREFIX + name], attributes=attributes)

        def split(name: str, into: Sequence[str]) -> NodeProto:
            return node("Split", [PREFIX + name], into, attributes={"num_outputs": len(into)})

        ends = [kept("none", np.zeros((), np.float32)), kept("all", np.ones((), np.float32))]
        return [
            made("Cast", [TIME], "times", to=TensorProto.FLOAT),
            made("ReduceMax", [f"{PREFIX}times"], "time", keepdims=0),
            made("Sub", [f"{PREFIX}time", kept("starts", known[:-1])], "since"),
            made("Div", [f"{PREFIX}since", kept("gaps", np.diff(known))], "passed"),
            made("Clip", [f"{PREFIX}passed", *ends], "shares"),
            made("MatMul", [f"{PREFIX}shares", kept("slopes", np.diff(table, axis=0))], "added"),
            made("Add", [f"{PREFIX}added", kept("first", table[0])], "row"),
            split("row", [f"{PREFIX}scales", f"{PREFIX}zeros"]),
            split("scales", [one.scale for one in timed]),
            made("Round", [f"{PREFIX}zeros"], "whole"),
            made("Cast", [f"{PREFIX}whole"], "bytes", to=TensorProto.UINT8),
            split("bytes", [one.zero for one in timed]),
        ]
