"""The blocks that a denoiser of diffusers is a stack of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.errors import Unsupported

if TYPE_CHECKING:
    from qbench.pipelines.base import Module


def blocks_of(module: Module) -> list[Module]:
    """In order, at whatever depth. Raises Unsupported where diffusers names none."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    names = getattr(module, "_repeated_blocks", None)
    if names:
        found = [layer for layer in module.modules() if type(layer).__name__ in names]
    else:
        TransformerBlockRegistry._register()
        kinds = tuple(TransformerBlockRegistry._registry)
        found = [layer for layer in module.modules() if isinstance(layer, kinds)]
    if not found:
        raise Unsupported(f"diffusers names no repeated blocks of a {type(module).__name__}")
    return found
