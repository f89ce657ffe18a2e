"""Quantizing the denoiser's linears in place, by torchao, optimum-quanto or qbench itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from qbench.errors import InputError, Unsupported
from qbench.recipe.schema import Quantize

STALE_S = 900  # a build takes about a minute


def apply(module: Any, wanted: Quantize) -> dict[str, Any]:
    """Quantize the chosen linears of `module`. Returns which share of it they hold."""
    linears = chosen(module, wanted)
    if not linears:
        raise InputError(
            f"variant.quantize: include {wanted.include} and exclude {wanted.exclude} "
            "leave no linear to quantize"
        )
    total = sum(p.numel() for p in module.parameters())
    share = sum(layer.weight.numel() for layer in linears.values()) / total
    quantizers = {"torchao": _torchao, "quanto": _quanto, "qbench": _qbench}
    quantizers[wanted.backend](module, wanted, set(linears))
    return {"quantized_linears": len(linears), "quantized_parameter_share": share}


def chosen(module: Any, wanted: Quantize) -> dict[str, Any]:
    """The linears of `module` that `include` and `exclude` leave, by name."""
    import torch

    def fits(name: str) -> bool:
        included = not wanted.include or any(part in name for part in wanted.include)
        return included and not any(part in name for part in wanted.exclude)

    # torchao 0.18 takes the one scale of a 128x128 weight for that of a block, and fails.
    one_scale = (wanted.backend, wanted.scheme) == ("torchao", "fp8_dynamic_tensor")

    # What diffusers keeps in FP32 whatever the module's dtype, such as Wan's time embedding, stays.
    dtype = getattr(module, "dtype", None) or next(module.parameters()).dtype
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and fits(name)
        and layer.weight.dtype == dtype
        and not (one_scale and layer.weight.shape == (128, 128))
    }


def _torchao(module: Any, wanted: Quantize, chosen: set[str]) -> None:
    try:
        import torchao.quantization as ao
    except ImportError as error:
        raise Unsupported("torchao is not installed: pip install torchao") from error
    import torch

    scheme = wanted.scheme
    plain: dict[str, Any] = {"set_inductor_config": wanted.tune}

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


def _quanto(module: Any, wanted: Quantize, chosen: set[str]) -> None:
    try:
        from optimum import quanto
    except ImportError as error:
        raise Unsupported(
            "optimum-quanto is not installed: pip install 'qbench[quanto]'"
        ) from error
    forget_stale_locks(Path(quanto.__file__).parent / "library" / "extensions")
    weights = {
        "int8_weight_only": quanto.qint8,
        "int4_weight_only": quanto.qint4,
        "int2_weight_only": quanto.qint2,
        "fp8_weight_only": quanto.qfloat8,
    }[wanted.scheme]
    quanto.quantize(module, weights=weights, include=sorted(chosen))
    quanto.freeze(module)


def forget_stale_locks(folder: Path) -> None:
    """Remove what builds that were killed have left below `folder`.

    optimum-quanto compiles helpers at first use, and waits for ever where a build's lock is left.
    """
    for lock in folder.glob("*/build/lock"):
        if time.time() - lock.stat().st_mtime > STALE_S:
            lock.unlink(missing_ok=True)


def _qbench(module: Any, _: Quantize, chosen: set[str]) -> None:
    from qbench.optimizations.kernels import fp8_linear

    fp8_linear.replace(module, chosen)
