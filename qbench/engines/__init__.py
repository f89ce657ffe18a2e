"""Denoisers that left the Python model: exported, built, and put back behind the same interface."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines.inputs import Signature
from qbench.errors import Unsupported
from qbench.recipe.schema import Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qbench.pipelines.base import Conditioning, Module, Resolved, VideoPipeline

PARITY_STEPS = 4  # of a short schedule over the whole range, on which parity is checked

# Tensors by name (those of a tuple as `name_0`, `name_1`) -> the prediction.
Run = Callable[[Mapping[str, "Tensor"]], "Tensor"]


class EngineDenoiser:
    """Stands where the pipeline's denoiser stood: called the same, with the same `.config`.

    It takes every input that it was built with, by name. What the pipeline passes besides, and an
    input that it leaves out, is refused: the video would be another than the module's.
    """

    def __init__(self, original: Module, signature: Signature, run: Run, stored_bytes: int) -> None:
        self.config = original.config
        self.dtype, self.device = original.dtype, original.device
        self.stored_bytes = stored_bytes
        self._signature, self._run = signature, run

    def cache_context(self, name: str, **where: object) -> contextlib.AbstractContextManager[None]:
        """The pipeline asks for it around each call; an engine caches nothing."""
        return contextlib.nullcontext()

    def to(self, *_: object, **__: object) -> EngineDenoiser:
        """Pipelines move their parts; an engine stays where it was built."""
        return self

    def __call__(self, *args: object, return_dict: bool = True, **kwargs: object) -> object:
        sample = self._run(self._signature.tensors(args, kwargs))
        if not return_dict:
            return (sample,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=sample)


def build(
    video: VideoPipeline,
    run: Resolved,
    conditioning: Conditioning,
    latents: torch.Tensor,
    variant: Variant,
    work: Path,
) -> dict[str, float]:
    """Export and build the variant's engine in `work`, check it, and put it into the pipeline.

    conditioning, latents: of one video. The inputs that the engine is built for and checked on are
    those that the pipeline itself passes in its loop for them.
    Returns facts for the record, the parity with the module among them.
    """
    from qbench.engines import onnx, onnxruntime, tensorrt
    from qbench.engines.inputs import signature
    from qbench.engines.verify import parity

    if not video.exports:
        raise Unsupported(f"engine: the denoiser of a {video.pipeline_class} is not exported yet")
    module = video.denoiser
    steps = video.captured(run, conditioning, latents, steps=PARITY_STEPS)
    calls = [call for step in steps for call in step]
    built_for = signature(video, run, conditioning, latents)
    example = built_for.tensors((), calls[0])
    exported = onnx.export(module, built_for, example, work / "denoiser.onnx")
    engine: EngineDenoiser
    if variant.engine == "onnxruntime":
        if variant.quantize:
            exported = onnxruntime.quantize(exported)
        engine = onnxruntime.load(module, built_for, exported)
    elif variant.engine == "tensorrt":
        plan = tensorrt.build(exported, built_for, example)
        engine = tensorrt.load(module, built_for, plan)
    else:
        raise ValueError(f"no such engine: {variant.engine}")
    facts = parity(module, engine, calls, exact=variant.quantize is None)
    video.denoiser = engine
    return facts
