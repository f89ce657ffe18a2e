"""One recipe, one process: the stages of a run, in order."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qbench.errors import Unsupported
from qbench.results.record import Stage

if TYPE_CHECKING:
    from qbench.meters.memory import Peak
    from qbench.pipelines.specs import Model, Resolved
    from qbench.run.worker import Emit, Job

PROFILE = "profile.json"
RANDOM_NOTE = (
    "weights: random: latency and memory only, for they do not depend on the values of weights; "
    "no text encoder was run, and nothing here says anything about quality"
)
BY_CONTENT_NOTE = (
    "first_block skips steps by what the latents are: how many, and so the latency, is these "
    "random weights' own and says nothing about the model's"
)
NOT_FUSED_NOTE = "decode.fused is for CogVideoX's VAE; this model's decodes as without it"
STEPS_NOTE = "unit: step: denoise steps were timed and no video was made, so there is no quality"


class Run:
    """The state that the stages share. Reads top to bottom in `all`."""

    def __init__(self, job: Job, emit: Emit, listen: Callable[[], Any] | None = None) -> None:
        self.job, self.recipe, self.emit, self.listen = job, job.draft.recipe, emit, listen
        self.device = job.draft.environment.device
        self.facts: dict[str, Any] = {"stages": {}, "facts": {}, "notes": [], "files": {}}
        self.stage_name = ""
        self.peak_of: dict[str, Peak] = {}

    def all(self) -> None:
        from qbench.run import evaluate, timing

        self.prepare()
        if self.recipe.measure.unit == "step":
            timing.measure(self)
        else:
            self.first_and_warm_up()
            self._steady()
        self._explainers()
        if self.recipe.measure.unit == "step" or self.recipe.weights == "random":
            self.facts["files"]["log"] = "log.txt"
            return
        evaluate.judge(self)

    def prepare(self) -> None:
        self._check_support()
        self._load()
        self._quantize()
        self._compile()

    # Preparation ---------------------------------------------------------------------------------

    def _check_support(self) -> None:
        from qbench.optimizations import support

        reason = support.why_not(self.recipe.variant, support.this_machine(self.device))
        if reason:
            raise Unsupported(reason)

    def _load(self) -> None:
        from qbench import prompts
        from qbench.meters.clock import Clock
        from qbench.meters.memory import PeakMeter
        from qbench.pipelines import base, specs

        self.enter("load")
        self._set_up_memory()
        self.clock, self.peaks = Clock(self.device), PeakMeter(self.device)
        self.model: Model = specs.find(self.recipe.model)
        self.prompts = list(prompts.chosen(self.recipe.prompts, self.model).prompts)
        variant, weights = self.recipe.variant, self.recipe.weights
        self.pipeline = specs.load(
            self.model, variant.dtype, self.device, weights, variant.memory.offload is not None
        )
        self.generation: Resolved = specs.resolve(
            self.pipeline, self.model, self.recipe.generation, variant.step_share
        )
        self.family = specs.family(self.pipeline)
        self.facts["generation"] = vars(self.generation)
        self._count_work()
        if weights == "random":
            self.facts["notes"].append(RANDOM_NOTE)
            if variant.cache and variant.cache.by_content:
                self.facts["notes"].append(BY_CONTENT_NOTE)
        elif uneven := base.uneven(self.pipeline, self.generation.steps):
            self.facts["notes"].append(uneven)
        if self.recipe.measure.unit == "step":
            self.facts["notes"].append(STEPS_NOTE)
        self.leave("load")

    def _set_up_memory(self) -> None:
        """The allocator's settings, and a smaller card where one is to be simulated."""
        from qbench.meters.memory import CONTEXT_BYTES
        from qbench.optimizations import memory

        memory.prepare(self.recipe.variant.memory, self.device)
        limit = self.recipe.measure.memory_limit_gib
        if limit is None:
            return
        if self.device == "cpu":
            raise Unsupported("measure.memory_limit_gib limits a GPU's memory, and there is none")
        import torch

        total = torch.cuda.get_device_properties(0).total_memory
        share = (limit * 2**30 - CONTEXT_BYTES) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))

    def _count_work(self) -> None:
        """FLOP and bytes of a step, of the plain denoiser as it was loaded.

        Shapes are enough: the text encoder may still be where it cannot run, to be offloaded.
        """
        import torch

        from qbench.meters import flops
        from qbench.pipelines import specs

        module = specs.denoiser(self.pipeline)
        size = next(module.parameters()).element_size()
        try:
            text = torch.zeros(self.family.embeddings_shape(self.pipeline, self.generation, 1))
            inputs = self._inputs_of(text, text if self.generation.guided else None)
            self.work = flops.count(module, inputs, size)
        except Exception as error:  # a figure less in the record, never a failed run
            self.facts["notes"].append(f"work of a step not counted: {type(error).__name__}")
            return
        self.facts["work"] = self.work.model_copy(update={"linear_flop": {}})

    def _quantize(self) -> None:
        from qbench.optimizations import axes, quantization
        from qbench.optimizations.vae import patch
        from qbench.pipelines import specs

        self.enter("quantize")
        variant = self.recipe.variant
        if variant.quantize and "work" in self.facts:
            linears = set(quantization.chosen(specs.denoiser(self.pipeline), variant.quantize))
            self.facts["facts"]["quantized_flop_share"] = self.work.share(linears)
        self.facts["facts"] |= axes.apply(
            self.pipeline, variant, self.device, self.generation.steps
        )
        if variant.decode.fused and not patch.fuses(self.pipeline.vae):
            self.facts["notes"].append(NOT_FUSED_NOTE)
        gc.collect()
        self.leave("quantize")

    def _compile(self) -> None:
        """Build the engine, or compile; the compiler works at the first step, so one is made."""
        from qbench.meters.memory import stored_bytes
        from qbench.pipelines import specs

        variant = self.recipe.variant
        self.enter("compile")
        if variant.engine:
            from qbench import engines

            if not self.family.EXPORTS:
                raise Unsupported("engine: only CogVideoX's transformer is exported, no UNet yet")
            embeddings, _ = self.first_inputs()
            inputs = self._inputs_of(*embeddings)
            folder = self.job.folder / "engine"
            self.facts["facts"] |= engines.build(self.pipeline, inputs, variant, folder)
        if variant.engine or variant.compile:
            self.denoise(*self.first_inputs(), _nothing, steps=1)
            self.leave("compile")
        gc.collect()
        self.facts["weights_bytes"] = stored_bytes(specs.denoiser(self.pipeline))

    def _inputs_of(self, positive: Any, negative: Any) -> tuple[Any, ...]:
        """What the pipeline gives its denoiser for one video, in its order."""
        import torch

        both = [negative, positive] if negative is not None else [positive]
        latents = self.noise([0] * len(both)).to(positive.device, positive.dtype)
        middle = int(self.pipeline.scheduler.config.num_train_timesteps) // 2
        timestep = torch.full((len(both),), middle, device=positive.device)
        inputs: tuple[Any, ...] = self.family.arguments(latents, torch.cat(both), timestep)
        return inputs

    def noise(self, numbers: list[int]) -> Any:
        """Initial noise of the videos with these numbers: the same for every variant."""
        import torch

        first = self.generation.seed + self.recipe.variant.seed_offset
        seeds = [first + number for number in numbers]
        return torch.cat(
            [self.family.noise(self.pipeline, self.generation, seed) for seed in seeds]
        )

    def first_inputs(self) -> tuple[Any, Any]:
        """Embeddings and initial noise of the first video."""
        embeddings = self.family.encode(self.pipeline, self.generation, self.prompts[:1])
        return embeddings, self.noise([0])

    def denoise(self, *inputs: Any, **more: Any) -> Any:
        return self.family.denoise(self.pipeline, self.generation, *inputs, **more)

    # Generation ----------------------------------------------------------------------------------

    def video(self, numbers: list[int]) -> tuple[Any, Any, dict[str, float], list[float]]:
        """Generate the videos with these numbers as one batch. Frames, latents, seconds, steps."""
        from qbench.meters.clock import StepTimes

        pipeline, generation = self.pipeline, self.generation
        prompts = [self.prompts[number] for number in numbers]
        noise = self.noise(numbers)
        seconds = {}
        outer, self.stage_name = self.stage_name, "text_encode"
        self.clock.lap()
        self.peaks.lap()
        embeddings = self.family.encode(pipeline, generation, prompts)
        seconds["text_encode"] = self._note("text_encode")
        steps, self.stage_name = StepTimes(self.device), "denoise"

        def on_step(_: int) -> None:
            steps.mark()
            self.emit("step")

        latents = self.denoise(embeddings, noise, on_step)
        seconds["denoise"] = self._note("denoise")
        self.stage_name = "decode"
        frames = self.family.decode(pipeline, generation, latents)
        seconds["decode"] = self._note("decode")
        self.stage_name = outer
        return frames.cpu(), latents.float().cpu(), seconds, steps.seconds()

    def first_and_warm_up(self) -> None:
        self._plan()
        self.enter("first call")
        _, _, seconds, _ = self.video([0])
        self.facts["first_call_s"] = sum(seconds.values()) + self.built_s()
        for _ in range(self.recipe.measure.warmup):
            self.enter("warm-up")
            self.video([0])

    def _steady(self) -> None:
        """The timed videos, one by one. Their outputs are the first that quality is computed on."""
        from statistics import mean, median

        from qbench.meters.nvml import GaugeMeter
        from qbench.quality.outputs import FOLDER, Outputs
        from qbench.quality.statistics import summarise

        gauges = GaugeMeter(self.device)
        typical = mean if self.recipe.variant.cache else median  # cached steps are of two kinds
        self.peak_of.clear()  # what came before is not steady
        self.outputs = Outputs(self.job.folder / FOLDER)
        self.outputs.clear()
        samples: dict[str, list[float]] = {"text_encode": [], "denoise": [], "decode": []}
        latency, steps = [], []
        for turn in range(self.recipe.measure.repeats):
            self.enter("steady", video=turn + 1, videos=self.recipe.measure.repeats)
            number = turn % len(self.prompts)
            self.wait_turn(number)
            gauges.begin()
            frames, latents, seconds, step_seconds = self.video([number])
            gauges.end()
            if self.recipe.weights != "random":
                self.outputs.add(number, frames, latents)
            for name, value in seconds.items():
                samples[name].append(value)
            latency.append(sum(seconds.values()))
            steps.append(step_seconds)
        for name, values in samples.items():
            self.facts["stages"][name] = Stage(seconds=values, peak=self.peak_of[name])
        self.facts |= {
            "latency_s": latency,
            "latency": summarise(latency, of="median"),
            "step_s": steps,
            "step": summarise([typical(video) for video in steps], of="median"),
            "gauges": gauges.gauges(),
        }
        self.pair(latency)

    # The reference's turns -----------------------------------------------------------------------

    def wait_turn(self, number: int) -> None:
        """Where the run is interleaved: wait until the reference has done the same unit."""
        if not self.job.paced or self.listen is None:
            return
        self.emit("turn", number=number)
        self.facts.setdefault("paired_reference_s", []).append(float(self.listen()))

    def pair(self, own: list[float]) -> None:
        from qbench.quality.statistics import paired_speed_up

        theirs = self.facts.get("paired_reference_s", [])
        if theirs and all(map(math.isfinite, theirs)):
            self.facts["paired_speed_up"] = paired_speed_up(theirs, own)
        elif theirs:
            self.facts["paired_reference_s"] = []
            self.facts["notes"].append("not interleaved: the reference's process ended early")

    def _explainers(self) -> None:
        """One more step, under the profiler."""
        if not self.recipe.measure.profile or self.recipe.variant.engine:
            return
        from qbench.meters import profile

        self.enter("profile")
        inputs = self.first_inputs()
        found = profile.take(lambda: self.denoise(*inputs, _nothing, steps=1), self.device)
        (self.job.folder / PROFILE).write_text(found.model_dump_json(indent=1) + "\n")
        self.facts["files"]["profile"] = PROFILE

    # Book-keeping --------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Say how many steps lie ahead, so that a person can be told how long it takes."""
        measured = self.recipe.measure
        rest = max(0, len(self.prompts) - measured.repeats)
        batches = -(-rest // self.recipe.quality.batch)
        videos = 1 + measured.warmup + measured.repeats + batches
        self.emit("plan", steps=videos * self.generation.steps)

    def built_s(self) -> float:
        """What compiling, or building an engine, took before the first call."""
        stage = self.facts["stages"].get("compile")
        return float(stage.seconds[0]) if stage else 0.0

    def enter(self, stage: str, **more: Any) -> None:
        self.stage_name = stage
        self.emit("stage", stage=stage, **more)

    def leave(self, stage: str) -> None:
        """End a stage that happens once."""
        self.facts["stages"][stage] = Stage(seconds=[self.clock.lap()], peak=self.peaks.lap())

    def _note(self, stage: str) -> float:
        """End a stage of a video: its seconds, its peak kept with the largest so far."""
        seconds, peak = self.clock.lap(), self.peaks.lap()
        self.peak_of[stage] = peak.larger(self.peak_of[stage]) if stage in self.peak_of else peak
        self.clock.lap()  # reading the meters is not part of the next stage
        return seconds

    def stop(self, status: str, reason: str) -> None:
        self.facts |= {"status": status, "reason": reason, "stage": self.stage_name}


def _nothing(_: int) -> None:
    pass
