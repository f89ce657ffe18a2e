"""A quantized checkpoint: a pipeline folder that plain diffusers loads, without qbench.

optimum-quanto's weights are read by its own loader, and given to the pipeline.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qbench.engines.manifest import Bound, Description

if TYPE_CHECKING:
    from optimum.quanto import QuantizedDiffusersModel
    from torch import Tensor

    from qbench.engines.inputs import Signature
    from qbench.engines.static_seen import Seen
    from qbench.pipelines.base import Module, VideoPipeline
    from qbench.recipe.schema import Quantize, Variant


ALIGNED = 64  # bytes


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
    if quantize and quantize.backend not in ("torchao", "quanto"):
        return f"weights of {quantize.backend} are read by nothing but its own runtime"
    return ""


def write(
    video: VideoPipeline,
    signature: Signature,
    example: Mapping[str, Tensor],
    variant: Variant,
    folder: Path,
    seen: Mapping[str, Seen] | None = None,
) -> Bound:
    """Write the whole pipeline; with no text encoder (`weights: random`) the denoiser alone."""
    module: Module = video.denoiser
    if not video.text_encoders():
        return write_denoiser(video, signature, example, variant, folder)
    if by_quanto(variant):
        write_denoiser(video, signature, example, variant, folder)
        # diffusers would read optimum-quanto's weights as plain ones: it is to be given them.
        setattr(video.pipe, video.part, None)
    elif variant.quantize:
        _declare(module, variant.quantize)
    video.pipe.save_pretrained(str(folder), safe_serialization=True)
    setattr(video.pipe, video.part, module)
    align(folder / video.part)
    return Bound()


def write_denoiser(
    video: VideoPipeline,
    signature: Signature,
    example: Mapping[str, Tensor],
    variant: Variant,
    folder: Path,
    seen: Mapping[str, Seen] | None = None,
) -> Bound:
    """Write the denoiser alone, where it lies in a pipeline's folder too."""
    module: Module = video.denoiser
    if by_quanto(variant):
        _loader(type(module))(module).save_pretrained(folder / video.part)
        return Bound()
    if variant.quantize:
        _declare(module, variant.quantize)
    module.save_pretrained(str(folder / video.part), safe_serialization=True)
    align(folder / video.part)
    return Bound()


def align(folder: Path) -> None:
    """Have tensors of the folder's safetensors begin at multiples of `ALIGNED` bytes.

    diffusers maps the files, so that tensors lie in memory as they do there. safetensors fills its
    header up to 8 bytes; the kernel that torch's compiler takes for INT8 weights on a CPU reads 64
    at a time, and dies where they lie otherwise. It holds where tensors take whole multiples of
    that, as weights alone and their scales do in linears of common widths.
    """
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as source:
            size = int.from_bytes(source.read(8), "little")
            missing = -(8 + size) % ALIGNED
            if not missing:
                continue
            made = path.with_suffix(".aligned")
            with made.open("wb") as target:
                target.write((size + missing).to_bytes(8, "little"))
                target.write(source.read(size) + b" " * missing)
                shutil.copyfileobj(source, target, 2**24)
        made.replace(path)


def by_quanto(variant: Variant) -> bool:
    return variant.quantize is not None and variant.quantize.backend == "quanto"


def _loader(kind: type) -> type[QuantizedDiffusersModel]:
    """optimum-quanto's own, which has one class for each of diffusers'."""
    from optimum.quanto import QuantizedDiffusersModel

    made = type(f"Quantized{kind.__name__}", (QuantizedDiffusersModel,), {"base_class": kind})
    return cast("type[QuantizedDiffusersModel]", made)


def _declare(module: Module, wanted: Quantize) -> None:
    """Have diffusers write the quantization into the configuration, as its own loader does."""
    import torch
    from diffusers import TorchAoConfig
    from diffusers.quantizers.auto import DiffusersAutoQuantizer
    from torchao.quantization import FqnToConfig

    from qbench.optimizations import builds, quantization, schemes

    linears = {name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}
    left = sorted(linears - set(quantization.chosen(module, wanted)))
    parts = quantization.by_scheme(wanted.model_copy(update={"tune": False}), linears - set(left))
    configs: dict[str, object] = {}
    for one, names in parts:
        build = schemes.find(one).build
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
    if by_quanto(written.recipe.variant):
        return _by_quanto(type(shell), part, written)
    loaded = type(shell).from_pretrained(
        str(part), dtype=getattr(torch, written.dtype), use_safetensors=True
    )
    lie_well(loaded)  # an older folder's may not
    return loaded.eval().requires_grad_(False).to(written.target.device)


def lie_well(module: Module) -> None:
    """Move what quantized tensors are made of where it lies at odd places of a mapped file."""
    import torch

    for value in module.parameters():
        if hasattr(value, "__tensor_flatten__"):
            for name in value.__tensor_flatten__()[0]:
                inner = getattr(value, name)
                if type(inner) is torch.Tensor and inner.data_ptr() % ALIGNED:
                    setattr(value, name, inner.clone())


def _by_quanto(kind: type, part: Path, written: Description) -> Module:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, written.dtype))  # of layers that are not quantized
    try:
        loaded = _loader(kind).from_pretrained(str(part))._wrapped
    finally:
        torch.set_default_dtype(before)
    lie_well(loaded)  # torch's INT8 kernel for CPUs dies of weights that do not
    return loaded.eval().requires_grad_(False).to(written.target.device)
