"""qbench's own format: the denoiser as a recipe left it, with what was compiled for it.

It is for what qbench's own kernels run, FP8 linears above all. Weights are stored as they are used,
so loading quantizes nothing; beside them lie the compiler's artifacts and the kernels' machine
code, so the first call on the same kind of GPU compiles next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines import weights
from qbench.engines.manifest import Bound, Description, compute_capability

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qbench.engines.inputs import Signature
    from qbench.engines.static_seen import Seen
    from qbench.pipelines.base import Module, VideoPipeline
    from qbench.recipe.schema import Variant

ARTIFACTS = "compiler.artifacts"  # torch.compiler.save_cache_artifacts
KERNELS = "kernels"


def refuses(variant: Variant) -> str:
    if variant.engine:
        return f"engine: {variant.engine} is another engine"
    if variant.fault:
        return "fault: damage on purpose is not exported"
    if variant.memory.offload:
        return "memory.offload: choose it where the engine is used"
    if variant.quantize and variant.quantize.backend != "qbench":
        return f"weights of {variant.quantize.backend}: choose the format diffusers"
    return ""


def write(
    video: VideoPipeline,
    signature: Signature,
    example: Mapping[str, Tensor],
    variant: Variant,
    folder: Path,
    seen: Mapping[str, Seen] | None = None,
) -> Bound:
    """Store the weights, then run the denoiser once as it will be run, and store what that made."""
    import torch

    module = video.denoiser
    weights.save(module, folder)
    cuda = module.device.type == "cuda"
    if variant.compile:
        _compile(video, variant)
        with torch.no_grad():
            module(**signature.nested(tuple(example.values())), return_dict=False)
        saved = torch.compiler.save_cache_artifacts()
        if saved is not None:
            (folder / ARTIFACTS).write_bytes(saved[0])
    if cuda:
        _save_kernels(video, variant, folder / KERNELS)
    return Bound(
        compute_capability=compute_capability() if cuda else "",
        exactly={"torch": torch.__version__.partition("+")[0]} if cuda or variant.compile else {},
    )


def open(folder: Path, shell: Module, written: Description) -> nn.Module:
    """The denoiser itself, so that hooks (a cache, offload) go around its blocks as ever."""
    import torch

    from qbench.optimizations import attention
    from qbench.pipelines import families

    if (folder / KERNELS).is_dir():
        from qbench.optimizations import kernels

        kernels.load(folder / KERNELS)
    if (folder / ARTIFACTS).is_file():
        torch.compiler.load_cache_artifacts((folder / ARTIFACTS).read_bytes())
        _ready_compiler(written.target.device)
    variant = written.recipe.variant
    family = families.of_class(written.base_model.pipeline)
    video = family.around(shell)
    _fill(video, variant, folder, written)
    attention.apply(video, variant.attention)
    if variant.compile:
        _compile(video, variant)
    module: nn.Module = video.denoiser
    return module.eval().requires_grad_(False)


def _fill(video: VideoPipeline, variant: Variant, folder: Path, written: Description) -> None:
    """Give the denoiser without data the layers of the variant, and the stored tensors."""
    import torch

    from qbench.optimizations import axes, packed, quantization

    module = video.denoiser
    stored = weights.load(folder, written.target.device)
    for name, value in weights.tensors(module).items():
        # Layers that keep FP32 are told by what was stored, and are not quantized.
        kept = name in stored and stored[name].dtype == torch.float32
        if value.is_floating_point() and not kept:
            value.data = value.data.to(getattr(torch, written.dtype))
    if variant.fuse_qkv:
        axes.fuse_qkv(module)
    if variant.quantize:
        # What calibration found is in the tensors; layers need only places for them.
        quantization.apply(module, variant.quantize.model_copy(update={"calibration": None}))
        packed.make_room(module, {name: value.shape for name, value in stored.items()})
    weights.fill(module, stored, folder)


def _compile(video: VideoPipeline, variant: Variant) -> None:
    from qbench.optimizations import compilation

    assert variant.compile is not None
    compilation.apply(video, variant.compile, hooked=variant.cache is not None)


def _ready_compiler(device: str) -> None:
    """What the compiler looks up before it takes its first artifact, a second on a GPU.

    It hashes its own files and Triton's, and Triton builds what launches its kernels. That belongs
    to loading; else the first video waits for it.
    """
    from torch._inductor import codecache

    codecache.torch_key()
    if device == "cuda":
        from triton.runtime import driver

        codecache.CacheBase.get_system()
        driver.active.get_current_device()


def _save_kernels(video: VideoPipeline, variant: Variant, folder: Path) -> None:
    """All that the denoiser was run with, and those of the decode that the recipe goes on to."""
    from qbench.optimizations import kernels
    from qbench.optimizations.kernels import vae_conv
    from qbench.optimizations.vae import patch

    vae = video.pipe.vae
    if variant.decode.fused and vae is not None and patch.fuses(vae):
        vae_conv.compile_all(vae.dtype)
    kernels.save(folder)
