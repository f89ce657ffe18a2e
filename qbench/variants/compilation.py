"""torch.compile over the denoiser's repeated blocks, or over all of it."""

from __future__ import annotations

from typing import Any

from qbench.recipe import Compile


def apply(pipeline: Any, wanted: Compile) -> None:
    """Wrap in place; the compiler itself runs at the first call.

    Regional compilation compiles one block and reuses it for its twins. diffusers' own helper needs
    a `_repeated_blocks` that CogVideoX's transformer does not have, so the family names them.
    """
    from qbench.models import denoiser, family

    module = denoiser(pipeline)
    if wanted.scope == "model":
        module.compile(mode=wanted.mode, dynamic=False)
        return
    for block in family(pipeline).repeated_blocks(module):
        block.compile(mode=wanted.mode, dynamic=False)
