"""Denoisers that left the Python model: exported, built, and put back behind the same interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qbench.recipe.schema import Variant


class EngineDenoiser:
    """Stands where the pipeline's denoiser stood: called the same, with the same `.config`.

    `run` maps (hidden_states, encoder_hidden_states, timestep) to the prediction.
    """

    def __init__(self, original: Any, run: Any, stored_bytes: int) -> None:
        self.config = original.config
        self.dtype, self.device = original.dtype, original.device
        self.stored_bytes = stored_bytes
        self._run = run

    def cache_context(self, name: str) -> Any:
        """The pipeline asks for it around each call; an engine caches nothing."""
        import contextlib

        return contextlib.nullcontext()

    def to(self, *_: Any, **__: Any) -> EngineDenoiser:
        """Pipelines move their parts; an engine stays where it was built."""
        return self

    def __call__(
        self,
        hidden_states: Any,
        encoder_hidden_states: Any,
        timestep: Any,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        sample = self._run(hidden_states, encoder_hidden_states, timestep)
        if not return_dict:
            return (sample,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=sample)


def build(pipeline: Any, inputs: tuple[Any, ...], variant: Variant, work: Path) -> dict[str, Any]:
    """Export and build the variant's engine in `work`, check it, and put it into the pipeline.

    inputs: example (hidden_states, encoder_hidden_states, timestep) of the shape that will be run.
    Returns facts for the record, the parity with the eager module among them.
    """
    from qbench.engines import onnx, onnxruntime, tensorrt
    from qbench.engines.verify import parity
    from qbench.pipelines.specs import denoiser, replace_denoiser

    module = denoiser(pipeline)
    exported = onnx.export(module, inputs, work / "denoiser.onnx")
    if variant.engine == "onnxruntime":
        if variant.quantize:
            exported = onnxruntime.quantize(exported)
        engine = onnxruntime.load(module, exported)
    else:
        engine = tensorrt.load(module, tensorrt.build(exported, inputs), inputs)
    facts = parity(module, engine, inputs, exact=variant.quantize is None)
    replace_denoiser(pipeline, engine)
    return facts
