"""A recipe in effect on a diffusers pipeline that somebody else loaded: `apply` and `restore`.

After `apply`, the pipeline's own call goes through the same stages as a run (`VideoPipeline`'s
encode, denoise and decode), so it gives the very video that `qbench run` makes of that recipe,
prompt and noise. The pipeline keeps its class's name and signature; what the call leaves out takes
the recipe's value, else the known model's, else diffusers' default.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qbench import engines, support
from qbench.errors import InputError, Unsupported, brief, shortened
from qbench.optimizations import axes, caching, memory
from qbench.optimizations.calibration import Occasion
from qbench.optimizations.changes import Changes
from qbench.pipelines import families, specs
from qbench.recipe.schema import Dtype, Generation, Recipe

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from qbench.engines.manifest import Manifest
    from qbench.pipelines.base import Denoiser, Pipe, VideoPipeline
    from qbench.pipelines.specs import Model
    from qbench.pipelines.values import Conditioning, Resolved

Arguments = Mapping[str, Any]  # of a call of diffusers' pipelines, by name
_STATE = "_qbench"
_DTYPES: dict[str, Dtype] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# Arguments of diffusers' calls -> fields of a recipe's generation.
_GENERATION = {
    "height": "height",
    "width": "width",
    "num_frames": "frames",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "use_dynamic_cfg": "dynamic_cfg",
}
_OWN = (
    "prompt", "negative_prompt", "num_videos_per_prompt", "prompt_embeds", "negative_prompt_embeds",
    "latents", "generator", "output_type", "return_dict", "max_sequence_length",
)  # fmt: skip
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
    facts = support.model_facts(video, run.guided)
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
    state = Live(video, model, recipe, run.steps, applied, (changes, cast_changes), machine)
    plain = type(pipe)
    object.__setattr__(pipe, _STATE, state)
    pipe.__class__ = type(plain.__name__, (_Applied, plain), {"__module__": plain.__module__})
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
    object.__delattr__(pipe, _STATE)
    return state.undo()


def state_of(pipe: Pipe) -> Live | None:
    """What `apply` left on the pipeline."""
    return cast("Live | None", getattr(pipe, "__dict__", {}).get(_STATE))


def model_of(video: VideoPipeline) -> Model:
    """The known model, hub id or folder that the pipeline was loaded from, with its defaults."""
    source = str(getattr(video.pipe, "name_or_path", "") or "pipeline")
    try:
        found = specs.find(source)
    except InputError:  # made in Python, or its folder is gone
        found = specs.Model(name="pipeline", source=source)
    return specs.with_defaults(found, type(video), video.configs())


class Live:
    """The recipe on one pipeline: how its calls are made."""

    def __init__(
        self,
        video: VideoPipeline,
        model: Model,
        recipe: Recipe,
        steps: int,
        applied: axes.Applied,
        around: tuple[Changes, ...],
        machine: support.Machine,
    ) -> None:
        self.video, self.model, self.recipe, self.applied = video, model, recipe, applied
        self.inside = False  # the pipeline's own loop is running, called by a stage
        self.passed: dict[str, object] = {}  # what the user's call hands to that loop
        self.output: type | None = None
        self._around, self._machine = around, machine
        self._steps = steps  # that the cache counts from
        self._cached = applied.cached

    def on_undo(self, step: Callable[[], object]) -> None:
        """Have the last thing that `undo` does be this."""
        last = Changes("denoiser")
        last.on_undo(step)
        self._around = (*self._around, last)

    def undo(self) -> list[str]:
        if self._cached:
            self._cached.changes.undo()
        said = self.applied.undo()
        for changes in self._around:
            changes.undo()
        return said + [f"{one.axis}: {one.permanent}" for one in self._around if one.permanent]

    def call(self, given: Arguments, defaults: Arguments) -> object:
        """One call of the pipeline with these arguments: frames in its own kind of output."""
        import torch

        unknown = {"sigmas", "timesteps"} & given.keys()
        if unknown:
            raise InputError(f"{sorted(unknown)[0]}: a recipe has steps, and no schedule by hand")
        run = self._resolve(given)
        self._check(run)
        self._cache(run)
        conditioning = self._conditioning(run, given)
        seeds, latents = self._noise(run, given, len(conditioning.positive))
        self.passed = {k: v for k, v in given.items() if k not in (*_OWN, *_GENERATION)}
        self.inside = True
        try:
            latents = self.video.denoise(
                run, conditioning, latents, lambda _: None,
                generators=self.video.generators(seeds),
            )  # fmt: skip
        finally:
            self.inside = False
        kind = given.get("output_type", defaults.get("output_type", "pil"))
        if kind == "latent":
            frames: object = latents
        else:
            with torch.no_grad():
                frames = _as(kind, self.video.decode(run, latents))
        if not given.get("return_dict", True):
            return (frames,)
        assert self.output is not None
        return self.output(frames=frames)

    def _resolve(self, given: Arguments) -> Resolved:
        said = {
            field: given[name] for name, field in _GENERATION.items() if given.get(name) is not None
        }
        if "guidance" in said:
            said["guidance"] = float(said["guidance"])
        fields = self.recipe.generation.model_dump() | said
        wanted = Generation.model_validate(fields)
        return self.video.resolve(self.model, wanted, self.recipe.variant.step_share)

    def _check(self, run: Resolved) -> None:
        """Raise Unsupported where the recipe cannot run with the guidance that this call asks for.

        All else that rules ask for was so when the recipe was applied.
        """
        facts = self._machine.model
        if facts is None or facts.guided == run.guided:
            return
        asked = dataclasses.replace(facts, guided=run.guided)
        support.check(self.recipe.variant, dataclasses.replace(self._machine, model=asked))

    def _cache(self, run: Resolved) -> None:
        wanted, steps = self.recipe.variant.cache, run.steps
        if wanted is None or self._cached is None or self._steps == steps:
            return
        variant = self.recipe.variant
        if variant.parallel or variant.memory.offload:  # whose hooks lie around those of the cache
            raise InputError(
                f"num_inference_steps: the cache is for {self._steps} steps, and with parallel or "
                "offload it stays: restore the pipeline and apply the recipe again"
            )
        self._cached.changes.undo()
        self._steps = 0  # there is none until this has gone well
        occasion = Occasion(run, self.model, tests=())
        wanted, _ = caching.fitted(self.video, wanted, steps, occasion)
        self._cached = caching.apply(self.video, wanted, steps)
        self._steps = steps

    def _conditioning(self, run: Resolved, given: Arguments) -> Conditioning:
        from qbench.pipelines.values import Conditioning

        dtype = self.video.denoiser.dtype
        if given.get("prompt_embeds") is not None:
            negative = given.get("negative_prompt_embeds")
            if run.guided and negative is None:
                raise InputError("negative_prompt_embeds: guidance needs them beside prompt_embeds")
            other = negative.to(dtype) if negative is not None and run.guided else None
            return Conditioning(given["prompt_embeds"].to(dtype), other)
        prompts = _texts("prompt", given.get("prompt"))
        many = int(given.get("num_videos_per_prompt") or 1)
        made = self.video.encode(run, [text for text in prompts for _ in range(many)])
        if given.get("negative_prompt") is None or not run.guided:
            return made
        others = _texts("negative_prompt", given["negative_prompt"])
        others = others * len(prompts) if len(others) == 1 else others
        if len(others) != len(prompts):
            raise InputError(f"negative_prompt: {len(others)} texts for {len(prompts)} prompts")
        against = self.video.encode(run, [text for text in others for _ in range(many)])
        return dataclasses.replace(
            made,
            negative=against.positive,
            negative_mask=against.positive_mask,
            negative_pooled=against.positive_pooled,
        )

    def _noise(self, run: Resolved, given: Arguments, videos: int) -> tuple[list[int], Tensor]:
        """Seeds of the scheduler's noise, and initial latents: given, by generator, or any."""
        import torch

        own = given.get("generator")
        listed: list[Generator] = list(own) if isinstance(own, (list, tuple)) else []
        if listed and len(listed) != videos:
            raise InputError(f"generator: {len(listed)} of them for {videos} videos")
        latents: Tensor | None = given.get("latents")
        if own is None:
            if latents is not None:
                seeds = [run.seed + number for number in range(videos)]
                return seeds, latents
            seeds = torch.randint(2**31, (videos,)).tolist()
            return seeds, torch.cat([self.video.noise(run, seed) for seed in seeds])
        each: list[Generator] = listed or [own] * videos
        seeds = [one.initial_seed() + (0 if listed else i) for i, one in enumerate(each)]
        if latents is None:
            shape = self.video.latents_shape(run)
            drawn = [torch.randn(shape, generator=one, device=one.device) for one in each]
            latents = torch.cat([one.cpu() for one in drawn])
        return seeds, latents


class _Applied:
    """Comes before the pipeline's class: its call goes through the stages of a run."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        state = cast(Live, vars(self)[_STATE])
        plain: Any = super()
        if state.inside:
            out = plain.__call__(*args, **(kwargs | state.passed))
            state.output = type(out)
            return out
        signature = inspect.signature(plain.__call__)
        given = dict(signature.bind(*args, **kwargs).arguments)
        defaults = {name: one.default for name, one in signature.parameters.items()}
        return state.call(given, defaults)


def _texts(name: str, value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(x, str) for x in texts):
        raise InputError(f"{name}: a text or a list of texts, not {shortened(repr(value))}")
    return texts


def _as(kind: str, video: Tensor) -> object:
    """(batch, frames, 3, height, width) in [0, 1] as diffusers hands it out."""
    if kind == "pt":
        return video
    arrays = video.cpu().permute(0, 1, 3, 4, 2).float().numpy()
    if kind == "np":
        return arrays
    if kind == "pil":
        from diffusers.image_processor import VaeImageProcessor

        return [VaeImageProcessor.numpy_to_pil(frames) for frames in arrays]
    raise InputError(f"output_type: {kind!r} is none of latent, np, pil, pt")


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
            "variant.engine: this pipeline's denoiser is offloaded, and an engine is built where it "
            "lies: call qbench.apply first, and offload the pipeline then"
        )


def _build_engine(video: VideoPipeline, recipe: Recipe, run: Resolved, changes: Changes) -> Changes:
    folder = Path(tempfile.mkdtemp(prefix="qbench-engine-"))
    changes.on_undo(lambda: shutil.rmtree(folder, ignore_errors=True))
    module = video.denoiser
    changes.on_undo(lambda: setattr(video, "denoiser", module))
    first = video.encode(run, ["a video"]), video.noise(run, run.seed)
    engines.build(video, run, *first, recipe, folder)
    return changes
