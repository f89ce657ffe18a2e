"""Which kernel computes attention.

CogVideoX's processor calls `scaled_dot_product_attention` itself, so diffusers' own switch does not
reach it; torch's does, since it acts on that very call.
"""

from __future__ import annotations

from typing import Any


def apply(pipeline: Any, kernel: str) -> None:
    """Leave one kernel enabled for the rest of this process, which runs one recipe only."""
    if kernel == "auto":
        return
    import torch

    torch.backends.cuda.enable_math_sdp(kernel == "math")
    torch.backends.cuda.enable_flash_sdp(kernel == "flash")
    torch.backends.cuda.enable_mem_efficient_sdp(kernel == "efficient")
    torch.backends.cuda.enable_cudnn_sdp(kernel == "cudnn")
