"""What a layer costs in a scheme: bytes as stored, or seconds of a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qbench.errors import Unsupported
from qbench.meters.memory import stored_bytes
from qbench.optimizations import schemes as known
from qbench.optimizations.calibration import observe
from qbench.recipe.choices import AS_IT_IS

if TYPE_CHECKING:
    from qbench.optimizations.calibration.observe import Call
    from qbench.recipe.schema import Dtype, Quantize

REPEATS = 15
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def stored(
    module: nn.Module,
    names: Sequence[str],
    wanted: Quantize,
    schemes: Sequence[str],
    dtype: Dtype,
) -> dict[str, dict[str, float]]:
    """Bytes of every linear in every scheme, and as it is, of layers really built."""
    known: dict[tuple[object, ...], float] = {}
    found: dict[str, dict[str, float]] = {}
    for name in names:
        layer = _linear(module, name)
        found[name] = {}
        for scheme in (AS_IT_IS, *schemes):
            shape = (layer.in_features, layer.out_features, layer.bias is None, scheme)
            if shape not in known:
                known[shape] = float(stored_bytes(alone(layer, wanted, scheme, DTYPES[dtype])))
            found[name][scheme] = known[shape]
    return found


def latency(
    module: nn.Module,
    names: Sequence[str],
    wanted: Quantize,
    schemes: Sequence[str],
    dtype: Dtype,
    call: Call,
    compiled: bool,
) -> dict[str, dict[str, float]]:
    """Seconds of one call of every linear in every scheme, at the size that the denoiser gives it.

    The median of repeats of the layer alone, compiled where the recipe compiles. Raises Unsupported
    where a scheme cannot run here.
    """
    inputs = _Inputs(module, names)
    with inputs.on():
        observe.predict(module, call)
    known: dict[tuple[object, ...], float] = {}
    found: dict[str, dict[str, float]] = {}
    for name in names:
        layer = _linear(module, name)
        shape = inputs.shapes[inputs.first[name]]
        found[name] = {}
        for scheme in (AS_IT_IS, *schemes):
            kind = (shape, layer.out_features, layer.bias is None, scheme)
            if kind not in known:
                built = alone(layer, wanted, scheme, DTYPES[dtype])
                x = torch.randn(shape, device=layer.weight.device).to(DTYPES[dtype])
                known[kind] = _seconds(built, x, compiled, scheme)
            found[name][scheme] = known[kind]
    return found


class _Inputs(observe.Watch):
    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__(module, names)
        self.shapes: dict[str, torch.Size] = {}

    def see(self, name: str, x: Tensor) -> None:
        self.shapes[name] = x.shape


def _linear(module: nn.Module, name: str) -> nn.Linear:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def alone(layer: nn.Linear, wanted: Quantize, scheme: str, dtype: torch.dtype) -> nn.Module:
    """A copy of the linear, by itself, in the scheme."""
    whole, device = nn.Sequential(), layer.weight.device
    copy = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device)
    copy.weight.data = layer.weight.data.clone()
    if layer.bias is not None:
        copy.bias.data = layer.bias.data.clone()
    whole.append(copy.requires_grad_(False).to(dtype))
    if scheme != AS_IT_IS:
        update: dict[str, object] = {"scheme": scheme, "layers": {}, "calibration": None}
        one = wanted.model_copy(update=update)
        build = known.find(one).build
        assert build is not None
        build(whole, one, {"0"})
    return whole


@torch.no_grad()
def _seconds(module: nn.Module, x: Tensor, compiled: bool, scheme: str) -> float:
    from statistics import median

    from qbench.meters.clock import UnitTimer

    if compiled:
        module.compile(dynamic=False)
    timer, found = UnitTimer(x.device.type), []
    try:
        for _ in range(REPEATS + 3):
            timer.begin()
            module(x)
            found.append(timer.end()[1])
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise Unsupported(f"search: {scheme} cannot run on this machine: {said}") from error
    return median(found[3:])
