"""Which kernel computes attention.

CogVideoX's processor calls `scaled_dot_product_attention` itself, so diffusers' own switch does not
reach it. torch's own kernels are chosen by torch's switch, which acts on that very call. For all
others the processor is replaced by one that computes the same and calls the kernel.

`KERNELS` is the one table; a kernel is added with its name in `recipe/choices.py`, and its entry
and rules here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.errors import Unsupported
from qbench.optimizations import flash_attention_3
from qbench.optimizations.changes import Changes
from qbench.optimizations.flash_attention_3 import FORWARD_OF_3, OWN, first
from qbench.optimizations.rules import Machine, ModelFacts, Rule, always
from qbench.pipelines.attention import Kernel as AttentionFunction
from qbench.recipe.choices import SPARSE
from qbench.recipe.schema import Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from qbench.optimizations.parallel.tokens import Attention
    from qbench.optimizations.sparse import Sparse
    from qbench.pipelines.base import VideoPipeline


@dataclass(frozen=True)
class Kernel:
    """One attention kernel: torch's own by the name of its backend, or one that `load` imports.

    half: whether it takes FP16 and BF16 alone.
    arithmetic: the format of its GEMMs, where it is not that of its inputs.
    """

    backend: str | None = None  # of torch.nn.attention.SDPBackend
    load: Callable[[], AttentionFunction] | None = None
    half: bool = False
    arithmetic: str | None = None


def apply(
    video: VideoPipeline,
    kernel: str,
    over: Attention | None = None,
    sparse: Sparse | None = None,
) -> Changes:
    """Have the denoiser compute attention by this kernel alone, and nothing around it.

    over: attention over tokens of several GPUs, each of which computes by the kernel.
    sparse: has the kernel leave out blocks.
    """
    changes = Changes("attention")
    module, backend = video.denoiser, None
    if kernel != "auto":
        backend = KERNELS[kernel].backend
    if backend:
        _only(module, backend, changes)
    by_torch = kernel == "auto" or backend is not None
    if over is not None:
        from qbench.optimizations.parallel import partials

        rings = over.ranks.ring.size > 1
        partial = partials.with_lse(kernel) if rings else None
        attend = over.around(partials.plain if by_torch else load(kernel), partial)
    elif by_torch:
        return changes
    elif sparse is not None:
        sparse.follow(video, changes)
        attend = sparse.attend
    else:
        attend = load(kernel)
    for layer in module.modules():
        if hasattr(layer, "set_processor") and hasattr(layer, "processor"):
            processor = layer.processor
            changes.on_undo(functools.partial(layer.set_processor, processor))
            if hasattr(processor, "_attention_backend"):  # what diffusers' dispatcher goes by
                changes.replace(processor, "_attention_backend", processor._attention_backend)
    video.set_attention(attend)
    return changes


def _only(module: nn.Module, backend: str, changes: Changes) -> None:
    """Leave one of torch's kernels enabled while the module runs.

    Not for longer: T5 gives its attention a bias, which flash does not take and fails on.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    only, inner = getattr(SDPBackend, backend), module.forward

    def forward(_: nn.Module, *args: object, **kwargs: object) -> object:
        with sdpa_kernel(only):
            return inner(*args, **kwargs)

    changes.compute(module, forward)


@functools.cache  # an operator can be registered once a process
def load(kernel: str) -> AttentionFunction:
    """The function of a kernel that is not torch's own. Imports its package.

    Raises Unsupported where only a part of that is installed, KeyError for an unknown name.
    """
    loader = KERNELS[kernel].load
    if loader is None:
        raise ValueError(f"attention: {kernel} is torch's own kernel and is not loaded")
    try:
        return loader()
    except ImportError as error:  # a part of it is missing, or it was built for another torch
        raise Unsupported(
            f"attention: the package of {kernel} is not installed whole: {error}; reinstall it as "
            "'qbench ls --why' says"
        ) from error


def _fp8() -> AttentionFunction:
    from qbench.optimizations.kernels import fp8_attention

    return fp8_attention.attend


def _fp8_reference() -> AttentionFunction:
    from qbench.optimizations.kernels import fp8_attention

    return _opaque("fp8_reference", fp8_attention.reference)


def _xformers() -> AttentionFunction:
    from xformers.ops import memory_efficient_attention

    return _opaque("xformers", lambda q, k, v: memory_efficient_attention(q, k, v))


def _sage() -> AttentionFunction:
    from sageattention import sageattn

    return _opaque("sage", lambda q, k, v: sageattn(q, k, v, tensor_layout="NHD"))


def _flash_4() -> AttentionFunction:
    from flash_attn.cute import flash_attn_func

    return _opaque("flash_4", lambda q, k, v: first(flash_attn_func(q, k, v)))


def _flash_3() -> AttentionFunction:
    return _opaque("flash_3", flash_attention_3.forward())


def _flash_3_fp8() -> AttentionFunction:
    return _opaque("flash_3_fp8", flash_attention_3.forward_in_fp8())


def _torchao_fp8() -> AttentionFunction:
    """torchao's low-precision attention: its quantization around FlashAttention 3's kernels."""
    from torch.nn import attention
    from torchao.prototype.attention.fp8_fa3.attention import fp8_fa3_sdpa

    attention.activate_flash_attention_impl("FA3")  # its package is missing now, not in a step
    attention.restore_flash_attention_impl()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention.activate_flash_attention_impl("FA3")
        try:
            out: Tensor = fp8_fa3_sdpa(*(x.transpose(1, 2) for x in (q, k, v)))
        finally:
            attention.restore_flash_attention_impl()
        return out.transpose(1, 2)

    return _opaque("torchao_fp8", attend)


def _opaque(name: str, run: AttentionFunction) -> AttentionFunction:
    """The kernel as an operator that torch.compile keeps as one node instead of tracing it."""
    from torch.library import custom_op

    @custom_op(
        f"qbench::attention_{name}",
        mutates_args=(),
        schema="(Tensor q, Tensor k, Tensor v) -> Tensor",
    )
    def operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return run(q, k, v).contiguous()

    @operator.register_fake
    def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return q.new_empty(q.shape)

    return operator


KERNELS: dict[str, Kernel] = {
    "math": Kernel("MATH"),
    "flash": Kernel("FLASH_ATTENTION", half=True),
    "efficient": Kernel("EFFICIENT_ATTENTION"),
    "cudnn": Kernel("CUDNN_ATTENTION", half=True),
    "flash-3": Kernel(load=_flash_3, half=True),
    "flash-3-fp8": Kernel(load=_flash_3_fp8, half=True, arithmetic="fp8"),
    "flash-4": Kernel(load=_flash_4, half=True),
    "sage": Kernel(load=_sage),
    "torchao-fp8": Kernel(load=_torchao_fp8, half=True, arithmetic="fp8"),
    "xformers": Kernel(load=_xformers),
    "fp8": Kernel(load=_fp8, half=True, arithmetic="fp8"),
    "fp8-reference": Kernel(load=_fp8_reference, arithmetic="fp8"),
}
HALF = [name for name, kernel in KERNELS.items() if kernel.half]


def _is(*names: str) -> Callable[[Variant], bool]:
    return lambda variant: variant.attention in names


def _hopper(machine: Machine) -> bool:
    return machine.cuda and machine.capability == (9, 0)


def _heads_of_64_or_128(_: Variant, model: ModelFacts) -> bool:
    return model.head_dim in (64, 128)


PACKAGES = (
    OWN,
    FORWARD_OF_3,
    "flash_attn.cute",
    "flash_attn.flash_attn_interface",
    "sageattention",
    "xformers",
)
RULES: tuple[Rule, ...] = (
    Rule(
        "xformers beside FlashAttention 4",
        always,  # diffusers imports xformers whatever runs
        lambda m: (
            not {"xformers", "flash_attn.cute"} <= m.packages
            or "flash_attn.flash_attn_interface" in m.packages
        ),
        "xformers takes flash-attn-4 for FlashAttention 2, and diffusers, which imports xformers, "
        "cannot be imported: pip uninstall one of the two, or install flash-attn besides",
    ),
    Rule(
        "FP8 attention",
        _is("fp8"),
        _hopper,
        "qbench's FP8 attention is written for NVIDIA Hopper (compute capability 9.0)",
    ),
    Rule(
        "FP8 attention's heads",
        _is(*SPARSE),
        always,
        "qbench's FP8 attention takes heads of 64 or 128 channels, and this model has others",
        fits=_heads_of_64_or_128,
    ),
    Rule(
        "FlashAttention 3's GPU",
        _is("flash-3", "flash-3-fp8", "torchao-fp8"),
        _hopper,
        "FlashAttention 3 is written for NVIDIA Hopper (compute capability 9.0)",
    ),
    Rule(
        "FlashAttention 3",
        _is("flash-3"),
        lambda m: bool({OWN, FORWARD_OF_3, "xformers"} & m.packages),
        "FlashAttention 3 is not installed: pip install --no-deps xformers==0.0.34 "
        "nvidia-cuda-runtime-cu12",
    ),
    Rule(
        "FlashAttention 3 in FP16",
        lambda variant: variant.attention == "flash-3" and variant.dtype == "fp16",
        lambda m: FORWARD_OF_3 not in m.packages or bool({OWN, "xformers"} & m.packages),
        "fa3-fwd has FlashAttention 3's kernels in BF16 and FP8 alone: "
        "pip install --no-deps xformers==0.0.34 nvidia-cuda-runtime-cu12",
    ),
    Rule(
        "FlashAttention 3's FP8 kernels",
        _is("flash-3-fp8"),
        lambda m: bool({OWN, FORWARD_OF_3} & m.packages),
        "FlashAttention 3's FP8 kernels are not installed: pip install --no-deps fa3-fwd==0.0.3",
    ),
    Rule(
        "torchao's low-precision attention",
        _is("torchao-fp8"),
        lambda m: OWN in m.packages,
        "FlashAttention 3's own package, whose operators torchao calls, is not installed: it is "
        "built from hopper/ of github.com/Dao-AILab/flash-attention",
    ),
    Rule(
        "FlashAttention 4's GPU",
        _is("flash-4"),
        lambda m: m.cuda and m.capability >= (9, 0),
        "FlashAttention 4 needs an NVIDIA GPU of compute capability 9.0 or newer",
    ),
    Rule(
        "FlashAttention 4",
        _is("flash-4"),
        lambda m: "flash_attn.cute" in m.packages,
        "FlashAttention 4 is not installed: pip install --pre 'flash-attn-4[cu13]'",
    ),
    Rule(
        "the GPU of SageAttention and xformers",
        _is("sage", "xformers"),
        lambda m: m.cuda and m.capability >= (8, 0),
        "this attention kernel needs an NVIDIA GPU of compute capability 8.0 or newer",
    ),
    Rule(
        "SageAttention",
        _is("sage"),
        lambda m: "sageattention" in m.packages,
        "SageAttention is not installed: pip install sageattention==1.0.6 (2 is built from source)",
    ),
    Rule(
        "xformers",
        _is("xformers"),
        lambda m: "xformers" in m.packages,
        "xformers is not installed: pip install xformers",
    ),
    Rule(
        "half precision for attention kernels",
        lambda v: v.attention in HALF and v.dtype == "fp32",
        lambda m: not m.cuda,
        f"the attention kernels {', '.join(HALF)} take FP16 or BF16, not FP32",
    ),
    Rule(
        "GPU attention kernels",
        _is("efficient", "cudnn"),
        lambda m: m.cuda,
        "this attention kernel needs an NVIDIA GPU; on a CPU there are math and flash",
    ),
)
