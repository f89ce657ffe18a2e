"""What every format and engine defines: how a denoiser is written to files, and opened again."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from qbench.optimizations.rules import Rule
from qbench.recipe.choices import ENGINES
from qbench.recipe.schema import Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qbench.engines.inputs import Signature
    from qbench.engines.manifest import Bound, Interface
    from qbench.engines.static_seen import Seen
    from qbench.pipelines.base import Module, VideoPipeline

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

    import torch

    def run(tensors: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            made = module(**written.nested(tensors), return_dict=False)
        assert isinstance(made, tuple)
        sample: Tensor = made[0]
        return sample

    return run
