"""Which kernel computes attention.

CogVideoX's processor calls `scaled_dot_product_attention` itself, so diffusers' own switch does not
reach it. torch's own kernels are chosen by torch's switch, which acts on that very call. For all
others the processor is replaced by one that computes the same and calls the kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qbench.errors import Unsupported

if TYPE_CHECKING:
    from qbench.pipelines.base import VideoPipeline

TORCH = ("math", "flash", "efficient", "cudnn")
Kernel = Callable[[Any, Any, Any], Any]  # q, k, v and result: (batch, tokens, heads, channels)


def apply(video: VideoPipeline, kernel: str) -> None:
    """Have the denoiser compute attention by this kernel alone, and nothing around it."""
    if kernel == "auto":
        return
    module = video.denoiser
    if kernel in TORCH:
        _only(module, kernel)
        return
    head_dim = module.config.attention_head_dim
    if kernel == "fp8" and head_dim != 64:
        raise Unsupported(f"attention: fp8 takes heads of 64 channels; this model has {head_dim}")
    video.set_attention(load(kernel))


def _only(module: Any, kernel: str) -> None:
    """Leave one of torch's kernels enabled while the module runs.

    Not for longer: T5 gives its attention a bias, which flash does not take and fails on.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "math": SDPBackend.MATH,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
    }
    inner = module.forward

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(backends[kernel]):
            return inner(*args, **kwargs)

    module.forward = forward


def load(kernel: str) -> Kernel:
    """The function of a kernel that is not torch's own. Imports its package.

    Raises Unsupported where only a part of that is installed.
    """
    loaders = {
        "fp8": _fp8,
        "flash-3": _flash_3,
        "flash-4": _flash_4,
        "sage": _sage,
        "xformers": _xformers,
    }
    try:
        return loaders[kernel]()
    except ImportError as error:  # a part of it is missing, or it was built for another torch
        raise Unsupported(
            f"attention: the package of {kernel} is not installed whole: {error}; reinstall it as "
            "'qbench ls --why' says"
        ) from error


def _fp8() -> Kernel:
    from qbench.optimizations.kernels import fp8_attention

    return fp8_attention.attend


def _xformers() -> Kernel:
    from xformers.ops import memory_efficient_attention

    return _opaque("xformers", lambda q, k, v: memory_efficient_attention(q, k, v))


def _sage() -> Kernel:
    from sageattention import sageattn

    return _opaque("sage", lambda q, k, v: sageattn(q, k, v, tensor_layout="NHD"))


def _flash_4() -> Kernel:
    from flash_attn.cute import flash_attn_func

    def run(q: Any, k: Any, v: Any) -> Any:
        out = flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out

    return _opaque("flash_4", run)


def _flash_3() -> Kernel:
    """From FlashAttention 3's own package, or from the library inside xformers' wheel."""
    import importlib.util

    import torch

    if importlib.util.find_spec("flash_attn_interface"):
        from flash_attn_interface import flash_attn_func

        def own(q: Any, k: Any, v: Any) -> Any:
            out = flash_attn_func(q, k, v)
            return out[0] if isinstance(out, tuple) else out

        return _opaque("flash_3", own)
    _load_library_of_xformers()
    return _opaque("flash_3", lambda q, k, v: torch.ops.flash_attn_3.fwd(q, k, v)[0])


def _load_library_of_xformers() -> None:
    """Load the library alone: the package around it insists on the torch that it was built with."""
    import ctypes
    import importlib.util
    from pathlib import Path

    import torch

    spec = importlib.util.find_spec("xformers")
    library = Path((spec.origin if spec else None) or "").parent / "flash_attn_3" / "_C.so"
    if not library.is_file():
        raise Unsupported("FlashAttention 3 is not installed: pip install xformers==0.0.34")
    # The library is linked against CUDA 12's runtime, which a torch built for 13 does not bring.
    runtime = importlib.util.find_spec("nvidia.cuda_runtime")
    for folder in runtime.submodule_search_locations or () if runtime else ():
        for path in Path(folder).glob("lib/libcudart.so.12"):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    torch.ops.load_library(str(library))


def _opaque(name: str, run: Kernel) -> Kernel:
    """The kernel as an operator that torch.compile keeps as one node instead of tracing it."""
    import torch
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
