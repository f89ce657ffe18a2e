"""What was fitted, written into the tensors of the scheme's backend, which then compute as ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qbench.optimizations.calibration.numbers import Weights, bits

if TYPE_CHECKING:
    from qbench.optimizations.calibration import Fitted


def into_torchao(
    module: nn.Module, found: Mapping[str, Fitted], stored: Mapping[str, Weights]
) -> None:
    """Overwrite tensors that torchao made by plain rounding.

    Its tensors for fewer than 8 bits have no place for a scale of the input. Where one is needed
    the codes go into those for 8 bits, with groups: as many bytes, the same product.
    """
    from torchao.quantization import Int8Tensor

    for name, one in found.items():
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        weight: Tensor = layer.weight
        if one.pre is not None and not isinstance(weight, Int8Tensor):
            if stored[name].format == "fp8":
                raise ValueError(f"{name}: torchao's FP8 tensors have no scale of the input")
            weight = _grouped(weight, stored[name].group)
            layer.weight = nn.Parameter(weight, requires_grad=False)
        _fill(layer.weight, one)


def _grouped(weight: Tensor, group: int) -> Tensor:
    from torchao.quantization import Int8Tensor

    qdata, scale = weight.qdata, weight.scale  # type: ignore[attr-defined]
    return Int8Tensor(qdata, scale.clone(), [1, group], weight.dtype)


def _fill(weight: Tensor, one: Fitted) -> None:
    qdata, scale = weight.qdata, weight.scale  # type: ignore[attr-defined]
    qdata.copy_(one.codes.to(qdata.dtype))
    scale.copy_(one.scales.view(scale.shape))
    if one.pre is not None:
        weight.act_pre_scale = one.pre.to(weight.dtype)  # type: ignore[attr-defined]
    if one.fixed is not None:
        from torchao.quantization import PerTensor
        from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

        weight.act_quant_kwargs = QuantizeTensorToInt8Kwargs(PerTensor())  # type: ignore[attr-defined]
        weight.act_quant_scale = one.fixed.view((1,) * one.axes)  # type: ignore[attr-defined]


def into_packed(
    module: nn.Module, found: Mapping[str, Fitted], stored: Mapping[str, Weights]
) -> None:
    """Put packed linears in place."""
    from qbench.optimizations.packed import PackedLinear

    for name, one in found.items():
        parent, _, child = name.rpartition(".")
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        new = PackedLinear(
            layer, one.codes, one.scales, bits(stored[name].format), one.pre, one.up, one.down
        )
        setattr(module.get_submodule(parent), child, new)
        layer.weight.data = layer.weight.data.new_empty(0)


def into_fp8(module: nn.Module, found: Mapping[str, Fitted]) -> None:
    """qbench's own FP8 linears, with these codes and scales."""
    from qbench.optimizations.kernels import fp8_blocks, fp8_linear

    made = {
        name: (one.codes.to(torch.float8_e4m3fn), one.scales.float()) for name, one in found.items()
    }
    fp8_linear.replace(module, list(found), made)
    fp8_blocks.fuse(module)
