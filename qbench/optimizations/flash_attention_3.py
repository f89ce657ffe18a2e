"""FlashAttention 3: from its own package, a build of its forward kernels, or xformers' wheel.

Queries, keys and values are (batch, tokens, heads, channels).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qbench.errors import Unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.pipelines.attention import Kernel

# The modules: of its own package, which has to be built, and of fa3-fwd, in BF16 and FP8 alone.
OWN, FORWARD_OF_3 = "flash_attn_interface", "fa3_fwd_interface"


class Function(Protocol):
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, **scales: Tensor
    ) -> Tensor | tuple[Tensor, ...]: ...


def _function() -> Function:
    """Of its own package, or of fa3-fwd."""
    if importlib.util.find_spec(OWN):
        from flash_attn_interface import flash_attn_func
    else:
        from fa3_fwd_interface import flash_attn_func
    function: Function = flash_attn_func
    return function


def forward() -> Kernel:
    """Of its own package, of the library inside xformers' wheel, or of fa3-fwd."""
    import torch

    if importlib.util.find_spec("xformers") and not importlib.util.find_spec(OWN):
        _load_library_of_xformers()
        return lambda q, k, v: torch.ops.flash_attn_3.fwd(q, k, v)[0]
    function = _function()
    return lambda q, k, v: first(function(q, k, v))


def forward_in_fp8() -> Kernel:
    """Of its own package or of fa3-fwd; the library inside xformers has no FP8 kernels."""
    function = _function()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q8, k8, v8 = (per_head(x) for x in (q, k, v))
        scales = {"q_descale": q8[1], "k_descale": k8[1], "v_descale": v8[1]}
        return first(function(q8[0], k8[0], v8[0], **scales)).to(q.dtype)

    return attend


def per_head(x: Tensor) -> tuple[Tensor, Tensor]:
    """x: (batch, tokens, heads, channels) in FP8 (E4M3), and what each head is to be scaled by.

    The scales are (batch, heads) float32: as FlashAttention 3 takes them.
    """
    import torch

    format = torch.finfo(torch.float8_e4m3fn)
    scales = x.float().abs().amax((1, 3)).clamp_min(format.tiny) / format.max
    rounded = (x.float() / scales[:, None, :, None]).clamp(format.min, format.max)
    return rounded.to(torch.float8_e4m3fn), scales


def first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _load_library_of_xformers() -> None:
    """Load the library alone: the package around it insists on the torch that it was built with."""
    import ctypes

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
