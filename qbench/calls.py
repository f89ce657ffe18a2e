"""A call of a diffusers pipeline that a recipe is in effect on.

It goes through the same stages as a run (`VideoPipeline`'s encode, denoise and decode), so it gives
the very video that `qbench run` makes of that recipe, prompt and noise. The pipeline keeps its
class's name and signature; what the call leaves out takes the recipe's value, else the known
model's, else diffusers' default.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from qbench import support
from qbench.errors import InputError, shortened
from qbench.optimizations import axes, caching
from qbench.optimizations.calibration import Occasion
from qbench.optimizations.changes import Changes
from qbench.recipe.schema import Generation, Recipe

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from qbench.pipelines.base import VideoPipeline
    from qbench.pipelines.known import Model
    from qbench.pipelines.values import Conditioning, Resolved

Arguments = Mapping[str, Any]  # of a call of diffusers' pipelines, by name
STATE = "_qbench"  # the attribute of a pipeline that a recipe is in effect on
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


class Live:
    """The recipe on one pipeline: how its calls are made."""

    def __init__(
        self,
        video: VideoPipeline,
        model: Model,
        recipe: Recipe,
        run: Resolved,
        applied: axes.Applied,
        around: tuple[Changes, ...],
        machine: support.Machine,
    ) -> None:
        self.video, self.model, self.recipe, self.applied = video, model, recipe, applied
        self.inside = False  # the pipeline's own loop is running, called by a stage
        self.passed: dict[str, object] = {}  # what the user's call hands to that loop
        self.output: type | None = None
        self._around, self._machine = around, machine
        self._steps = run.steps  # that the cache counts from
        self.size_held = recipe.variant.engine is not None  # by an engine, which is for this one
        self._size = run.frames, run.height, run.width
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
        """Refuse what this call asks for where the recipe or its engine cannot have it.

        All else that rules ask for was so when the recipe was applied. Raises Unsupported for the
        guidance or the frames, and InputError for a size that the engine was not built for.
        """
        size = run.frames, run.height, run.width
        if self.size_held and size != self._size:
            mine, asked_for = ("x".join(map(str, one)) for one in (self._size, size))
            raise InputError(
                f"num_frames, height, width: the engine is for videos of {mine}, and this call "
                f"asks for {asked_for}: export or apply the recipe at that size"
            )
        facts = self._machine.model
        if facts is None:
            return
        asked = dataclasses.replace(facts, guided=run.guided, frames=run.frames)
        if asked == facts:
            return
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
        wanted, _ = caching.fitted(self.video, wanted, occasion)
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


class Applied:
    """Comes before the pipeline's class: its call goes through the stages of a run."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        state = cast(Live, vars(self)[STATE])
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
