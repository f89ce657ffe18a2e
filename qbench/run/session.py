"""A live pipeline with a recipe in effect: `prepare` makes it, later parts of a run use it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.quality.outputs import FOLDER, Outputs, encoded, video_bytes
from qbench.run.computing import Computing
from qbench.run.events import StepsDone
from qbench.run.job import Job
from qbench.run.stages import Stages

if TYPE_CHECKING:
    import torch

    from qbench.pipelines.base import VideoPipeline
    from qbench.pipelines.known import Model
    from qbench.pipelines.values import Conditioning, Resolved
    from qbench.run.together import Lead

ALL_COMPUTED_NOTE = (
    "variant.cache left out nothing: all {} steps were computed, as without a cache (few steps, "
    "most of which a cache computes by its own rules, or a low threshold)"
)


@dataclass(frozen=True)
class Video:
    """A batch of videos: frames (n, f, 3, h, w), `encoded`, and final latents, both on the CPU.

    Seconds by stage, and those of each denoise step.
    """

    frames: torch.Tensor
    latents: torch.Tensor
    seconds: dict[str, float]
    step_seconds: list[float]


class Session:
    """The pipeline, what it generates, and where its figures go."""

    def __init__(
        self,
        job: Job,
        stages: Stages,
        model: Model,
        pipeline: VideoPipeline,
        generation: Resolved,
    ) -> None:
        self.job, self.recipe, self.model = job, job.draft.recipe, model
        self.device = job.draft.environment.device
        self.stages, self.recorder, self.link = stages, stages.recorder, stages.link
        self.pipeline, self.generation = pipeline, generation
        self.prompts = list(job.prompts)
        self.outputs = Outputs(job.folder / FOLDER)
        self.lead: Lead | None = None  # of other ranks, which share the work of each video
        self.computing: Computing | None = None  # where a cache leaves steps out
        self.counted: Callable[[], dict[str, float]] = dict  # facts that videos add to
        # Latents after every step of videos from 0 on, one by one, of those before the timed ones.
        self.followed: list[torch.Tensor] = []

    def seeds(self, numbers: list[int]) -> list[int]:
        """The seeds of the videos with these numbers: the same for every variant."""
        first = self.generation.seed + self.recipe.variant.seed_offset
        return [first + number for number in numbers]

    def noise(self, numbers: list[int]) -> torch.Tensor:
        """Initial noise of the videos with these numbers, float32, on the CPU."""
        import torch

        seeds = self.seeds(numbers)
        return torch.cat([self.pipeline.noise(self.generation, seed) for seed in seeds])

    def encode(self, numbers: list[int]) -> Conditioning:
        """Embeddings of the prompts with these numbers, and those of the negative prompt."""
        prompts = [self.prompts[number] for number in numbers]
        return self.pipeline.encode(self.generation, prompts)

    def denoise(
        self,
        conditioning: Conditioning,
        numbers: list[int],
        on_step: Callable[[int], None] = lambda _: None,
        steps: int | None = None,
        exchange: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
        steady: int | None = None,
    ) -> torch.Tensor:
        """Final latents of the videos with these numbers, from their own noise.

        steady: steps after which figures count, where steps are timed one by one; other ranks then
        wait behind each for `lead.stepped`.
        """
        lead = self.lead
        if self.computing and exchange is None and (steps is None or steady is not None):
            on_step = self.computing.follow(on_step, len(numbers))
        if lead:
            conditioning = lead.denoise(conditioning, numbers, steps, exchange is not None, steady)
            exchange = lead.exchange(exchange) if exchange else None
        return self.pipeline.denoise(
            self.generation,
            conditioning,
            self.noise(numbers),
            on_step,
            generators=self.pipeline.generators(self.seeds(numbers)),
            steps=steps,
            exchange=exchange,
        )

    def video(self, numbers: list[int], follow: bool = False) -> Video:
        """Generate the videos with these numbers as one batch.

        follow: whether to keep the latents after every step.
        """
        import torch

        from qbench.meters.clock import StepTimes

        stages, outer, seconds = self.stages, self.stages.name, {}
        stages.name = "text_encode"
        stages.begin_video()
        conditioning = self.encode(numbers)
        seconds["text_encode"] = stages.end_part("text_encode")
        steps, stages.name = StepTimes(self.device), "denoise"

        def on_step(_: int) -> None:
            steps.mark()
            self.link.emit(StepsDone())

        seen: list[torch.Tensor] = []

        def keep(_: int, latents: torch.Tensor) -> torch.Tensor:
            seen.append(latents.float().cpu().clone())  # a loop may go on in place
            return latents

        latents = self.denoise(conditioning, numbers, on_step, exchange=keep if follow else None)
        if follow:
            self.followed.append(torch.stack(seen))
        seconds["denoise"] = stages.end_part("denoise")
        stages.name = "decode"
        if self.lead:
            self.lead.figures.denoised()
        if self.lead and self.shares_decode:
            latents = self.lead.decode(latents)
        frames = self.pipeline.decode(self.generation, latents)
        seconds["decode"] = stages.end_part("decode")
        if self.lead:
            self.lead.figures.decoded()
        stages.name = outer
        # Where they were made, one video at a time: a GPU is fast at it, and has half to send.
        kept = torch.stack([encoded(video).cpu() for video in frames])
        return Video(kept, latents.float().cpu(), seconds, steps.seconds())

    @property
    def shares_decode(self) -> bool:
        """Whether other ranks decode parts of each video."""
        shared = self.recipe.variant.parallel
        return shared is not None and shared.decode

    def record_computed(self) -> None:
        """What the cache left to compute, into the record; and whether that was everything."""
        found = self.computing.summed() if self.computing else None
        if found is None:
            return
        self.recorder.put(computed=found)
        if found.everything and len(found.by_step) == self.generation.steps:
            self.recorder.note(ALL_COMPUTED_NOTE.format(len(found.by_step)))

    def forget(self) -> None:
        """What came before is not steady, on any rank."""
        self.stages.forget_peaks()
        if self.computing:
            self.computing.clear()
        if self.lead:
            self.lead.forget()

    @property
    def compared(self) -> bool:
        """Whether videos are made whose quality means something."""
        return self.recipe.measure.unit == "video" and self.recipe.weights == "pretrained"

    def output_bytes(self) -> int:
        """What the raw videos of all prompts will take on disk; none where none are kept."""
        if not self.compared:
            return 0
        made = self.generation
        return len(self.prompts) * video_bytes(made.frames, made.height, made.width)

    def keep_denoiser_alone(self) -> None:
        """What other stages hold leaves the device: a step needs none of it."""
        self.pipeline.keep_denoiser_alone()
        self.empty()

    def release(self) -> None:
        """Give the pipeline's memory back. Nothing can be generated after this."""
        self.end_ranks()
        del self.pipeline
        self.empty()

    def end_ranks(self) -> None:
        """Let the other ranks go, if there are any."""
        if self.lead:
            self.lead.end()
            self.lead.figures.ranks.leave()
            self.lead = None

    def empty(self) -> None:
        gc.collect()
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()
