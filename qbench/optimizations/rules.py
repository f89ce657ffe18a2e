"""Rules of what runs where, as data: the machine, the model, and why a variant cannot run there.

A rule stands beside the axis that it is about; `qbench.support` puts them together and says what
this machine is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qbench.recipe.schema import Variant


@dataclass(frozen=True)
class ModelFacts:
    """What rules ask of a model and of what is generated with it.

    linears: name of each linear of the denoiser -> its input features.
    head_dim: channels of one attention head, where all blocks have the same.
    blocks: whether diffusers' cache hooks know the denoiser's blocks.
    guided: whether each step also denoises the unconditional half (guidance above 1).
    in_blocks: those of the linears that `compile` with scope blocks compiles.
    one_row: those that see one row a video.
    row_a_frame: those that see one for each of the frames, of which a video has so many.
    """

    pipeline: str
    linears: dict[str, int]
    head_dim: int | None
    blocks: bool
    guided: bool
    causal_vae: bool = True  # CogVideoX's, which the decode in strips is written for
    exports: bool = True  # to ONNX, for engines
    separate_guidance: bool = False  # both halves of guidance in calls of their own
    in_blocks: frozenset[str] = frozenset()
    one_row: frozenset[str] = frozenset()
    row_a_frame: frozenset[str] = frozenset()
    frames: int = 1


@dataclass(frozen=True)
class Machine:
    """The facts that decide what can run. `model` is None where none has been looked at yet."""

    device: str  # cpu or cuda
    capability: tuple[int, int] = (0, 0)  # CUDA compute capability
    packages: frozenset[str] = frozenset()
    devices: int = 1  # GPUs that a run may use
    compiler: bool = True  # a C++ compiler, which inductor needs on a CPU
    model: ModelFacts | None = None

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"


def always(*_: object) -> bool:
    return True


def never(*_: object) -> bool:
    return False


@dataclass(frozen=True)
class Rule:
    """One reason why a variant cannot run, and where that is so.

    applies: which variants it is about.
    holds: whether the machine has what they need; `never` where no machine has, for its choices
        exclude each other, and `always` where only the model or the variant decides.
    fits: whether the model has; asked only where the model is known.
    room: whether the machine has as much as this variant needs, where that is for it to say.
    reason: what a skipped row shows where one of the two is false.
    fails: whether a variant that is run all the same fails; if not, it would run but be something
        else than its recipe says.
    """

    about: str
    applies: Callable[[Variant], bool]
    holds: Callable[[Machine], bool]
    reason: str
    fails: bool = True
    fits: Callable[[Variant, ModelFacts], bool] = always
    room: Callable[[Variant, Machine], bool] = always

    @property
    def excludes(self) -> bool:
        """Whether no machine runs what it is about: choices exclude each other."""
        return self.holds is never

    @property
    def by_machine(self) -> bool:
        """Whether the machine decides, before any model or recipe is known."""
        return self.holds not in (always, never)

    def refuses(self, variant: Variant, machine: Machine) -> bool:
        if not self.applies(variant):
            return False
        if not self.holds(machine) or not self.room(variant, machine):
            return True
        return machine.model is not None and not self.fits(variant, machine.model)


def clash(about: str, applies: Callable[[Variant], bool], reason: str) -> Rule:
    """Choices that no machine brings together: they would run, as something else."""
    return Rule(about, applies, never, reason, fails=False)
