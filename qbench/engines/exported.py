"""A folder that `qbench export` wrote, measured like any variant: `qbench run FOLDER`.

Its recipe is the manifest's, with the denoiser taken from the folder. What the folder does not hold
(the decode, a share of the steps, the compiler for a checkpoint) is in effect as in any run.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qbench import textfile
from qbench.engines import evidence, formats, loading, manifest
from qbench.engines.base import run_of
from qbench.engines.manifest import Elsewhere, Manifest, Wrong
from qbench.errors import InputError, LoadError, Mistakes, Unsupported
from qbench.pipelines import specs
from qbench.recipe import files
from qbench.recipe.choices import AS_MODULE, ExportFormat
from qbench.recipe.files import Loaded
from qbench.recipe.schema import Exported, Generation, Recipe, Variant

if TYPE_CHECKING:
    from qbench.pipelines.base import Module, VideoPipeline
    from qbench.pipelines.known import Model

# Of a variant, what is chosen where a denoiser is used; the rest was chosen as it was written.
FREE = ("decode", "memory", "seed_offset", "step_share")
FIRST_CALL = "engine_first_call_s"  # of the record: how much later it was than the next one
FREE_OF: dict[ExportFormat, tuple[str, ...]] = {
    "diffusers": ("attention", "cache", "compile", "cuda_graph"),
    "qbench": ("cache", "cuda_graph"),
}


def free(form: ExportFormat) -> tuple[str, ...]:
    """The fields of a variant that a folder of this format leaves to be chosen."""
    return (*FREE_OF.get(form, ()), *FREE)


def recipe_of(folder: Path, overrides: Mapping[str, str], options: Mapping[str, str]) -> Loaded:
    """The recipe of an exported folder, changed by `overrides` where the folder leaves a choice.

    Raises InputError, one line, for a manifest that cannot be read and a choice that was made.
    """
    try:
        written, digest = manifest.read(folder)
    except (Wrong, Elsewhere) as error:
        raise InputError(str(error)) from None
    textfile.nameable(folder, str(folder))
    left = free(written.format)
    mistakes = Mistakes()
    for key in overrides:
        section, _, field = key.partition(".")
        if section == "variant" and field.partition(".")[0] not in left:
            mistakes.add(
                f"--set {key}={overrides[key]}: {folder} holds a denoiser that was written with "
                f"its own; what is left to choose: {', '.join(left)}"
            )
    mistakes.tell()
    held = Exported(folder=str(folder), sha256=digest, format=written.format)
    recipe, variant = written.recipe, written.recipe.variant
    named = variant.engine and formats.implied(variant) == written.format
    changes: dict[str, object] = {
        "name": f"exported/{recipe.name}" + ("" if named else f"-{written.format}"),
        "about": f"{recipe.about or recipe.name}, as exported: {written.format}",
        "device": written.target.device,
        "variant": variant.model_copy(update={"exported": held}),
        "noise_floor": False,
        "expects": None,
    }
    if recipe.is_reference:
        changes["reference"] = recipe.name
    return files.revised(recipe.model_copy(update=changes), folder, overrides, options)


def check(recipe: Recipe, trust: bool, expect: Sequence[str]) -> None:
    """Raise InputError for what no run of the folder could succeed with, told by its manifest.

    Files that are missing or of another size, machine code that nobody vouched for, another
    manifest, another model or another size than it was exported for. expect: SHA-256 of manifests
    that the user vouches for.
    """
    held = recipe.variant.exported
    if held is None:
        return
    folder = Path(held.folder)
    try:
        written, digest = manifest.read(folder)
        if digest != held.sha256:
            raise Wrong(f"{folder / manifest.FILE}: its SHA-256 is {digest}, not {held.sha256}")
        manifest.check_listing(folder, written)  # what is in them is read when its turn comes
        wanted = next((one for one in expect if one.lower() == digest), next(iter(expect), None))
        loading.check_trust(folder, written, digest, trust, wanted)
        model = specs.find(recipe.model)
        _check_base(written, recipe, model)
    except (Wrong, Elsewhere) as error:
        raise InputError(str(error)) from None
    if written.format not in AS_MODULE:
        _check_size(folder, model, written.recipe.generation, recipe.generation)


def _check_size(folder: Path, model: Model, built: Generation, asked: Generation) -> None:
    """What an engine computes is laid out for the frames, height and width of one video."""
    sizes = [
        specs.video_shape(model, one) or (one.frames, one.height, one.width)
        for one in (built, asked)
    ]
    if any(None not in pair and len(set(pair)) > 1 for pair in zip(*sizes, strict=True)):
        of, wanted = ("x".join(str(n or "?") for n in size) for size in sizes)
        raise InputError(
            f"{folder}: generation: exported for videos of {of} (frames, height, width), and these "
            f"are of {wanted}: export the recipe at that size"
        )


def outside(variant: Variant, form: ExportFormat | None = None) -> Variant:
    """What of the variant is not inside the folder that holds it, which is of the format `form`.

    form: by default that of the folder which the variant is measured from, if any.
    """
    form = form or (variant.exported.format if variant.exported else None)
    if form is None:
        return variant
    left = {name: getattr(variant, name) for name in free(form)}
    return Variant(dtype=variant.dtype, **left)


def held(variant: Variant) -> tuple[Variant, Variant]:
    """What a folder holds by itself, and with what was chosen where it is used.

    For rules of what goes with what: a denoiser that stays a module was quantized or compiled by
    its recipe, whoever goes on with it. Calibration is over, so nothing of it is in the way.
    """
    chosen = outside(variant)
    if variant.exported is None or variant.left_python:
        return Variant(dtype=variant.dtype), chosen
    left = free(variant.exported.format)
    own = variant.model_copy(
        update={
            "exported": None,
            "quantize": variant.quantize
            and variant.quantize.model_copy(update={"calibration": None}),
            **{name: getattr(Variant(), name) for name in left},
        }
    )
    return own, own.model_copy(update={name: getattr(variant, name) for name in left})


def holds_compiled(variant: Variant) -> bool:
    """Whether what runs was compiled into a folder, and was called as it was checked."""
    return variant.exported is not None and "compile" not in free(variant.exported.format)


def install(video: VideoPipeline, recipe: Recipe, model: Model, device: str) -> dict[str, float]:
    """Put the folder's denoiser into the pipeline, checked as `qbench verify` checks it.

    Returns facts for the record. Raises LoadError where the folder is not what was exported, and
    Unsupported where this machine cannot run it.
    """
    held = recipe.variant.exported
    assert held is not None
    folder = Path(held.folder)
    try:
        written, digest = manifest.read(folder)
        if digest != held.sha256:
            raise Wrong(f"{folder / manifest.FILE}: changed since the run was planned")
        manifest.check_files(folder, written)
        loading.check_machine(written)
        if written.target.device != device:
            raise Elsewhere(f"built for {written.target.device}, and this run is on {device}")
        _check_base(written, recipe, model)
        # Its weights are freed before the engine's are loaded.
        setattr(video.pipe, video.part, None)
        gc.collect()
        calls = evidence.load(folder, device)
        denoiser: Module = loading.denoiser(folder, written)
        compute = run_of(denoiser, written)
        seconds, found = [], []
        for call in calls:
            began = time.perf_counter()
            found += evidence.predictions(compute, [call])
            seconds.append(time.perf_counter() - began)
    except Wrong as error:
        raise LoadError(str(error)) from None
    except Elsewhere as error:
        raise Unsupported(str(error)) from None
    parity = evidence.against(written.against, found, calls)
    if not parity.relative_l2 <= written.parity_limit:
        raise LoadError(
            f"{folder}: it computes something else: relative L2 {parity.relative_l2:.3g}, allowed "
            f"{written.parity_limit:g}"
        )
    video.denoiser = denoiser
    return {
        "engine_build_s": written.build_s,
        FIRST_CALL: max(0.0, seconds[0] - min(seconds[1:], default=0.0)),
        "parity_relative_error": parity.relative_l2,
        "parity_calls": parity.calls,
    }


def _check_base(written: Manifest, recipe: Recipe, model: Model) -> None:
    base = written.base_model
    if recipe.weights != base.weights or model.digest(base.weights) != base.digest:
        raise Wrong(f"model {model.source} is not the one of which {base.source} was exported")
