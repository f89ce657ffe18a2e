"""The record of a run: its schema, and how records are written and read.

Units stand in the field's name. A new version of the schema gets a new SCHEMA number, and `read`
refuses numbers that it does not know rather than guess.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qbench.meters.ceilings import Ceilings
from qbench.meters.environment import Environment
from qbench.meters.gauges import Gauges
from qbench.meters.memory import Peak
from qbench.meters.work import Work
from qbench.quality.statistics import Metric, Ratio, Summary
from qbench.quality.trajectory import ErrorGrowth
from qbench.recipe import Recipe

SCHEMA = 3
READABLE = (1, 2, SCHEMA)  # each added fields, and changed none
FILE = "record.json"

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


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fingerprints(Strict):
    """Runs may share a ranking only where settings, prompts, model, hardware and software agree."""

    recipe: str  # what is measured
    settings: str  # how it is measured: model, generation, prompts, repeats, metrics
    prompts: str  # the prompts themselves
    model: str  # the weights
    hardware: str
    software: str

    def ranking(self) -> tuple[str, ...]:
        return (self.settings, self.prompts, self.model, self.hardware, self.software)


class Stage(Strict):
    """One stage: every steady sample for the stages of a video, one sample for the others."""

    seconds: list[float]
    peak: Peak


class Reference(Strict):
    """The run that this one was compared with."""

    recipe: str
    run: str


class Record(Strict):
    """One execution of one recipe on one machine."""

    schema_version: int = SCHEMA
    run: str  # unique: recipe name, time, process
    recipe: Recipe  # as resolved, overrides included
    overrides: dict[str, str] = {}  # what the command line changed
    status: Status = "running"
    reason: str = ""  # why it is not ok, in one line
    stage: str = ""  # where it stopped, if not ok
    started: str = ""  # ISO 8601, UTC
    ended: str = ""
    environment: Environment
    fingerprints: Fingerprints
    generation: dict[str, Any] = {}  # frames, height, width, steps ... nothing left to default
    reference: Reference | None = None
    stages: dict[str, Stage] = {}
    first_call_s: float | None = None  # compile stage and first video together
    latency_s: list[float] = []  # text_encode + denoise + decode of each steady video, batch 1
    latency: Summary | None = None  # of latency_s, the interval that of the median
    step_s: list[list[float]] = []  # each denoise step of each steady video, device time
    step_host_s: list[float] = []  # unit: step only; the same steps by the host's clock
    step: Summary | None = None  # of the median step of each steady video; unit: step, of steps
    paired_reference_s: list[float] = []  # the reference's turn before each timed unit
    paired_speed_up: Ratio | None = None  # over the reference, of the interleaved pairs
    gauges: Gauges | None = None  # power, energy, clocks, temperature over the timed units
    work: Work | None = None  # FLOP and bytes of one denoise step
    ceilings: Ceilings | None = None  # what the machine can do at most
    weights_bytes: int | None = None  # of the denoiser, as stored
    facts: dict[str, float] = {}  # shares quantized, parity of an engine ...
    videos: int = 0  # that quality was computed on
    quality: dict[str, Metric] = {}
    error_growth: ErrorGrowth | None = None  # of the latents, step by step
    notes: list[str] = []  # what a reader of the figures must know
    files: dict[str, str] = {}  # by kind, relative to the record

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

    def achieved_flop_per_s(self) -> float | None:
        """The FLOP of a step over its time; none for cached steps, which leave work out."""
        seconds = self.step_seconds()
        if self.work is None or not seconds or self.recipe.variant.cache:
            return None
        return self.work.flop / seconds

    def ceiling_share(self) -> float | None:
        """What was achieved, of what this machine's products reach in the fastest dtype used.

        FP32 counts as used: a CPU computes what it has no units for in FP32, and faster than its
        own products in that dtype. None where the ceiling is beaten, for it then is none.
        """
        share = self._share()
        return None if share is None or share > 1 else share

    def beats_ceiling(self) -> bool:
        """Whether the calibration cannot be right: the machine was busy with something else."""
        return (self._share() or 0.0) > 1

    def _share(self) -> float | None:
        rate = self.achieved_flop_per_s()
        if rate is None or self.ceilings is None:
            return None
        known = self.ceilings.product_flop_per_s
        reached = [known[name] for name in self._dtypes() if name in known]
        return rate / max(reached) if reached else None

    def _dtypes(self) -> set[str]:
        return {"fp32", *self.recipe.variant.arithmetic()}

    def peak(self) -> Peak:
        """The largest peak of the stages that a user pays for each video."""
        peak = Peak()
        for name in VIDEO_STAGES:
            if name in self.stages:
                peak = peak.larger(self.stages[name].peak)
        return peak

    def held_bytes(self, peak: Peak) -> int | None:
        """What of a peak a user needs: allocated on a GPU, resident on a CPU.

        Where CUDA graphs were captured, what is reserved: their pool counts as free between
        replays, so `allocated` leaves all activations out.
        """
        compiled = self.recipe.variant.compile
        if compiled and compiled.captures_graphs and peak.reserved_bytes:
            return peak.reserved_bytes
        return peak.allocated_bytes or peak.resident_bytes


def write(record: Record, folder: Path) -> Path:
    """Write atomically: a reader sees the old record or the new one, never half of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{FILE}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(_on_one_line(json.dumps(record.model_dump(mode="json"), indent=1)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return path


def _on_one_line(text: str) -> str:
    """Indented JSON with each list of numbers on one line: thousands of videos are one figure."""
    numbers = r"\[\s+([-+.\w]+(?:,\s+[-+.\w]+)*)\s+\]"  # strings have quotes
    return re.sub(numbers, lambda found: "[" + " ".join(found[1].split()) + "]", text)


class Unreadable(Exception):
    """A record that cannot be used, and why, in one line."""


def read(path: Path) -> Record:
    """The record of a file. Raises Unreadable with the file's name and the reason.

    Fingerprints of the recipe are taken anew: fields that came later have their defaults in it, so
    runs from before and after them share a ranking.
    """
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text).get("schema_version")
    except (OSError, ValueError, AttributeError) as error:
        raise Unreadable(f"{path}: not a record: {' '.join(str(error).split())}") from None
    if version not in READABLE:
        known = ", ".join(map(str, READABLE))
        raise Unreadable(f"{path}: schema version {version!r}; this qbench reads {known}")
    try:
        record = Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Unreadable(f"{path}: not a record: {where}: {first['msg']}") from None
    recipe = record.recipe
    anew = {"recipe": recipe.fingerprint(), "settings": recipe.settings_fingerprint()}
    return record.model_copy(update={"fingerprints": record.fingerprints.model_copy(update=anew)})


def find(places: list[Path]) -> list[Path]:
    """Record files at or below the places named, sorted."""
    found: set[Path] = set()
    for place in places:
        found |= {place} if place.is_file() else set(place.rglob(FILE))
    return sorted(found)


def read_all(paths: list[Path]) -> tuple[list[tuple[Path, Record]], list[str]]:
    """All readable records with their paths, and a line for each that is not."""
    good, bad = [], []
    for path in paths:
        try:
            good.append((path, read(path)))
        except Unreadable as error:
            bad.append(str(error))
    return good, bad
