"""A recipe in effect on a diffusers pipeline that somebody else loaded: `apply` and `restore`.

What a call of the pipeline makes from then on is in `calls.py`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from qbench import calls, engines, support
from qbench.errors import InputError, Unsupported, brief
from qbench.optimizations import axes, memory
from qbench.optimizations.calibration import Occasion
from qbench.optimizations.changes import Changes
from qbench.pipelines import families, known, specs
from qbench.recipe.choices import AS_MODULE
from qbench.recipe.schema import Dtype, Recipe

if TYPE_CHECKING:
    from qbench.engines.manifest import Manifest
    from qbench.pipelines.base import Denoiser, Pipe, VideoPipeline
    from qbench.pipelines.known import Model
    from qbench.pipelines.values import Resolved

_DTYPES: dict[str, Dtype] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
ROUNDED = "weights were rounded to another dtype: load the pipeline again"


def apply(pipe: Pipe, recipe: Recipe) -> Pipe:
    """Put every axis of the recipe in effect on `pipe`, in place, and return it.

    The denoiser is cast to the recipe's dtype, the VAE and the text encoders to those that a run
    gives them. Raises InputError for a pipeline that is not driven, that has a recipe
    already, or whose weights are rounded further than the recipe's dtype; Unsupported, with the
    reason of a skipped row, where this machine or model cannot run the recipe.
    """
    if recipe.variant.exported:
        raise InputError("variant.exported: give the pipeline qbench.load_engine(folder) instead")
    if state_of(pipe):
        raise InputError("a recipe is in effect on this pipeline: call qbench.restore(pipe) first")
    video = families.wrap(pipe)
    _check_dtype(video, recipe.variant.dtype)
    _check_offload(video, recipe)
    model, variant = model_of(video), recipe.variant
    device = str(pipe._execution_device.type)
    changes = Changes("pipeline")
    changes.replace(pipe, "scheduler", pipe.scheduler)
    run = video.resolve(model, recipe.generation, variant.step_share)
    facts = support.model_facts(video, run.guided, run.frames)
    machine = dataclasses.replace(support.this_machine(device), model=facts)
    if reason := support.why_not(variant, machine):
        changes.undo()
        raise Unsupported(reason)
    cast_changes = _cast(video, model, variant.dtype, device)
    memory.prepare(variant.memory, device)
    occasion = Occasion(run, model, tests=())
    applied = axes.apply(video, variant, device, run.steps, occasion)
    if variant.engine:
        changes = _build_engine(video, recipe, run, changes)
    state = calls.Live(video, model, recipe, run, applied, (changes, cast_changes), machine)
    plain = type(pipe)
    object.__setattr__(pipe, calls.STATE, state)
    pipe.__class__ = type(plain.__name__, (calls.Applied, plain), {"__module__": plain.__module__})
    return pipe


def apply_engine(pipe: Pipe, folder: Path) -> Pipe:
    """Put the engine of an exported folder in place, and in effect what is not inside it.

    A denoiser that `load_engine` gave already stays. Raises what `load_engine` and `apply` raise,
    and InputError where the pipeline's own denoiser is not the one that the folder stands for.
    """
    from qbench.engines import exported, loading, manifest

    written, _ = manifest.read(folder)
    video = families.wrap(pipe)
    before = video.denoiser
    if loading.source_of(before) != folder.resolve():
        _check_same_model(video, written, folder)
        video.denoiser = cast("Denoiser", loading.load_engine(folder))
    rest = exported.outside(written.recipe.variant, written.format)
    try:
        apply(pipe, written.recipe.model_copy(update={"variant": rest}))
    except Exception:
        video.denoiser = before
        raise
    state = state_of(pipe)
    assert state is not None
    state.size_held = written.format not in AS_MODULE
    state.on_undo(lambda: setattr(video, "denoiser", before))
    return pipe


def _check_same_model(video: VideoPipeline, written: Manifest, folder: Path) -> None:
    """By its configuration: a deployment may hold the weights anywhere, or those of the folder."""
    from qbench.engines import loading

    of, own = written.base_model, type(video.denoiser).__name__
    differs = ""
    if (video.pipeline_class, own) != (of.pipeline, of.denoiser):
        differs = f"this is {own} of a {video.pipeline_class}, not {of.denoiser} of a {of.pipeline}"
    else:
        theirs = dict(video.denoiser.config)
        for name, value in loading.configuration(folder, written).items():
            # The folder's own, or of another version of diffusers.
            if name.startswith("_") or name == "quantization_config" or name not in theirs:
                continue
            if json.dumps(theirs[name]) != json.dumps(value):
                differs = f"its {name} is {brief(theirs[name])}, not {brief(value)}"
                break
    if differs:
        raise InputError(
            f"{folder}: exported of {of.source}, and this pipeline's denoiser is another: {differs}"
        )


def restore(pipe: Pipe) -> list[str]:
    """Take back what `apply` did; a sentence for each change that cannot be taken back.

    Raises InputError where no recipe is in effect.
    """
    state = state_of(pipe)
    if state is None:
        raise InputError("no recipe is in effect on this pipeline")
    pipe.__class__ = next(kind for kind in type(pipe).__mro__[2:])
    object.__delattr__(pipe, calls.STATE)
    return state.undo()


def state_of(pipe: Pipe) -> calls.Live | None:
    """What `apply` left on the pipeline."""
    return cast("calls.Live | None", getattr(pipe, "__dict__", {}).get(calls.STATE))


def model_of(video: VideoPipeline) -> Model:
    """The known model, hub id or folder that the pipeline was loaded from, with its defaults."""
    source = str(getattr(video.pipe, "name_or_path", "") or "pipeline")
    try:
        found = specs.find(source)
    except InputError:  # made in Python, or its folder is gone
        found = known.Model(name="pipeline", source=source)
    return specs.with_defaults(found, type(video), video.configs())


def _cast(video: VideoPipeline, model: Model, dtype: Dtype, device: str) -> Changes:
    """The denoiser in the recipe's dtype, the VAE and the text encoders in those of a run."""

    changes = Changes("dtype")
    dtypes = specs.part_dtypes(model, dtype, video.part, device)
    parts = [(video.denoiser, dtypes[video.part]), (video.pipe.vae, dtypes["vae"])]
    parts += [(part, dtypes["default"]) for part in video.text_encoders()]
    for module, wanted in parts:
        if module is not None and module.dtype != wanted:
            specs.cast(module, wanted)
            changes.permanent = ROUNDED
    return changes


def _check_dtype(video: VideoPipeline, dtype: Dtype) -> None:
    now = _DTYPES[str(video.denoiser.dtype).removeprefix("torch.")]
    if now not in ("fp32", dtype):
        raise InputError(
            f"the denoiser was loaded in {now}, and its weights are rounded: load the pipeline "
            f"with torch_dtype float32, or in {dtype}, for this recipe"
        )


def _check_offload(video: VideoPipeline, recipe: Recipe) -> None:
    """An engine is built for the device where the module lies between calls."""
    if recipe.variant.engine and memory.is_offloaded(video.denoiser):
        raise InputError(
            "variant.engine: this pipeline's denoiser is offloaded, and an engine is built where "
            "it lies: call qbench.apply first, and offload the pipeline then"
        )


def _build_engine(video: VideoPipeline, recipe: Recipe, run: Resolved, changes: Changes) -> Changes:
    folder = Path(tempfile.mkdtemp(prefix="qbench-engine-"))
    changes.on_undo(lambda: shutil.rmtree(folder, ignore_errors=True))
    module = video.denoiser
    changes.on_undo(lambda: setattr(video, "denoiser", module))
    first = video.encode(run, ["a video"]), video.noise(run, run.seed)
    engines.build(video, run, *first, recipe, folder)
    return changes
