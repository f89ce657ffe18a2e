"""What every engine is: a denoiser that left the Python model, behind the same interface."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch

from qbench.engines.inputs import Signature
from qbench.optimizations.rules import Rule
from qbench.recipe.choices import ENGINES
from qbench.recipe.schema import Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qbench.engines.manifest import Bound, Interface, TensorSpec
    from qbench.engines.static_seen import Seen
    from qbench.meters.profile import Layer
    from qbench.pipelines.base import Config, Module, VideoPipeline

# Tensors by name (those of a tuple as `name_0`, `name_1`) -> the prediction.
Run = Callable[[Mapping[str, "Tensor"]], "Tensor"]


class Format(Protocol):
    """How a denoiser is written to files and opened again."""

    def refuses(self, variant: Variant) -> str:
        """Why this variant cannot be written in this format; empty where it can."""

    def write(
        self,
        video: VideoPipeline,
        signature: Signature,
        example: Mapping[str, Tensor],
        variant: Variant,
        folder: Path,
        seen: Mapping[str, Seen] | None = None,
    ) -> Bound:
        """Write the denoiser, with the variant in effect, into `folder`; what binds it.

        example: the tensors of one call by name.
        seen: inputs of the linears along denoise trajectories, where they are to be known.
        """

    def open(self, folder: Path, shell: Module, written: Interface) -> Run | nn.Module:
        """The engine of a folder that was checked. `shell` is the denoiser, maybe without data.

        A format whose engine is torch's module gives that module, in eval mode.
        """


class Engine(Format, Protocol):
    """A format that recipes measure: what `qbench/engines/<name>.py` defines, of ENGINES."""

    @property
    def RULES(self) -> tuple[Rule, ...]: ...

    @property
    def PACKAGES(self) -> tuple[str, ...]: ...


def engine(name: str) -> Engine:
    """The kind of engine of this name. Raises KeyError where there is none."""
    if name not in ENGINES:
        raise KeyError(name)
    return cast(Engine, importlib.import_module(f"qbench.engines.{name}"))


def run_of(module: Callable[..., object], written: Interface) -> Run:
    """A denoiser as a function of its tensors by name."""

    def run(tensors: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            made = module(**written.nested(tensors), return_dict=False)
        assert isinstance(made, tuple)
        sample: Tensor = made[0]
        return sample

    return run


class Original(Protocol):
    """What pipelines read of the denoiser that an engine stands for."""

    config: Config
    dtype: torch.dtype
    device: torch.device


class EngineDenoiser(torch.nn.Module):
    """Stands where the pipeline's denoiser stood: called the same, with the same `.config`.

    It takes every input that it was built with, by name. What the pipeline passes besides, an input
    that it leaves out, and a size other than that of `inputs` are refused: the video would be
    another than the module's. It keeps nothing of the module itself, whose weights are freed where
    nobody else holds them.

    A module of torch by type alone: a pipeline asks its modules which device it is on, and may hold
    no other.
    """

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

    def to(self, *_: object, **__: object) -> EngineDenoiser:
        """Pipelines move their parts; an engine stays where it was built."""
        return self

    def forward(self, *args: object, return_dict: bool = True, **kwargs: object) -> object:
        tensors = self._signature.tensors(args, kwargs)
        for spec in self._inputs:
            spec.check(tuple(tensors[spec.name].shape))
        sample = self._run(tensors)
        if not return_dict:
            return (sample,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=sample)
