"""The record of a run: its schema. How records are written and read is in `store`.

Units stand in the field's name. A new version of the schema gets a new SCHEMA number, and
`store.read` refuses numbers that it does not know rather than guess. Every number is finite and
every string and list has a longest length, for a record may come from anywhere. What a record says
about its own samples is derived from them on reading: see `derive`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qbench.fields import Bytes, Count, Line, Positive, Seconds, Text, Word
from qbench.meters.environment import Environment
from qbench.meters.flops import Work
from qbench.meters.memory import Peak, largest
from qbench.meters.nvml import Gauges
from qbench.meters.roofline import Ceilings
from qbench.optimizations import axes
from qbench.optimizations.caching.computed import Computed
from qbench.quality.metrics.trajectory import ErrorGrowth
from qbench.quality.ratios import Ratio
from qbench.quality.statistics import Metric, Summary
from qbench.recipe.schema import RENAMED, Recipe

SCHEMA = 6
READABLE = (1, 2, 3, 4, 5, SCHEMA)  # each added fields with defaults, and changed none

Status = Literal[
    "ok",  # ran, and its videos are videos
    "invalid",  # ran, but its output is NaN, black, frozen, flat or of the wrong shape
    "skipped",  # this machine cannot run it
    "failed",  # an error of the program or a library
    "oom",  # out of memory
    "timeout",  # longer than measure.timeout_s
    "crashed",  # the process died without a word
    "interrupted",  # by the user
    "running",  # not over, or the machine went down
]
VIDEO_STAGES = ("text_encode", "denoise", "decode")  # what a user pays for each video
STAGES = ("load", "quantize", "compile", *VIDEO_STAGES, "save", "quality")


# Whether the reference took its turns beside a run, and if not, why: no room for both in memory, or
# its process died. Empty where it was not asked to.
Interleaved = Literal["", "pairs", "no room", "reference died"]


class Strict(BaseModel):
    """Unknown fields are errors, and no field changes once it is set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Fingerprints(Strict):
    """Runs may share a ranking only where settings, prompts, model, hardware and software agree."""

    recipe: Word  # what is measured
    settings: Word  # how it is measured: model, generation, prompts, repeats, metrics
    prompts: Word  # the prompts themselves
    model: Word  # the weights
    hardware: Word
    software: Word
    networks: Word = ""  # the weights of the networks that metrics are computed with

    def ranking(self) -> tuple[str, ...]:
        shared = (self.settings, self.prompts, self.model, self.hardware, self.software)
        return (*shared, self.networks)


class Stage(Strict):
    """One stage: every steady sample for the stages of a video, one sample for the others."""

    seconds: Annotated[list[Seconds], Field(min_length=1, max_length=10_000)]
    peak: Peak


class RankFigures(Strict):
    """One of the processes that made each video together, over the timed units.

    exchange_s: of each timed video, or of all timed steps together, what this rank spent in
    exchanges: sending, and waiting for others. So the slowest rank has the least.
    """

    rank: Count
    peaks: Annotated[dict[Word, Peak], Field(max_length=10)] = {}  # denoise, and decode if shared
    # Each denoise step of each timed video, by this rank's own device.
    step_s: Annotated[
        list[Annotated[list[Seconds], Field(min_length=1, max_length=10_000)]],
        Field(max_length=10_000),
    ] = []
    exchange_s: Annotated[list[Seconds], Field(max_length=10_000)] = []
    gauges: Gauges | None = None


class Reference(Strict):
    """The run that this one was compared with."""

    recipe: Word
    run: Line
    outputs: Word = ""  # digest of its raw videos


Scalar = str | int | float | bool | None
Timings = Annotated[list[Positive], Field(max_length=10_000)]
SIZES = {"frames", "height", "width", "steps"}  # that what was generated always has


class Record(Strict):
    """One execution of one recipe on one machine."""

    schema_version: int = SCHEMA
    run: Line  # unique: recipe name, time, process
    recipe: Recipe  # as resolved, overrides included
    # What the command line changed.
    overrides: Annotated[dict[Line, Line], Field(max_length=1000)] = {}
    status: Status = "running"
    reason: Text = ""  # why it is not ok, in one line
    stage: Word = ""  # where it stopped, if not ok
    started: Word = ""  # ISO 8601, UTC
    ended: Word = ""
    environment: Environment
    fingerprints: Fingerprints
    # frames, height, width, steps ... nothing left to default
    generation: Annotated[dict[Word, Scalar], Field(max_length=100)] = {}
    reference: Reference | None = None
    stages: Annotated[dict[Word, Stage], Field(max_length=50)] = {}
    first_call_s: Seconds | None = None  # compile stage and first video together
    # The same in a second process, with what compilers kept of the first.
    first_call_warm_s: Seconds | None = None
    # Whether compilers' caches were empty at the start; empty where nobody saw to it.
    compiler_cache: Literal["", "cold"] = ""
    latency_s: Timings = []  # text_encode + denoise + decode of each steady video, batch 1
    latency: Summary | None = None  # of latency_s, the interval that of the median
    # Each denoise step of each steady video, device time.
    step_s: Annotated[
        list[Annotated[list[Seconds], Field(min_length=1, max_length=10_000)]],
        Field(max_length=10_000),
    ] = []
    step_host_s: Timings = []  # unit: step only; the same steps by the host's clock
    step: Summary | None = None  # of the median step of each steady video; unit: step, of steps
    # The reference's turn before (even) or after (odd) each timed unit.
    paired_reference_s: Timings = []
    paired_speed_up: Ratio | None = None  # over the reference, of the interleaved pairs
    interleaved: Interleaved = ""
    # Power, energy, clocks, temperature over the timed units; of all GPUs that share them.
    gauges: Gauges | None = None
    # Of every process, the first included, where several made each video.
    ranks: Annotated[list[RankFigures], Field(max_length=1000)] = []
    work: Work | None = None  # FLOP and bytes of one denoise step
    computed: Computed | None = None  # what a cache left to compute of the steps
    ceilings: Ceilings | None = None  # what the machine can do at most
    weights_bytes: Bytes | None = None  # of the denoiser, as stored
    facts: Annotated[dict[Word, float], Field(max_length=100)] = {}  # shares quantized, parity ...
    videos: Count = 0  # that quality was computed on
    quality: Annotated[dict[Word, Metric], Field(max_length=200)] = {}
    error_growth: ErrorGrowth | None = None  # of the latents, step by step
    # What a reader of the figures must know.
    notes: Annotated[list[Text], Field(max_length=1000)] = []
    # By kind; a name in the record's own folder.
    files: Annotated[dict[Word, Line], Field(max_length=50)] = {}
    outputs_sha256: Word = ""  # of the videos kept, so that others put in their place are found

    @field_validator("generation")
    @classmethod
    def _sizes(cls, made: dict[str, Scalar]) -> dict[str, Scalar]:
        for name in SIZES:
            if name in made and not (type(made[name]) is int and 0 < int(made[name] or 0) < 10**6):
                raise ValueError(f"{name} is no size: {str(made[name])[:40]!r}")
        for name, value in made.items():
            if isinstance(value, float) and not abs(value) <= 1e30:
                raise ValueError(f"{name} is not a finite number")
            if len(str(value)) > 4000:
                raise ValueError(f"{name} is too long")
        return made

    @field_validator("quality", mode="before")
    @classmethod
    def _renamed(cls, quality: object) -> object:
        """Versions 1 to 3 called prompt adherence `following`, `following_colour` ..."""
        if not isinstance(quality, dict):
            return quality
        old, new = "following", RENAMED["following"]
        return {
            new + name.removeprefix(old) if str(name).startswith(old) else name: metric
            for name, metric in quality.items()
        }

    def step_seconds(self) -> float | None:
        """A denoise step: the median, or the mean where caching makes steps of two kinds.

        None where the machine did other things besides; so is a video.
        """
        if not self.recipe.measure.timing:
            return None
        if self.recipe.variant.cache and self.step_s:
            steps = [step for video in self.step_s for step in video]
            return sum(steps) / len(steps)
        return self.step.median if self.step else None

    def video_seconds(self) -> float | None:
        timed = self.recipe.measure.timing
        return self.latency.median if self.latency and timed else None

    def achieved_flop_per_s(self, step_s: float | None = None) -> float | None:
        """The FLOPs of a step over its time, its own or the one given.

        None for cached steps, which leave work out.
        """
        seconds = step_s or self.step_seconds()
        if self.work is None or not seconds or self.recipe.variant.cache:
            return None
        return self.work.flop / seconds

    def mfu(self, step_s: float | None = None) -> float | None:
        """Model FLOPs utilization: what was achieved, of the GEMM peak measured on this machine.

        The peak is that of the fastest dtype used. FP32 counts as used: a CPU computes what it has
        no units for in FP32, and faster than its own GEMMs in that dtype. None where the peak is
        beaten, for it then is none.
        """
        share = self._share(step_s)
        return None if share is None or share > 1 else share

    def beats_peak(self) -> bool:
        """Whether the calibration cannot be right: the machine was busy with something else."""
        return (self._share(None) or 0.0) > 1

    def _share(self, step_s: float | None) -> float | None:
        rate = self.achieved_flop_per_s(step_s)
        if rate is None or self.ceilings is None:
            return None
        known, shared = self.ceilings.product_flop_per_s, self.recipe.variant.parallel
        devices = shared.ranks if shared and self.environment.device == "cuda" else 1
        reached = [devices * known[name] for name in self._dtypes() if name in known]
        return rate / max(reached) if reached else None

    def _dtypes(self) -> set[str]:
        return {"fp32", *axes.arithmetic(self.recipe.variant)}

    def peak(self) -> Peak:
        """The largest peak of the stages that a user pays for each video."""
        peaks = [self.stages[name].peak for name in VIDEO_STAGES if name in self.stages]
        for rank in self.ranks:  # the largest GPU's, for all must fit
            peaks += rank.peaks.values()
        return largest(peaks)

    def held_bytes(self, peak: Peak) -> int | None:
        """What of a peak a user needs: allocated on a GPU, resident on a CPU.

        Where CUDA graphs were captured, what is reserved: their pool counts as free between
        replays, so `allocated` leaves all activations out.
        """
        if self.recipe.variant.captures_graphs and peak.reserved_bytes:
            return peak.reserved_bytes
        return peak.allocated_bytes or peak.resident_bytes
