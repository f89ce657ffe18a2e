"""Quantizing the denoiser's linears in place, by torchao or optimum-quanto."""

from __future__ import annotations

from typing import Any

from qbench.errors import InputError, Unsupported
from qbench.recipe import Quantize


def apply(module: Any, wanted: Quantize) -> dict[str, Any]:
    """Quantize the chosen linears of `module`. Returns which share of it they hold."""
    import torch

    linears = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear) and _chosen(name, wanted)
    }
    if not linears:
        raise InputError(
            f"variant.quantize: include {wanted.include} and exclude {wanted.exclude} "
            "leave no linear to quantize"
        )
    total = sum(p.numel() for p in module.parameters())
    share = sum(layer.weight.numel() for layer in linears.values()) / total
    quantizers = {"torchao": _torchao, "quanto": _quanto}
    quantizers[wanted.backend](module, wanted.scheme, set(linears))
    return {"quantized_linears": len(linears), "quantized_parameter_share": share}


def _chosen(name: str, wanted: Quantize) -> bool:
    included = not wanted.include or any(part in name for part in wanted.include)
    return included and not any(part in name for part in wanted.exclude)


def _torchao(module: Any, scheme: str, chosen: set[str]) -> None:
    try:
        import torchao.quantization as ao
    except ImportError as error:
        raise Unsupported("torchao is not installed: pip install torchao") from error
    import torch

    # The configs would switch on inductor's autotuning for the whole process, which makes the
    # first call with FP8 take minutes and gains nothing on these shapes.
    plain: dict[str, Any] = {"set_inductor_config": False}

    def config() -> Any:
        if scheme == "int8_weight_only":
            return ao.Int8WeightOnlyConfig(**plain)
        if scheme == "int8_dynamic":
            return ao.Int8DynamicActivationInt8WeightConfig(**plain)
        if scheme == "fp8_weight_only":
            return ao.Float8WeightOnlyConfig(**plain)
        if scheme == "fp8_dynamic_row":
            return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow(), **plain)
        if scheme == "fp8_dynamic_tensor":
            return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerTensor(), **plain)
        bits = getattr(torch, scheme.split("_")[0])
        return ao.IntxWeightOnlyConfig(weight_dtype=bits, granularity=ao.PerGroup(32))

    ao.quantize_(module, config(), filter_fn=lambda _, name: name in chosen)


def _quanto(module: Any, scheme: str, chosen: set[str]) -> None:
    try:
        from optimum import quanto
    except ImportError as error:
        raise Unsupported(
            "optimum-quanto is not installed: pip install 'qbench[quanto]'"
        ) from error
    weights = {
        "int8_weight_only": quanto.qint8,
        "int4_weight_only": quanto.qint4,
        "int2_weight_only": quanto.qint2,
        "fp8_weight_only": quanto.qfloat8,
    }[scheme]
    quanto.quantize(module, weights=weights, include=sorted(chosen))
    quanto.freeze(module)
