"""A quantized checkpoint: a pipeline folder that plain diffusers loads, without qbench."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines.manifest import Bound, Description

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.engines.inputs import Signature
    from qbench.pipelines.base import Module, VideoPipeline
    from qbench.recipe.schema import Quantize, Variant


def refuses(variant: Variant) -> str:
    """Why a checkpoint cannot hold the variant: it holds weights, and nothing of how they run."""
    if variant.engine:
        return f"engine: {variant.engine} leaves no weights that diffusers could load"
    if variant.fuse_qkv:
        return "fuse_qkv changes the layers, and diffusers builds the model's own"
    if variant.fault:
        return "fault: damage on purpose is not exported"
    quantize = variant.quantize
    if quantize and quantize.backend == "qbench":
        return "weights of qbench's own linears are read by qbench alone"
    if quantize and quantize.calibration and quantize.calibration.ranges:
        return "weights for each range of timesteps are switched by qbench alone"
    if quantize and quantize.backend != "torchao":
        return f"weights of {quantize.backend} are read by its own loader, not by diffusers'"
    return ""


def write(
    video: VideoPipeline,
    signature: Signature,
    example: Mapping[str, Tensor],
    variant: Variant,
    folder: Path,
    calls: Sequence[Mapping[str, Tensor]] = (),
) -> Bound:
    """Write the whole pipeline; with no text encoder (`weights: random`) the denoiser alone."""
    module: Module = video.denoiser
    if variant.quantize:
        _declare(module, variant.quantize)
    if video.text_encoders():
        video.pipe.save_pretrained(str(folder), safe_serialization=True)
    else:
        module.save_pretrained(str(folder / video.part), safe_serialization=True)
    return Bound()


def _declare(module: Module, wanted: Quantize) -> None:
    """Have diffusers write the quantization into the configuration, as its own loader does."""
    import torch
    from diffusers import TorchAoConfig
    from diffusers.quantizers.auto import DiffusersAutoQuantizer
    from torchao.quantization import FqnToConfig

    from qbench.optimizations import builds, quantization

    linears = {name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    left = sorted(linears - set(quantization.chosen(module, wanted)))
    parts = quantization.by_scheme(wanted.model_copy(update={"tune": False}), linears - set(left))
    configs: dict[str, object] = {}
    for one, names in parts:
        build = quantization.scheme(one).build
        assert isinstance(build, builds.Torchao)  # `refuses` let no other through
        configs |= dict.fromkeys(sorted(names), build.config(one))
    whole = next(iter(configs.values())) if len(parts) == 1 else FqnToConfig(configs)
    settings = TorchAoConfig(whole, modules_to_not_convert=left)
    quantizer = DiffusersAutoQuantizer.from_config(settings)  # type: ignore[arg-type]
    quantizer.offload = False  # set while loading, and asked for while saving
    module.hf_quantizer = quantizer
    module.register_to_config(quantization_config=settings)


def open(folder: Path, shell: Module, written: Description) -> Module:
    """The denoiser, loaded by diffusers as a deployment would."""
    import torch

    part = folder / written.base_model.part
    loaded = type(shell).from_pretrained(
        str(part), dtype=getattr(torch, written.dtype), use_safetensors=True
    )
    return loaded.eval().requires_grad_(False).to(written.target.device)
