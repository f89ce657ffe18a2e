"""`qbench export`: a variant as files for a deployment, with proof that they compute the same.

What is written stands beside its place until all of it is there and proved; see `folder`.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from qbench.engines import (
    describe,
    evidence,
    folder,
    formats,
    loading,
    manifest,
    static_seen,
    tensorrt,
    tensorrt_plan,
)
from qbench.engines.evidence import Call
from qbench.engines.parity import FAITHFUL, QUANTIZED, REORDERED, by_own_rules, quantizes_inputs
from qbench.errors import InputError, Unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.engines.inputs import Signature
    from qbench.engines.manifest import Format, Manifest
    from qbench.pipelines.base import Module, VideoPipeline
    from qbench.pipelines.known import Model
    from qbench.pipelines.values import Resolved
    from qbench.recipe.schema import Dtype, Recipe, Variant

PARITY = "parity.json"
PROMPTS, TIMESTEPS = 3, 4  # trajectories, and calls kept of each, spread over its steps
Device = Literal["cpu", "cuda"]
Tell = Callable[[str], None]
Suits = Callable[["VideoPipeline", "Resolved"], None]


class Differs(Exception):
    """The engine computes something else than the variant. Exit code 1."""


@dataclass(frozen=True)
class Exported:
    """What was written. `sha256`, of the manifest, is what another machine may trust it by."""

    folder: Path
    manifest: Manifest
    sha256: str


@dataclass(frozen=True)
class Plain:
    """What the FP32 module was given along real trajectories, and what it made of it."""

    signature: Signature
    run: Resolved
    inputs: list[dict[str, Tensor]]
    outputs: list[Tensor]


def export(
    recipe: Recipe,
    out: Path,
    form: Format | None = None,
    force: bool = False,
    tell: Tell = lambda _: None,
    plain: Plain | None = None,
    check: Callable[[], None] = lambda: None,
    suits: Suits = lambda *_: None,
    prove: Callable[[Path], str] | None = None,
    denoiser_only: bool = False,
) -> Exported:
    """Write the recipe's variant to the folder `out`, in the format that the recipe implies.

    plain: from `captured`, where several variants of one model are exported.
    check: raises Unsupported, before anything is loaded, where this machine cannot build it.
    suits: raises Unsupported, before anything is walked, where the model cannot have the variant.
    denoiser_only: of a diffusers checkpoint, the denoiser without the pipeline around it.
    prove: puts more evidence into the folder, which can be opened as it stands, and says what it
        found; raises Differs.

    Raises InputError where the place, the recipe or the format will not do, Unsupported where this
    machine cannot build it, and Differs where what was built computes something else: then `out`
    is left as it was, and what was found out is in `OUT.failed`.
    """
    from qbench.pipelines import specs

    if recipe.variant.exported:
        raise InputError(f"{recipe.variant.exported.folder}: is exported already")
    folder.check_place(out, force)
    form = form or formats.implied(recipe.variant)
    if reason := formats.refuses(form, recipe.variant):
        raise InputError(f"{recipe.name}: the format {form} cannot hold it: {reason}")
    if denoiser_only and form != "diffusers":
        raise InputError(f"--denoiser-only: the format {form} holds the denoiser alone as it is")
    model, device = specs.find(recipe.model), device_of(recipe)
    check()
    if form == "tensorrt":  # before minutes are spent
        tensorrt_plan.check(recipe.variant.engine_options, device == "cuda")
    if plain is None:
        tell(f"{recipe.name}: denoise trajectories, and FP32 predictions along them")
        plain = captured(recipe, model, device, suits)
    with folder.written_beside(out) as partial:
        try:
            made = _write(recipe, model, form, device, plain, partial, tell, denoiser_only)
            if prove is not None:
                _sealed(made, partial)
                tell(f"{recipe.name}: {prove(partial)}")
                made = made.model_copy(update={"files": manifest.stored_files(partial, made.files)})
        except Differs as error:
            kept = folder.keep_evidence(partial, out)
            raise Differs(f"{error}; what was found is in {kept}") from None
        _sealed(made, partial)
    digest = manifest.sha256(out / manifest.FILE)
    loading.register(digest)
    return Exported(out, made, digest)


def _sealed(made: Manifest, partial: Path) -> None:
    (partial / manifest.FILE).write_text(made.model_dump_json(indent=1) + "\n")


def device_of(recipe: Recipe) -> Device:
    """Where the engine is built to run. Raises Unsupported where the recipe's GPU is not here."""
    import torch

    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise Unsupported("device: cuda: no NVIDIA GPU that torch can use")
    return "cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu"


def _write(
    recipe: Recipe,
    model: Model,
    form: Format,
    device: Device,
    plain: Plain,
    partial: Path,
    tell: Tell,
    denoiser_only: bool,
) -> Manifest:
    """Build in `partial`, load what was built as a user would, and prove it."""
    from qbench.engines import checkpoint

    video = _variant(recipe, model, form, device, plain.run)
    calls = _calls(video, plain)
    tell(f"{recipe.name}: building {form}")
    began = time.perf_counter()
    seen = static_seen.along_trajectories(video, plain.run, recipe, model)
    write = checkpoint.write_denoiser if denoiser_only else formats.module(form).write
    example = calls[len(calls) // 2].inputs
    bound = write(video, plain.signature, example, recipe.variant, partial, seen)
    built_s = time.perf_counter() - began + bound.spared_s
    bound = bound.model_copy(update={"spared_s": 0.0})
    said = describe.description(
        recipe,
        model,
        form,
        video,
        plain.signature,
        static_seen.settings(recipe) if seen else _calibration(recipe.variant),
        calls,
        bound,
        denoiser_only,
    )
    video.denoiser.save_config(str(partial / loading.CONFIG))
    del video
    gc.collect()
    runs = said.target.device == device
    if runs:
        tell(f"{recipe.name}: loading it again, for parity and latency")
        run = loading.opened(partial, said)
    else:
        tell(f"{recipe.name}: no GPU here to load it: its graph is computed instead, for parity")
        run = tensorrt.stand_in(partial, said)
    found = evidence.predictions(run, calls)
    against, limit = _limit(recipe.variant, form, calls)
    proof = {name: evidence.against(name, found, calls) for name in evidence.NAMES}
    stored = evidence.store(calls, partial)
    samples = loading.timed(run, calls[len(calls) // 2].inputs, device) if runs else []
    (partial / PARITY).write_text(
        json.dumps(
            {
                **{f"against_{name}": error.model_dump() for name, error in proof.items()},
                "limit": {"against": against, "relative_l2": limit},
                "calls_stored": stored,
                "by_call": _by_call(found, calls),
            },
            indent=1,
        )
        + "\n"
    )
    error, named = proof[against].relative_l2, evidence.NAMES[against]
    tell(f"{recipe.name}: relative L2 {error:.2g} to {named}, allowed {limit:g}")
    if not error <= limit:
        raise Differs(
            f"the engine computes something else: relative L2 {error:.3g} to {named}, "
            f"allowed {limit:g}"
        )
    return manifest.Manifest(
        **dict(said),
        fp32=proof["fp32"],
        variant=proof["variant"],
        build_s=built_s,
        proved_by="engine" if runs else "graph",
        step_s=median(samples) if samples else None,
        step_samples=len(samples),
        against=against,
        parity_limit=limit,
        files=manifest.stored_files(partial),
    )


def _limit(variant: Variant, form: Format, calls: Sequence[Call]) -> tuple[manifest.Against, float]:
    """What must be close to what. An engine that quantizes by rules of its own has no twin."""
    if by_own_rules(variant):
        return "fp32", QUANTIZED
    if form == "aoti" and quantizes_inputs(variant):
        own = evidence.against("fp32", [call.variant for call in calls], calls).relative_l2
        return "variant", max(FAITHFUL, REORDERED * own)
    return "variant", FAITHFUL


# What is compared ---------------------------------------------------------------------------------


def captured(recipe: Recipe, model: Model, device: str, suits: Suits = lambda *_: None) -> Plain:
    """Walk whole trajectories of the scheduler that will be served; FP32 predictions along them.

    A GPU walks them in the recipe's dtype: fifty steps of a large model take minutes in FP32, and
    where exactly the latents come by does not matter. Random weights know no prompts, so there is
    one trajectory.
    """
    import torch

    from qbench import prompts
    from qbench.engines.inputs import signature
    from qbench.pipelines import specs

    walked: Dtype = recipe.variant.dtype if device == "cuda" else "fp32"
    video = specs.load(model, walked, device, recipe.weights, outliers=recipe.outliers)
    run = video.resolve(model, recipe.generation, recipe.variant.step_share)
    suits(video, run)
    count = PROMPTS if recipe.weights == "pretrained" else 1
    named = list(prompts.chosen(recipe.prompts, model).prompts[:count])
    inputs: list[dict[str, Tensor]] = []
    taken = None
    for number, prompt in enumerate(named):
        conditioning = video.encode(run, [prompt])
        latents = video.noise(run, run.seed + number)
        if taken is None:
            taken = signature(video, run, conditioning, latents)
        steps = video.captured(run, conditioning, latents, steps=run.steps)
        last = len(steps) - 1
        places = {round(i * last / (TIMESTEPS - 1)) for i in range(TIMESTEPS)} if last else {0}
        for place in sorted(places):
            for call in steps[place]:
                inputs.append({k: v.cpu() for k, v in taken.tensors((), call).items()})
        del steps
    assert taken is not None
    if walked != "fp32":
        del video
        gc.collect()
        video = specs.load(model, "fp32", device, recipe.weights, outliers=recipe.outliers)
    with torch.no_grad():
        outputs = [
            _predicted(video.denoiser, taken, _placed(video.denoiser, call)) for call in inputs
        ]
    return Plain(taken, run, inputs, outputs)


def _placed(module: Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored inputs on the module's device, in its dtype."""
    return {
        name: value.to(module.device, module.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }


def _predicted(module: Module, signature: Signature, inputs: Mapping[str, Tensor]) -> Tensor:
    result: Tensor = module(**signature.nested(tuple(inputs.values())), return_dict=False)[0]
    return result.float().cpu()


def _calibration(variant: Variant) -> dict[str, str | int | float]:
    """What the variant's weights were fitted by; nothing where they were rounded as they are."""
    fit = variant.quantize.calibration if variant.quantize else None
    return fit.model_dump(exclude_none=True) if fit else {}


def _variant(
    recipe: Recipe, model: Model, form: Format, device: str, run: Resolved
) -> VideoPipeline:
    """The recipe's variant in Python, as far as files hold it.

    Without the compiler: the format compiles, or does not. Without a cache, which follows whole
    trajectories, or a CUDA graph, which launches what is in it, and without an attention kernel
    where plain diffusers attends.
    """
    from qbench import prompts
    from qbench.optimizations import axes
    from qbench.optimizations.calibration import Occasion
    from qbench.pipelines import specs

    dtype, outliers = recipe.variant.dtype, recipe.outliers
    video = specs.load(model, dtype, device, recipe.weights, outliers=outliers)
    video.resolve(model, recipe.generation, recipe.variant.step_share)
    tests = tuple(prompts.chosen(recipe.prompts, model).prompts)
    occasion = Occasion(run, model, tests)
    changes: dict[str, object] = {"compile": None, "cache": None, "cuda_graph": False}
    if form == "diffusers":
        changes["attention"] = "auto"
    variant = recipe.variant.model_copy(update=changes)
    axes.apply(video, variant, device, run.steps, occasion)
    return video


def _calls(video: VideoPipeline, plain: Plain) -> list[Call]:
    """The captured inputs in the variant's dtype, with its own predictions."""
    import torch

    module, made = video.denoiser, []
    for inputs, expected in zip(plain.inputs, plain.outputs, strict=True):
        mine = _placed(module, inputs)
        with torch.no_grad():
            made.append(Call(mine, expected, _predicted(module, plain.signature, mine)))
    return made


def _by_call(found: Sequence[Tensor], calls: Sequence[Call]) -> list[dict[str, float]]:
    return [
        {
            "timestep": float(call.inputs["timestep"].flatten()[0]),
            **{
                f"relative_l2_to_{name}": evidence.against(name, [ours], [call]).relative_l2
                for name in evidence.NAMES
            },
        }
        for ours, call in zip(found, calls, strict=True)
    ]
