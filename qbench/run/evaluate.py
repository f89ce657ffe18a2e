"""The quality of a run's videos, beside those of the reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.quality.outputs import FOLDER, Outputs

if TYPE_CHECKING:
    from qbench.quality.statistics import Metric
    from qbench.run.session import Session


@dataclass(frozen=True)
class Evaluation:
    """The figures; what makes the videos invalid; what was left out and why."""

    videos: int
    quality: dict[str, Metric]
    faults: list[str]
    notes: list[str]


def _videos_of(folder: Path) -> Outputs:
    """The videos of a finished run, held against its record. Raises InputError for others."""
    from qbench.results import store

    outputs = Outputs(folder / FOLDER)
    outputs.verify(store.read(folder / store.FILE).outputs_sha256, 1)
    return outputs


def evaluate(session: Session, outputs: Outputs) -> Evaluation:
    """Every figure that the recipe asks for. The metric networks take the denoiser's memory."""
    from qbench.quality import evaluate as quality

    stages, job, made = session.stages, session.job, session.generation
    stages.enter("quality")
    session.release()
    count = len(session.prompts)
    reference = _videos_of(job.reference) if job.reference else None
    found = quality.measure(
        outputs,
        reference,
        session.prompts,
        (made.frames, 3, made.height, made.width),
        session.model,
        session.recipe.quality,
        session.device,
        progress=lambda done: stages.enter("quality", done, count),
    )
    notes = list(found.notes)
    if reference is None and not session.recipe.is_reference:
        notes.append("no finished run of the reference to compare with")
    stages.leave("quality")
    return Evaluation(count, found.metrics, found.faults, notes)
