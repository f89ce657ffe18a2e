"""The functions of `import qbench`: recipes, pipelines with a recipe in effect, measurements."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from qbench.errors import InputError, Unsupported, nearest

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from qbench.recipe.schema import Recipe
    from qbench.results.record import Record

PipelineT = TypeVar("PipelineT", bound="DiffusionPipeline")


def load_recipe(
    recipe: str | Path | Recipe, overrides: Mapping[str, object] | None = None
) -> Recipe:
    """A recipe by shipped name ("fast", "attention/fp8"), by path to a YAML file, or as it is.

    overrides: fields by dotted name, as `--set` takes them, such as {"generation.steps": 20}.

    Raises InputError: one line with file, line and the nearest valid word.
    """
    from qbench.recipe import files, shipped
    from qbench.recipe.schema import Recipe

    texts = {name: _yaml(value) for name, value in (overrides or {}).items()}
    if isinstance(recipe, Recipe):
        if texts:
            raise InputError("overrides are for a recipe's file; use Recipe.model_copy for one")
        return recipe
    found, _ = shipped.find(str(recipe))
    if len(found) != 1:
        raise InputError(f"{recipe}: a folder of {len(found)} recipes; name one of them")
    return files.load(found[0], texts)


def apply(pipe: PipelineT, recipe: str | Path | Recipe) -> PipelineT:
    """Put a recipe in effect on a live diffusers pipeline, in place; returns the same pipeline.

    pipe: a pipeline of a family that qbench drives (`qbench ls` names them), on its device.
    recipe: a shipped name, a path, or a Recipe. Its variant is applied axis by axis; its
        generation gives the defaults of the pipeline's call. What it says about prompts, timing
        and quality is for `measure`. A folder that `qbench export` wrote gives its engine the
        denoiser's place, and puts in effect what of its recipe is not inside.

    Afterwards `pipe(prompt, ...)` is diffusers' own call, with its own arguments, and gives the
    video that `qbench run` makes of the recipe for that prompt and noise: with `latents` from
    `torch.randn` in FP32 on the CPU, or with `generator=torch.Generator().manual_seed(seed)`, to
    the last digit. Compiling happens at the first call.

    Raises InputError for a pipeline that is not driven, that has a recipe already, or whose weights
    were loaded in a narrower dtype than the recipe's; Unsupported, with the reason, where this
    machine or model cannot run the recipe. The pipeline is then as it was.
    """
    from qbench import live
    from qbench.recipe import shipped

    if isinstance(recipe, (str, Path)) and shipped.is_exported(Path(recipe)):
        live.apply_engine(pipe, Path(recipe))
    else:
        live.apply(pipe, load_recipe(recipe))
    return pipe


def restore(pipe: DiffusionPipeline) -> list[str]:
    """Take `apply` back; returns a sentence for each change that cannot be taken back.

    Kernels, compilation, caches, the VAE's decode, fused projections and offload go back bit for
    bit. Weights that were quantized, or cast to another dtype, stay rounded: load the pipeline
    again for those. Raises InputError where no recipe is in effect.
    """
    from qbench import live

    return live.restore(pipe)


def measure(
    model: str | Path | DiffusionPipeline,
    recipe: str | Path | Recipe,
    *,
    prompts: str | Path | Sequence[str] | None = None,
    reference: str | Path | Recipe | None = None,
    out: str | Path | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Record:
    """Measure a recipe as `qbench run` does, and return its record.

    model: a known name, a hub id or a folder in diffusers' layout. Of a live pipeline the model
        that it was loaded from is measured: each run loads it in a process of its own, so the
        pipeline itself is neither changed nor timed beside others.
    prompts: a shipped set, a text file with one prompt a line, or the prompts; None is the model's
        own set.
    reference: what to compare with; None is the recipe's own reference.
    out: folder for records and videos, results/runs by default; what is complete there for the
        same settings is not run again.
    overrides: fields by dotted name, such as {"generation.steps": 20}.

    Latency is in seconds, memory in bytes, quality in the units of each metric. Raises InputError
    for bad input, Unsupported where this machine cannot run the recipe; a run that fails, or makes
    no videos, returns a record whose `status` and `reason` say so.
    """
    from qbench.run import plan, sweep

    folder = Path(out or "results/runs")
    fields = {name: _yaml(value) for name, value in (overrides or {}).items()}
    fields["model"] = _yaml(_source(model))
    with tempfile.TemporaryDirectory(prefix="qbench-") as scratch:
        if prompts is not None:
            fields["prompts.set"] = _yaml(str(_prompts(prompts, folder)))
        if not isinstance(prompts, (str, Path)) and prompts is not None:
            fields["prompts.count"] = str(len(prompts))
        paths = []
        if reference is not None:
            paths.append(_file(reference, Path(scratch), "reference"))
        paths.append(_file(recipe, Path(scratch), "recipe"))
        if reference is not None:
            fields["reference"] = _yaml(load_recipe(paths[0]).name)
        planned = plan.plan(paths, fields)
        wanted = load_recipe(paths[-1]).name
        swept = sweep.run(planned, folder, sweep.Silent())
    if swept.interrupted:
        raise KeyboardInterrupt
    if swept.stopped:
        raise InputError(swept.stopped)
    record = next(record for _, record in swept.finished if record.recipe.name == wanted)
    if record.status == "skipped":
        raise Unsupported(record.reason)
    return record


def _yaml(value: object) -> str:
    import json

    return value if isinstance(value, str) and value.isidentifier() else json.dumps(value)


def _source(model: str | Path | DiffusionPipeline) -> str:
    if isinstance(model, (str, Path)):
        return str(model)
    from qbench import live
    from qbench.pipelines import families

    return live.model_of(families.wrap(model)).source


def _prompts(prompts: str | Path | Sequence[str], folder: Path) -> Path | str:
    """A set's name or a file; the prompts themselves are kept beside the runs, by their digest."""
    from qbench.recipe.schema import digest

    if isinstance(prompts, (str, Path)):
        return prompts
    texts = list(prompts)
    for text in texts:
        if not text.strip() or text.splitlines() != [text] or text.lstrip().startswith("#"):
            raise InputError(f"prompts: {text!r} is not one line of text that a file can hold")
    path = folder / f"prompts-{digest(texts)}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path.resolve()


def _file(recipe: str | Path | Recipe, scratch: Path, name: str) -> Path:
    """A recipe's file; one that was made in Python is written to one."""
    from qbench.recipe import shipped
    from qbench.recipe.schema import Recipe

    if isinstance(recipe, Recipe):
        path = scratch / f"{name}.yaml"
        path.write_text(recipe.model_dump_json(exclude_unset=True), encoding="utf-8")  # YAML too
        return path
    found, _ = shipped.find(str(recipe))
    if len(found) != 1:
        raise InputError(f"{recipe}: {len(found)} recipes{nearest(str(recipe), shipped.names())}")
    return found[0]
