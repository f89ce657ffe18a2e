"""torch.compile over the denoiser's repeated blocks, or over all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qbench.recipe.schema import Compile

if TYPE_CHECKING:
    from qbench.pipelines.base import VideoPipeline

BATCH_SIZES = 4  # at most, in a run: one video, a batch, a smaller one, those followed by step


def apply(video: VideoPipeline, wanted: Compile, hooked: bool) -> None:
    """Wrap in place; the compiler itself runs at the first call.

    Regional compilation compiles one block and reuses it for its twins. diffusers' own helper needs
    a `_repeated_blocks` that CogVideoX's transformer does not have, so the family names them. A
    UNet's come in more shapes than torch compiles of one function before it gives up and runs the
    rest as they are, which would be measured as compiled: the limit is raised, and is an error. Of
    blocks that will be `hooked` (by a cache, by group offload) only the forward is compiled: hooks
    come around it later, since a hook that is traced makes every block a program of its own.
    """
    import torch

    module = video.denoiser
    how: dict[str, Any] = {
        "mode": wanted.mode,
        "dynamic": False,
        "fullgraph": wanted.fullgraph,
    }
    if wanted.scope == "model":
        module.compile(**how)
        return
    parts = video.compiled_parts()
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, len(parts) * BATCH_SIZES)
    limits.fail_on_recompile_limit_hit = True
    for block in parts:
        if hooked:
            block.forward = torch.compile(block.forward, **how)
        else:
            block.compile(**how)
