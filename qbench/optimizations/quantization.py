"""Quantizing the denoiser's layers in place, by torchao, optimum-quanto or qbench itself."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from qbench.errors import InputError, brief, nearest
from qbench.optimizations import schemes
from qbench.optimizations.changes import Changes
from qbench.recipe.choices import AS_IT_IS
from qbench.recipe.schema import Quantize

if TYPE_CHECKING:
    from torch import nn

    from qbench.optimizations.calibration import Occasion
    from qbench.pipelines.base import Module, VideoPipeline

ROUNDED = "quantized weights hold no more than their bits: load the pipeline again"


def apply(
    module: nn.Module,
    wanted: Quantize,
    video: VideoPipeline | None = None,
    occasion: Occasion | None = None,
) -> tuple[dict[str, float], Changes]:
    """Quantize the chosen layers of `module`, and say which share of its parameters they hold.

    video, occasion: the pipeline that `module` is the denoiser of and what will be served, for
    calibration. Raises InputError where `include` and `exclude` leave nothing, Unsupported where
    a package is missing.
    """
    import torch

    layers = chosen(module, wanted)
    if not layers:
        raise InputError(
            f"variant.quantize: include {wanted.include} and exclude {wanted.exclude} "
            "leave nothing to quantize"
        )
    _check_layers(module, wanted)
    build = schemes.find(wanted).build
    if build is None:
        raise InputError(
            f"variant.quantize: {wanted.backend} quantizes as it builds an engine: "
            f"choose engine {wanted.backend}"
        )
    total = sum(p.numel() for p in module.parameters())
    share = sum(layer.weight.numel() for layer in layers.values()) / total
    linears = sum(isinstance(layer, torch.nn.Linear) for layer in layers.values())
    facts = {"quantized_linears": float(linears), "quantized_parameter_share": share}
    if wanted.convolutions:
        facts["quantized_convolutions"] = float(len(layers) - linears)
    if wanted.calibration:
        if video is None or occasion is None:
            raise InputError("variant.quantize.calibration: there is no pipeline to calibrate on")
        facts |= _calibrated(video, wanted, set(layers), occasion)
    else:
        for one, names in by_scheme(wanted, layers):
            build = schemes.find(one).build
            assert build is not None  # of the same backend
            build(module, one, names)
    changes = Changes("quantize")
    changes.permanent = ROUNDED
    return facts, changes


def _check_layers(module: nn.Module, wanted: Quantize) -> None:
    import torch

    known = [n for n, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)]
    for name in wanted.layers:
        if name not in known:
            hint = nearest(name, known)
            raise InputError(f"variant.quantize.layers: no linear {brief(name)}{hint}")


def _calibrated(
    video: VideoPipeline, wanted: Quantize, names: set[str], occasion: Occasion
) -> dict[str, float]:
    """Fit and store the named linears; figures of what it took."""
    from qbench.optimizations import calibration
    from qbench.optimizations.calibration import storing

    assert wanted.calibration is not None
    module, began = video.denoiser, time.perf_counter()
    if wanted.calibration.ranges:
        calibration.by_range(video, wanted, names, occasion)
        return _took(module, began)
    parts = by_scheme(wanted, names)
    stored = {name: schemes.numbers(one, module.dtype)[0] for one, some in parts for name in some}
    inputs = schemes.numbers(wanted, module.dtype)[1]
    takes = _takes_scales(wanted)
    found = calibration.fit(video, wanted.calibration, occasion, stored, inputs, takes)
    for one, some in parts:
        entry, fitted = schemes.find(one), {name: found[name] for name in sorted(some)}
        if entry.backend == "torchao":
            assert entry.build is not None
            entry.build(module, one, some)
            storing.into_torchao(module, fitted, stored)
        elif entry.activations == "fp8":
            storing.into_fp8(module, fitted)
        elif entry.backend == "qbench":
            storing.into_packed(module, fitted, stored)
        else:
            raise ValueError(f"nothing keeps what calibration finds for {entry.backend}")
    return _took(module, began)


def _takes_scales(wanted: Quantize) -> bool:
    """Whether stored linears can multiply their inputs by channel: neither library's FP8 can."""
    return schemes.find(wanted).weights != "fp8"


def smooths_nothing(video: VideoPipeline, wanted: Quantize | None) -> bool:
    """Whether SmoothQuant is asked for where neither linears nor layers before them take a scale.

    Of the denoiser before it is quantized.
    """
    fit = wanted.calibration if wanted else None
    if wanted is None or fit is None or fit.method != "smoothquant":
        return False
    return not _takes_scales(wanted) and not video.rescalings()


def _took(module: Module, began: float) -> dict[str, float]:
    """Seconds since `began`, and the peaks of memory so far."""
    from qbench.meters.memory import reached

    peak = reached(module.device.type == "cuda")
    facts = {
        "calibration_s": time.perf_counter() - began,
        "calibration_host_bytes": peak.resident_bytes,
        "calibration_device_bytes": peak.allocated_bytes,
    }
    return {name: float(value) for name, value in facts.items() if value is not None}


def by_scheme(wanted: Quantize, names: Collection[str]) -> list[tuple[Quantize, set[str]]]:
    """The named linears by scheme, each with what is wanted as if there were no other."""
    found: dict[str, set[str]] = {}
    for name in names:
        found.setdefault(wanted.layers.get(name, wanted.scheme), set()).add(name)
    return [
        (wanted.model_copy(update={"scheme": chosen, "layers": {}}), some)
        for chosen, some in found.items()
    ]


def chosen(module: nn.Module, wanted: Quantize) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers of `module` that `include` and `exclude` leave, by name."""
    import torch

    kinds: tuple[type[nn.Linear | nn.Conv2d], ...] = (torch.nn.Linear,)
    if wanted.convolutions:
        kinds = (torch.nn.Linear, torch.nn.Conv2d)

    skips = schemes.find(wanted).skips
    # What diffusers keeps in FP32 whatever the module's dtype, such as Wan's time embedding, stays.
    dtype = getattr(module, "dtype", None) or next(module.parameters()).dtype
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, kinds)
        and schemes.picks(wanted, name)
        and wanted.layers.get(name) != AS_IT_IS
        and layer.weight.dtype == dtype
        and tuple(layer.weight.shape) not in skips
    }
