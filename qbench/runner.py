"""One recipe, one process: the stages in order.

Started by the sweep as `python -m qbench.runner JOB`. The process reports on its standard output,
one JSON object a line; everything that libraries print goes to the log. Whatever happens, the
record that it leaves says what it came to; where the process dies, the sweep writes that record.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from qbench.errors import InputError, Unsupported
from qbench.records import Record, Stage, write

if TYPE_CHECKING:
    from qbench.meters.memory import Peak
    from qbench.models import Model, Resolved
    from qbench.quality.measure import Outputs

Emit = Callable[..., None]
SAMPLE_VIDEOS = 6  # kept as mp4 and on the contact sheet


class Job(BaseModel):
    """What the sweep hands to the process."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    draft: Record
    folder: Path
    reference: Path | None = None  # folder of the reference's finished run


def execute(job: Job, emit: Emit) -> Record:
    """Run the job and return the finished record, whatever it came to."""
    run = Run(job, emit)
    try:
        run.all()
        run.facts["status"] = "invalid" if run.facts.get("reason") else "ok"
    except Unsupported as error:
        run.stop("skipped", str(error))
    except InputError as error:
        run.stop("failed", str(error))
    except Exception as error:
        import traceback

        traceback.print_exc()
        run.stop("oom" if _out_of_memory(error) else "failed", _one_line(error))
    run.facts["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
    return job.draft.model_copy(update=run.facts)


class Run:
    """The state that the stages share. Reads top to bottom in `all`."""

    def __init__(self, job: Job, emit: Emit) -> None:
        self.job, self.recipe, self.emit = job, job.draft.recipe, emit
        self.device = job.draft.environment.device
        self.facts: dict[str, Any] = {"stages": {}, "facts": {}, "notes": []}
        self.stage_name = ""
        self.peak_of: dict[str, Peak] = {}

    def all(self) -> None:
        self._check_support()
        self._load()
        self._quantize()
        self._compile()
        self._first_and_warm_up()
        self._steady()
        self._rest_of_the_videos()
        self._save()
        self._quality()

    # Preparation ---------------------------------------------------------------------------------

    def _check_support(self) -> None:
        from qbench.variants import support

        reason = support.why_not(self.recipe.variant, support.this_machine(self.device))
        if reason:
            raise Unsupported(reason)

    def _load(self) -> None:
        from qbench import models, prompts
        from qbench.meters.latency import Clock
        from qbench.meters.memory import PeakMeter

        self._enter("load")
        self.clock, self.peaks = Clock(self.device), PeakMeter(self.device)
        self.model: Model = models.find(self.recipe.model)
        self.prompts = list(prompts.chosen(self.recipe.prompts, self.model).prompts)
        self.pipeline = models.load(self.model, self.recipe.variant.dtype, self.device)
        self.generation: Resolved = models.resolve(
            self.pipeline, self.model, self.recipe.generation
        )
        self.family = models.family(self.pipeline)
        self.facts["generation"] = vars(self.generation)
        self._leave("load")

    def _quantize(self) -> None:
        from qbench.variants import apply_eager

        self._enter("quantize")
        self.facts["facts"] |= apply_eager(self.pipeline, self.recipe.variant, self.device)
        gc.collect()
        self._leave("quantize")

    def _compile(self) -> None:
        """Build the engine, or compile; the compiler works at the first step, so one is made."""
        from qbench import models
        from qbench.meters.memory import stored_bytes
        from qbench.variants import compilation

        variant = self.recipe.variant
        self._enter("compile")
        if variant.engine:
            from qbench import engines

            inputs = self._example_inputs()
            folder = self.job.folder / "engine"
            self.facts["facts"] |= engines.build(self.pipeline, inputs, variant, folder)
        elif variant.compile:
            compilation.apply(self.pipeline, variant.compile)
        if variant.engine or variant.compile:
            embeddings = self.family.encode(self.pipeline, self.generation, self.prompts[:1])
            self.family.denoise(
                self.pipeline, self.generation, embeddings, self._noise([0]), _nothing, steps=1
            )
            self._leave("compile")
        gc.collect()
        self.facts["weights_bytes"] = stored_bytes(models.denoiser(self.pipeline))

    def _example_inputs(self) -> tuple[Any, Any, Any]:
        """What the pipeline gives its denoiser for one video."""
        import torch

        positive, negative = self.family.encode(self.pipeline, self.generation, self.prompts[:1])
        both = [negative, positive] if negative is not None else [positive]
        latents = self._noise([0] * len(both)).to(positive.device, positive.dtype)
        middle = int(self.pipeline.scheduler.config.num_train_timesteps) // 2
        timestep = torch.full((len(both),), middle, device=positive.device)
        return latents, torch.cat(both), timestep

    def _noise(self, numbers: list[int]) -> Any:
        """Initial noise of the videos with these numbers: the same for every variant."""
        import torch

        seeds = [self.generation.seed + number for number in numbers]
        return torch.cat(
            [self.family.noise(self.pipeline, self.generation, seed) for seed in seeds]
        )

    # Generation ----------------------------------------------------------------------------------

    def _video(self, numbers: list[int]) -> tuple[Any, Any, dict[str, float], list[float]]:
        """Generate the videos with these numbers as one batch. Frames, latents, seconds, steps."""
        from qbench.meters.latency import StepTimes

        pipeline, generation = self.pipeline, self.generation
        prompts = [self.prompts[number] for number in numbers]
        noise = self._noise(numbers)
        seconds = {}
        self.clock.lap()
        self.peaks.lap()
        embeddings = self.family.encode(pipeline, generation, prompts)
        seconds["text_encode"] = self._note("text_encode")
        steps = StepTimes(self.device)

        def on_step(_: int) -> None:
            steps.mark()
            self.emit("step")

        latents = self.family.denoise(pipeline, generation, embeddings, noise, on_step)
        seconds["denoise"] = self._note("denoise")
        frames = self.family.decode(pipeline, generation, latents)
        seconds["decode"] = self._note("decode")
        return frames.cpu(), latents.float().cpu(), seconds, steps.seconds()

    def _first_and_warm_up(self) -> None:
        self._plan()
        self._enter("first call")
        _, _, seconds, _ = self._video([0])
        compiling = self.facts["stages"].get("compile")
        built = compiling.seconds[0] if compiling else 0.0
        self.facts["first_call_s"] = sum(seconds.values()) + built
        for _ in range(self.recipe.measure.warmup):
            self._enter("warm-up")
            self._video([0])

    def _steady(self) -> None:
        """The timed videos, one by one. Their outputs are the first that quality is computed on."""
        from statistics import median

        from qbench.quality.statistics import summarise

        self.peak_of.clear()  # what came before is not steady
        self.results: dict[int, tuple[Any, Any]] = {}
        samples: dict[str, list[float]] = {"text_encode": [], "denoise": [], "decode": []}
        latency, steps = [], []
        for turn in range(self.recipe.measure.repeats):
            self._enter("steady", video=turn + 1, videos=self.recipe.measure.repeats)
            number = turn % len(self.prompts)
            frames, latents, seconds, step_seconds = self._video([number])
            self.results[number] = (frames, latents)
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
            "step": summarise([median(video) for video in steps], of="median"),
        }

    def _rest_of_the_videos(self) -> None:
        rest = [n for n in range(len(self.prompts)) if n not in self.results]
        batch = self.recipe.quality.batch
        for start in range(0, len(rest), batch):
            part = rest[start : start + batch]
            self._enter("more videos", video=start + len(part), videos=len(rest))
            frames, latents, _, _ = self._video(part)
            for i, number in enumerate(part):
                self.results[number] = (frames[i : i + 1], latents[i : i + 1])

    # Outputs -------------------------------------------------------------------------------------

    def _save(self) -> None:
        import torch

        from qbench import media
        from qbench.quality.measure import OUTPUTS, Outputs

        self._enter("save")
        order = range(len(self.prompts))
        self.outputs: Outputs = Outputs(
            prompts=self.prompts,
            frames=torch.cat([self.results[n][0] for n in order]),
            latents=torch.cat([self.results[n][1] for n in order]),
        )
        self.results.clear()
        folder = self.job.folder
        self.outputs.save(folder / OUTPUTS)
        kept = min(SAMPLE_VIDEOS, len(self.prompts))
        (folder / "videos").mkdir(exist_ok=True)
        for number in range(kept):
            path = folder / "videos" / f"{number:03d}.mp4"
            media.write_mp4(self.outputs.frames[number], path, fps=8)
        sheet = folder / "contact.png"
        media.contact_sheet(self.outputs.frames[:kept], self.prompts[:kept], sheet)
        self.facts["files"] = {
            "outputs": OUTPUTS,
            "contact_sheet": sheet.name,
            "videos": "videos",
            "log": "log.txt",
        }
        self._leave("save")

    def _quality(self) -> None:
        from qbench.quality import measure, validity

        self._enter("quality")
        run = self.generation
        reference = None
        if self.job.reference:
            reference = measure.load_outputs(self.job.reference / measure.OUTPUTS, self.prompts)
        expected = (run.frames, 3, run.height, run.width)
        other = None if reference is None else reference.frames.float()
        faults = validity.faults(self.outputs.frames, self.outputs.latents, expected, other)
        self.facts["videos"] = len(self.prompts)
        if faults:
            self.facts["reason"] = "; ".join(faults)
            self._leave("quality")
            return
        metrics = self.recipe.quality.metrics
        found, notes = measure.measure(
            self.outputs,
            reference,
            self.model,
            list(measure.ABOUT) if metrics is None else list(metrics),
            self.recipe.quality.clip or self.model.clip,
            self.device,
            progress=lambda name: self._enter("quality", metric=name),
        )
        self.facts["quality"] = found
        self.facts["notes"] += notes
        if reference is None and not self.recipe.is_reference:
            self.facts["notes"].append("no finished run of the reference to compare with")
        self._leave("quality")

    # Book-keeping --------------------------------------------------------------------------------

    def _plan(self) -> None:
        """Say how many steps lie ahead, so that a person can be told how long it takes."""
        measured = self.recipe.measure
        rest = max(0, len(self.prompts) - measured.repeats)
        batches = -(-rest // self.recipe.quality.batch)
        videos = 1 + measured.warmup + measured.repeats + batches
        self.emit("plan", steps=videos * self.generation.steps)

    def _enter(self, stage: str, **more: Any) -> None:
        self.stage_name = stage
        self.emit("stage", stage=stage, **more)

    def _leave(self, stage: str) -> None:
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


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _out_of_memory(error: BaseException) -> bool:
    words = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in words
        or "can't allocate memory" in words
        or "failed to allocate memory" in words
    )


def main() -> None:
    job = Job.model_validate_json(Path(sys.argv[1]).read_text())
    # Libraries print to standard output; only events may go there.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    steps, last = 0, 0.0

    def say(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    def emit(event: str, **more: Any) -> None:
        """Steps are gathered: a run must not spend its time on saying how far it is."""
        nonlocal steps, last
        steps += event == "step"
        now = time.monotonic()
        if steps and (event != "step" or now - last > 0.2):
            say({"event": "step", "count": steps})
            steps, last = 0, now
        if event != "step":
            say({"event": event, **more})

    emit("stage", stage="start")
    record = execute(job, emit)
    write(record, job.folder)
    emit("end", status=record.status)


if __name__ == "__main__":
    main()
