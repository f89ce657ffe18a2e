"""Products with INT8 weights on a GPU, kept from a kernel of the compiler's that is for few tokens.

Inductor takes `mm(x, w.to(bf16)) * scales` for a product with INT8 weights and hands it to
aten._weight_int8pack_mm. Its kernel for GPUs has one thread for each value of the result, which
adds up in FP32 without tensor cores (ATen/native/cuda/int8mm.cu, in PyTorch 2.11 and 2.13): one
denoise step of CogVideoX-2B, 35,552 rows in each of 180 products, did not end within seven minutes
on an H200. Left alone the compiler makes BF16 of the weights and calls the library's product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch._inductor.config
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx import Graph, Node

aten = torch.ops.aten
VIEWS = {aten.reshape.default, aten.view.default, aten.permute.default, aten.expand.default}
PRODUCTS = {aten.mm.default, aten.bmm.default}
TO_DTYPE = torch.ops.prims.convert_element_type.default


def settings(device: str) -> dict[str, object]:
    """Inductor's to compile with for devices of this type. On a CPU its kernel is a good one."""
    name = "post_grad_custom_pre_pass"
    if device == "cpu":
        return {}
    return {name: ScalesFirst(device, before=getattr(torch._inductor.config, name))}


class ScalesFirst(CustomGraphPass):
    """`scales * product` for `product * scales`: the same values, and no pattern of inductor's."""

    def __init__(self, device: str, before: Callable[[Graph], None] | None = None) -> None:
        """device: the type of those whose products are meant. before: a pass to run first."""
        self._device, self._before = device, before

    def __call__(self, graph: Graph) -> None:
        if self._before is not None:
            self._before(graph)
        for node in graph.find_nodes(op="call_function", target=aten.mul.Tensor):
            product, scales = node.args
            if isinstance(scales, Node) and self._reads_int8(product):
                node.args = scales, product

    def uuid(self) -> object:
        """What inductor's caches know the pass by; exported folders hold such a cache."""
        own = f"{__name__} 1 {self._device}"  # another number where it does something else
        if self._before is None:
            return own
        before = getattr(self._before, "uuid", lambda: None)()
        return None if before is None else (own, before)

    def _reads_int8(self, x: object) -> bool:
        product = _without_views(x)
        if product is None or product.target not in PRODUCTS:
            return False
        weight = _without_views(product.args[1])
        if weight is None or weight.target is not TO_DTYPE:
            return False
        stored = weight.args[0]
        assert isinstance(stored, Node)
        value = stored.meta["val"]
        return value.dtype is torch.int8 and value.device.type == self._device


def _without_views(x: object) -> Node | None:
    while isinstance(x, Node) and x.target in VIEWS:
        x = x.args[0]
    return x if isinstance(x, Node) else None
