"""What every engine is: a denoiser that left the Python model, behind the same interface."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from diffusers.models.modeling_utils import ModelMixin

from qbench.engines.inputs import Signature

if TYPE_CHECKING:
    from qbench.engines.base import Run
    from qbench.engines.manifest import TensorSpec
    from qbench.meters.profile import Layer
    from qbench.pipelines.base import Config


class Original(Protocol):
    """What pipelines read of the denoiser that an engine stands for."""

    config: Config
    dtype: torch.dtype
    device: torch.device


class EngineDenoiser(ModelMixin):
    """Stands where the pipeline's denoiser stood: called the same, with the same `.config`.

    It takes every input that it was built with, by name. What the pipeline passes besides, an input
    that it leaves out, and a size or dtype other than that of `inputs` are refused: the video would
    be another than the module's. It keeps nothing of the module itself, whose weights are freed
    where nobody else holds them.

    A model of diffusers by type alone: a pipeline asks its models which device it is on, may hold
    no other, and `from_pretrained` gives it nothing else. Where a pipeline is offloaded, its engine
    stays on its device.
    """

    dtype = torch.float32  # in place of diffusers' properties, which ask parameters
    device = torch.device("cpu")

    def __init__(
        self,
        original: Original,
        signature: Signature,
        run: Run,
        stored_bytes: int,
        inputs: Sequence[TensorSpec] = (),
    ) -> None:
        super().__init__()
        self.config = original.config
        self.dtype, self.device = original.dtype, original.device
        # Offload of a pipeline's other models asks each model where its parameters are.
        nothing = torch.empty(0, dtype=self.dtype, device=self.device)
        self._place = torch.nn.Parameter(nothing, requires_grad=False)
        self.stored_bytes = stored_bytes
        self._signature, self._run, self._inputs = signature, run, tuple(inputs)

    def cache_context(self, name: str, **where: object) -> contextlib.AbstractContextManager[None]:
        """The pipeline asks for it around each call; an engine caches nothing."""
        return contextlib.nullcontext()

    def layers(self, step: Callable[[], object]) -> list[Layer]:
        """What the runtime's own profiler says of `step`, which calls this engine.

        Empty where the runtime has none.
        """
        own: Callable[[Callable[[], object]], list[Layer]] | None
        own = getattr(self._run, "layers", None)
        return own(step) if own else []

    def to(self, *_: object, **__: object) -> EngineDenoiser:  # type: ignore[override]
        """Pipelines move their parts; an engine stays where it was built."""
        return self

    def forward(self, *args: object, return_dict: bool = True, **kwargs: object) -> object:
        tensors = self._signature.tensors(args, kwargs)
        for spec in self._inputs:
            given = tensors[spec.name]
            spec.check(tuple(given.shape), str(given.dtype).removeprefix("torch."))
        sample = self._run(tensors)
        if not return_dict:
            return (sample,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=sample)
