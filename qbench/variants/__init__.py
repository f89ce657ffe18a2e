"""What a recipe changes about a live pipeline, axis by axis, in the order in which they must be."""

from __future__ import annotations

from typing import Any

from qbench.recipe import Variant


def apply_eager(pipeline: Any, variant: Variant, device: str) -> dict[str, Any]:
    """Quantization, attention and memory: all that comes before compilation or an engine.

    Returns facts for the record, such as the share of parameters that was quantized.
    """
    from qbench.models import denoiser
    from qbench.variants import attention, memory, quantization

    facts: dict[str, Any] = {}
    if variant.quantize and not variant.engine:
        facts |= quantization.apply(denoiser(pipeline), variant.quantize)
    attention.apply(pipeline, variant.attention)
    memory.apply(pipeline, variant.memory, device)
    return facts
