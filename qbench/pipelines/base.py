"""The contract of a text-to-video pipeline: what a run needs of it, whatever its family.

A family is a subclass of `VideoPipeline`. Each stage is a call of diffusers' own pipeline, so what
is timed is what users run. diffusers' conventions are the defaults (`_repeated_blocks`, its
registry of transformer blocks, its attention dispatcher); a family overrides what differs.
docs/extending/pipeline.md says how to add one. Recipes are checked against the class before
anything is loaded: torch is imported where tensors are worked on, and not with the class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from qbench.errors import InputError, Unsupported
from qbench.pipelines import attention, noise, schedulers
from qbench.pipelines.blocks import blocks_of
from qbench.pipelines.sizes import Grid
from qbench.pipelines.values import Conditioning, Resolved

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

    from qbench.pipelines import capture
    from qbench.pipelines.known import Model
    from qbench.pipelines.rescaling import Rescaling
    from qbench.recipe.schema import Generation

# diffusers' pipelines and modules, whose parts and configurations are attributes without types.
Pipe = Any
Module = Any
Config = Mapping[str, object]  # a part's configuration, as in its config.json
Configs = Mapping[str, Config]  # by part: transformer or unet, vae, scheduler
OnStep = Callable[[int], None]
Exchange = Callable[[int, "Tensor"], "Tensor"]


class Denoiser(Protocol):
    """What stands at a pipeline's `transformer` or `unet`: diffusers' module, or an engine."""

    config: Config
    dtype: torch.dtype
    device: torch.device

    def cache_context(self, name: str, **where: object) -> AbstractContextManager[None]: ...

    @property
    def __call__(self) -> Callable[..., object]: ...


class VideoPipeline(ABC):
    """A live diffusers pipeline of one family, driven stage by stage."""

    pipeline_class: ClassVar[str]  # its `_class_name` in model_index.json
    part: ClassVar[Literal["transformer", "unet"]] = "transformer"  # diffusers' of the denoiser
    # diffusers' classes of the parts that `weights: random` builds and a folder must hold.
    parts: ClassVar[Mapping[str, str]]
    # Fields of the denoiser's configuration by which known models are told, and their defaults.
    identity: ClassVar[Config]
    schedulers: ClassVar[Mapping[str, str]] = {}  # a recipe's name -> diffusers' class
    exports: ClassVar[bool] = True  # whether engines can be built of its denoiser
    # Whether guidance calls the denoiser twice a step, not once with both halves in one batch.
    separate_guidance: ClassVar[bool] = False
    # Linears that see one row a video whatever its length: parts of their names.
    one_row: ClassVar[tuple[str, ...]]
    row_a_frame: ClassVar[tuple[str, ...]] = ()  # the same of those that see one for each frame
    dynamic_cfg: ClassVar[bool] = False  # whether its pipeline has `use_dynamic_cfg`

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe

    @classmethod
    def around(cls, denoiser: Module) -> Self:
        """A denoiser without a pipeline, for what needs no other part.

        Without `__init__`, in which a family looks over the rest of the pipeline.
        """
        made = cls.__new__(cls)
        made.pipe = SimpleNamespace(**{cls.part: denoiser})
        return made

    # What a family must say ----------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def grid(cls, configs: Configs) -> Grid:
        """The sizes and frame counts that a pipeline with these configurations can make."""

    @classmethod
    def random_configs(cls, model: str) -> Configs | None:
        """Configurations of a known model's parts at true size, or None where it knows none."""
        return None

    @classmethod
    def is_known(cls, model: str, configs: Configs) -> bool:
        """Whether these are the configurations of the known model of this name."""
        known = cls.random_configs(model)
        if known is None:
            return False
        theirs, ours = known[cls.part], configs[cls.part]

        def plain(value: object) -> object:
            return list(value) if isinstance(value, tuple) else value

        return all(
            plain(ours.get(name, default)) == plain(theirs.get(name, default))
            for name, default in cls.identity.items()
        )

    @abstractmethod
    def latents_shape(self, run: Resolved) -> tuple[int, ...]:
        """The shape of one video's latents, (1, ...)."""

    @abstractmethod
    def embeddings_shape(self, run: Resolved, prompts: int) -> tuple[int, int, int]:
        """(prompts, tokens, channels) of `Conditioning.positive`."""

    @abstractmethod
    def text_tokens(self) -> int:
        """How many tokens of a prompt the denoiser sees."""

    @abstractmethod
    def encode_text(self, run: Resolved, prompts: list[str]) -> Conditioning:
        """The prompts through the pipeline's own text encoders, in any dtype."""

    @abstractmethod
    def decode(self, run: Resolved, latents: Tensor) -> Tensor:
        """(batch, frames, 3, height, width) in [0, 1], float32, on the pipeline's device."""

    # Parts ---------------------------------------------------------------------------------------

    @property
    def denoiser(self) -> Module:
        """The part that a recipe optimises: diffusers' module, or the engine in its place."""
        return getattr(self.pipe, self.part)

    @denoiser.setter
    def denoiser(self, module: Denoiser) -> None:
        # Not register_modules: that insists on a torch module, which an engine is not.
        setattr(self.pipe, self.part, module)

    @property
    def config(self) -> Config:
        """The denoiser's configuration."""
        config: Config = self.denoiser.config
        return config

    def text_encoders(self) -> list[Module]:
        """The text encoders that the pipeline holds; none with `weights: random`."""
        names = sorted(name for name in self.pipe.components if name.startswith("text_encoder"))
        held = [getattr(self.pipe, name) for name in names]
        return [module for module in held if module is not None]

    def keep_denoiser_alone(self) -> None:
        """Let go of the VAE and the text encoders: a denoise step needs none of them."""
        self.keep_no_text()
        self.pipe.vae = None

    def keep_no_text(self) -> None:
        """Let go of the text encoders: what they make is handed over."""
        for name in self.pipe.components:
            if name.startswith("text_encoder"):
                setattr(self.pipe, name, None)

    def configs(self) -> dict[str, Config]:
        """The configurations of the live parts."""
        names = (self.part, "vae", "scheduler")
        return {name: getattr(self.pipe, name).config for name in names}

    def repeated_blocks(self) -> list[Module]:
        """The blocks that the denoiser is a stack of. Raises Unsupported where none is known."""
        return blocks_of(self.denoiser)

    def compiled_parts(self) -> list[Module]:
        """What regional compilation compiles: the blocks, all alike, so one program serves all."""
        return self.repeated_blocks()

    def context_plan(self) -> dict[str, object] | None:
        """Which inputs and outputs are split over GPUs by tokens, and which are put together again.

        In diffusers' own form (`_cp_plan`); None where neither it nor the family has one.
        """
        return getattr(self.denoiser, "_cp_plan", None)

    def leading_text(self) -> str:
        """The denoiser's input whose tokens come before the video's in self-attention, or "".

        `context_plan` splits them over all GPUs, as it does the video's.
        """
        return ""

    def heads(self) -> int:
        """Heads of each self-attention. Raises Unsupported where blocks have different numbers."""
        heads = self.denoiser.config.get("num_attention_heads")
        if not isinstance(heads, int):
            raise Unsupported(f"a {type(self.denoiser).__name__} has no one number of heads")
        return heads

    def rescalings(self) -> list[Rescaling]:
        """Activations whose channels earlier layers can scale; none where a family knows none.

        Each stands before those that read what its own layers make.
        """
        return []

    def skip(self, block: Module) -> None:
        """Have one of `repeated_blocks` return what it is given."""
        from diffusers.hooks._helpers import TransformerBlockRegistry

        known = TransformerBlockRegistry.get(type(block))

        def forward(*args: object, **kwargs: object) -> object:
            def given(name: str) -> object:
                return known._get_parameter_from_args_kwargs(name, args, kwargs)

            hidden = given(known.hidden_states_argument_name)
            if known.return_encoder_hidden_states_index is None:
                return hidden
            text = given(known.encoder_hidden_states_argument_name)
            return (hidden, text) if known.return_hidden_states_index == 0 else (text, hidden)

        block.forward = forward

    def set_attention(self, kernel: attention.Kernel) -> None:
        """Have self-attention computed by `kernel`, of (batch, tokens, heads, channels).

        Through diffusers' attention dispatcher; a family whose processors do not use it overrides.
        """
        attention.dispatch(self.denoiser, kernel)

    # Stages --------------------------------------------------------------------------------------

    def resolve(self, model: Model, generation: Generation, step_share: float = 1.0) -> Resolved:
        """Fill what the recipe left null from the model's and the pipeline's own defaults.

        A scheduler that was asked for is put in place. Raises InputError for sizes, frames and
        settings that this pipeline cannot have.
        """
        from qbench.pipelines.specs import with_defaults

        model = with_defaults(model, type(self), self.configs())
        frames, height, width = self.grid(self.configs()).resolve(generation, model.size)
        if name := generation.scheduler or model.scheduler:
            schedulers.put(self.pipe, name, self.schedulers)
        if generation.dynamic_cfg and not self.dynamic_cfg:
            raise InputError(
                f"generation.dynamic_cfg: diffusers' {self.pipeline_class} has no dynamic guidance"
            )
        steps = generation.steps or model.steps
        return Resolved(
            frames=frames,
            height=height,
            width=width,
            steps=max(1, round(steps * step_share)),
            guidance=model.guidance if generation.guidance is None else generation.guidance,
            scheduler=type(self.pipe.scheduler).__name__,
            seed=generation.seed,
            text_tokens=self.text_tokens(),
            surroundings=str(self.pipe.vae.dtype).removeprefix("torch."),
            dynamic_cfg=generation.dynamic_cfg,
        )

    def noise(self, run: Resolved, seed: int) -> Tensor:
        """One video's initial latents, (1, ...), float32, on the CPU, from one seed."""
        return noise.initial(self.latents_shape(run), seed)

    @staticmethod
    def generators(seeds: Sequence[int]) -> list[Generator]:
        """One CPU generator a video, for the noise that a scheduler adds between steps."""
        return noise.generators(seeds)

    def encode(self, run: Resolved, prompts: list[str]) -> Conditioning:
        """Embeddings of the prompts and of the negative prompt, in the denoiser's dtype.

        A pipeline with no text encoder (`weights: random`) gets noise of the right shape.
        """
        if not self.text_encoders():
            return self.random_conditioning(run, prompts)
        import torch

        with torch.no_grad():
            made = self.encode_text(run, prompts)
        dtype = self.denoiser.dtype
        parts = {
            name: value.to(dtype) if value is not None and value.is_floating_point() else value
            for name, value in vars(made).items()
        }
        return Conditioning(**parts)

    def random_conditioning(self, run: Resolved, prompts: Sequence[str]) -> Conditioning:
        """Noise of the shape that `encode` gives, the same at every call."""
        shape = self.embeddings_shape(run, len(prompts))
        where = {"device": self.pipe._execution_device, "dtype": self.denoiser.dtype}
        positive, negative = (noise.initial(shape, seed).to(**where) for seed in (0, 1))
        return Conditioning(positive, negative if run.guided else None)

    def denoise(
        self,
        run: Resolved,
        conditioning: Conditioning,
        latents: Tensor,
        on_step: OnStep,
        *,
        generators: Sequence[Generator],
        steps: int | None = None,
        exchange: Exchange | None = None,
    ) -> Tensor:
        """Final latents of the pipeline's own loop; `on_step(i)` is called as each step ends.

        generators: one for each video of the batch, from `generators`; the scheduler's noise.
        `exchange(i, latents)` sees the latents after step i and says which the loop goes on with.
        """
        import torch

        with torch.no_grad(), noise.seeded(self.pipe.scheduler, generators):
            result: Tensor = self.pipe(
                **self.arguments(run, conditioning),
                **self.callback(on_step, exchange),
                latents=latents.to(self.pipe._execution_device, self.latents_dtype()),
                num_inference_steps=steps or run.steps,
                output_type="latent",
            ).frames
        return result

    def latents_dtype(self) -> torch.dtype:
        """The dtype in which the pipeline's loop holds latents."""
        return self.denoiser.dtype

    def arguments(self, run: Resolved, conditioning: Conditioning) -> dict[str, object]:
        """Keywords of the pipeline's own call, but for latents, steps and callback."""
        return {
            "prompt_embeds": conditioning.positive,
            "negative_prompt_embeds": conditioning.negative,
            "num_frames": run.frames,
            "height": run.height,
            "width": run.width,
            "guidance_scale": run.guidance,
        }

    def callback(self, on_step: OnStep, exchange: Exchange | None) -> dict[str, object]:
        """Keywords of the pipeline's own call that have it report its steps."""

        def at_end(_: object, step: int, __: object, values: dict[str, Tensor]) -> object:
            on_step(step)
            if exchange is not None:
                values["latents"] = exchange(step, values["latents"])
            return values

        return {"callback_on_step_end": at_end}

    # What the denoiser is given ------------------------------------------------------------------

    def captured(
        self,
        run: Resolved,
        conditioning: Conditioning,
        latents: Tensor,
        steps: int = 1,
        compute: bool = True,
    ) -> list[list[capture.Inputs]]:
        """The denoiser's keyword inputs, as the pipeline's own loop passes them: by step, by call.

        With classifier-free guidance a step is one call with both halves, or two calls, as the
        family has it. Without `compute` the denoiser is not run, and every prediction is zero.
        """
        from qbench.pipelines import capture

        module = self.denoiser
        recorder = capture.Recorder(module, compute)
        self.denoiser = recorder
        try:
            own = self.generators(range(len(latents)))
            self.denoise(run, conditioning, latents, recorder.end_step, generators=own, steps=steps)
        finally:
            self.denoiser = module
        return recorder.steps

    def example_inputs(
        self, run: Resolved, conditioning: Conditioning, latents: Tensor
    ) -> capture.Inputs:
        """The keyword inputs of the first call of the first step; nothing is computed."""
        return self.captured(run, conditioning, latents, compute=False)[0][0]

    def step_inputs(self, run: Resolved) -> list[capture.Inputs]:
        """The inputs of every call of one video's step, with noise for values."""
        conditioning = self.random_conditioning(run, [""])
        return self.captured(run, conditioning, self.noise(run, 0), compute=False)[0]


def frames_of(video: Tensor) -> Tensor:
    """A VAE's (batch, 3, frames, h, w) in [-1, 1] as (batch, frames, 3, h, w) in [0, 1]."""
    frames = video.float() / 2 + 0.5
    # Infinity would be clamped to white, and nobody would see that the decoder had overflown.
    return frames.clamp(0, 1).masked_fill(~frames.isfinite(), float("nan")).transpose(1, 2)
