"""The arithmetic and the traffic that one call of a module needs, counted without doing it.

The module is rebuilt on torch's meta device, where operations have shapes and no data, so a model
of any size is counted in seconds on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from qbench.fields import Bytes, NonNegative, Positive, Word

Module = Any  # of torch and diffusers, and what passes through their hooks


class Work(BaseModel):
    """One denoise step, counted on the plain module: what a variant does with it is another matter.

    A multiply and an add are two FLOPs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    product_flop: Positive  # GEMM: linear layers and convolutions
    attention_flop: NonNegative
    # Of product_flop, by name of the linear.
    linear_flop: Annotated[dict[Word, NonNegative], Field(max_length=10_000)] = {}
    weights_bytes: Bytes  # read at least once a step
    # Read and written where every operation goes to memory, as in eager mode.
    traffic_bytes: Bytes

    @property
    def flop(self) -> float:
        return self.product_flop + self.attention_flop

    def share(self, linears: set[str]) -> float:
        """The share of all FLOPs that these linear layers do."""
        return sum(self.linear_flop.get(name, 0.0) for name in linears) / self.flop


def count(module: Module, calls: Sequence[Mapping[str, object]], element_bytes: int) -> Work:
    """Count a step of a diffusers module: its calls, each by meta copies of its keyword inputs.

    Raises RuntimeError where the module cannot be built from its configuration.
    """
    import torch
    from torch.utils._pytree import tree_map
    from torch.utils.flop_counter import FlopCounterMode

    def on_meta(value: object) -> object:
        if not isinstance(value, torch.Tensor):
            return value
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        return torch.empty(value.shape, dtype=dtype, device="meta")

    with torch.device("meta"):
        twin = type(module).from_config(module.config).eval()
    twin = twin.to(torch.float32)
    rows: dict[str, float] = {}

    def note(name: str) -> Module:
        def hook(layer: Module, args: Module, _: Module) -> None:
            flop = 2.0 * args[0].numel() * layer.out_features
            rows[name] = rows.get(name, 0.0) + flop

        return hook

    for name, layer in twin.named_modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(note(name))
    traffic, attention = _traffic_mode(), _attention_mode()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, traffic, attention:
        for call in calls:
            twin(**tree_map(on_meta, dict(call)))
    weights = sum(p.numel() for p in twin.parameters())
    return Work(
        product_flop=float(counter.get_total_flops()),
        attention_flop=attention.flop,
        linear_flop=rows,
        weights_bytes=weights * element_bytes,
        traffic_bytes=(traffic.elements + attention.elements) * element_bytes,
    )


def _traffic_mode() -> Module:
    """A dispatch mode that counts the elements which operations read and write."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Traffic(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.elements = 0

        def __torch_dispatch__(
            self, func: Module, types: Module, args: Module = (), kwargs: Module = None
        ) -> Module:
            out = func(*args, **(kwargs or {}))
            if not func.is_view:
                leaves = [*tree_leaves(args), *tree_leaves(kwargs or {}), *tree_leaves(out)]
                self.elements += sum(x.numel() for x in leaves if isinstance(x, torch.Tensor))
            return out

    return Traffic()


def _attention_mode() -> Module:
    """Attention as one operation: on the meta device torch would write its scores out."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Attention(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.flop, self.elements = 0.0, 0

        def __torch_function__(
            self, func: Module, types: Module, args: Module = (), kwargs: Module = None
        ) -> Module:
            if func is not torch.nn.functional.scaled_dot_product_attention:
                return func(*args, **(kwargs or {}))
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            q, k, v = (given[name] for name in ("query", "key", "value"))
            rows, keys = q[..., 0].numel(), k.shape[-2]
            self.flop += 2.0 * rows * keys * (q.shape[-1] + v.shape[-1])
            out = q.new_empty(*q.shape[:-1], v.shape[-1])
            self.elements += q.numel() + k.numel() + v.numel() + out.numel()
            return out

    return Attention()
