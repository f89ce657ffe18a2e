"""What runs where, and why not: the rules of all axes, and the machine that they are held against.

Each axis has its rules beside it; here they are put together. `scripts/combinations.py` runs every
choice and pair of choices with the rules put aside, and tests hold the rules against what came of
it.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import shutil
from typing import TYPE_CHECKING

from qbench import engines
from qbench.engines import exported
from qbench.errors import Unsupported
from qbench.optimizations import (
    attention,
    caching,
    compilation,
    graphs,
    memory,
    parallel,
    schemes,
    sparse,
)
from qbench.optimizations.rules import Machine, ModelFacts, Rule
from qbench.optimizations.vae import patch
from qbench.recipe.schema import Variant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qbench.pipelines.base import Module, VideoPipeline

__all__ = ["PACKAGES", "RULES", "Machine", "ModelFacts", "Rule", "refusing", "why_not"]

RULES: tuple[Rule, ...] = (
    *schemes.RULES,
    *attention.RULES,
    *compilation.RULES,
    *graphs.RULES,
    *caching.RULES,
    *memory.RULES,
    *patch.RULES,
    *parallel.RULES,
    *sparse.RULES,
    *engines.rules(),
)
PACKAGES: tuple[str, ...] = (
    *schemes.PACKAGES,
    *attention.PACKAGES,
    *caching.PACKAGES,
    *engines.packages(),
)


def refusing(variant: Variant, machine: Machine) -> list[Rule]:
    """The rules by which the variant cannot run there.

    Of an exported folder those about what is chosen beside it, alone or with what it holds: what it
    holds alone ran where it was written, and says itself where it runs.
    """
    if variant.exported is None:
        return [rule for rule in RULES if rule.refuses(variant, machine)]
    chosen, (own, whole) = exported.outside(variant), exported.held(variant)
    return [
        rule
        for rule in RULES
        if rule.refuses(chosen, machine)
        or (rule.refuses(whole, machine) and not rule.refuses(own, machine))
    ]


def why_not(variant: Variant, machine: Machine) -> str | None:
    """The reason that the variant cannot run there, or None where it can."""
    rules = refusing(variant, machine)
    return rules[0].reason if rules else None


def check(variant: Variant, machine: Machine) -> None:
    """Raise Unsupported, with the reason, where the variant cannot run there."""
    if reason := why_not(variant, machine):
        raise Unsupported(reason)


def this_machine(device: str = "auto") -> Machine:
    """The machine as found; `device` is what the recipe asks for.

    What GPUs there are is torch's to say, and torch takes a second to load: where no driver is, or
    none is asked for, it is not.
    """
    capability, devices = (0, 0), 0
    if device != "cpu" and (device != "auto" or _nvidia_driver()):
        import torch

        if torch.cuda.is_available():
            capability, devices = torch.cuda.get_device_capability(), torch.cuda.device_count()
    packages = set(filter(_installed, PACKAGES))
    try:
        importlib.metadata.version("onnxruntime-gpu")
        packages.add("onnxruntime-gpu")  # one module, two packages: only the name tells them apart
    except importlib.metadata.PackageNotFoundError:
        pass
    return Machine(
        device="cuda" if devices else "cpu",
        capability=capability,
        packages=frozenset(packages),
        devices=max(devices, 1),
        compiler=any(map(shutil.which, ("g++", "clang++", "c++"))),
    )


def _nvidia_driver() -> bool:
    """Whether the library is here by which torch looks for GPUs."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def model_facts(video: VideoPipeline, guided: bool, frames: int) -> ModelFacts:
    """What rules ask of a live pipeline that will make videos of so many frames.

    guided: whether guidance will be above 1.
    """
    import torch

    module = video.denoiser
    head_dim = getattr(module.config, "attention_head_dim", None)
    linears = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer.weight.dtype == module.dtype
    }
    compiled = _compiled(video)

    def named(parts: Sequence[str]) -> frozenset[str]:
        return frozenset(name for name in linears if any(part in name for part in parts))

    return ModelFacts(
        pipeline=video.pipeline_class,
        linears={name: layer.in_features for name, layer in linears.items()},
        head_dim=head_dim if isinstance(head_dim, int) else None,
        blocks=hasattr(module, "enable_cache"),
        guided=guided,
        causal_vae=patch.fuses(video.pipe.vae),
        exports=video.exports,
        separate_guidance=video.separate_guidance,
        in_blocks=frozenset(name for name, layer in linears.items() if layer in compiled),
        one_row=named(video.one_row),
        row_a_frame=named(video.row_a_frame),
        frames=frames,
    )


def _compiled(video: VideoPipeline) -> set[Module]:
    """The layers of the parts that regional compilation compiles; none where a model has none."""
    try:
        return {layer for part in video.compiled_parts() for layer in part.modules()}
    except Unsupported:
        return set()


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
