"""The record of a run as it grows: valid at every moment, so every failure leaves a sound one."""

from __future__ import annotations

from datetime import UTC, datetime

from qbench.results.record import Record, Stage, Status
from qbench.run.folders import LOG


def changed(record: Record, **fields: object) -> Record:
    """The record with these fields, validated.

    Raises TypeError for a field that records lack, pydantic's ValidationError for a wrong value.
    """
    unknown = sorted(fields.keys() - Record.model_fields.keys())
    if unknown:
        raise TypeError(f"records have no field {', '.join(unknown)}")
    kept = {name: getattr(record, name) for name in Record.model_fields}
    return Record.model_validate(kept | fields)


def ended(record: Record, status: Status, reason: str = "", stage: str = "") -> Record:
    """The record of a run that is over, for the stage in which it stopped if it is not ok."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    files = {"log": LOG, **record.files}
    return changed(record, status=status, reason=reason, stage=stage, ended=now, files=files)


class Recorder:
    """Gathers what a run's stages found. An error in a field is raised where the field is made."""

    def __init__(self, draft: Record) -> None:
        self.record = draft

    def put(self, **fields: object) -> None:
        self.record = changed(self.record, **fields)

    def stage(self, name: str, stage: Stage) -> None:
        self.put(stages={**self.record.stages, name: stage})

    def note(self, *texts: str) -> None:
        self.put(notes=[*self.record.notes, *texts])

    def facts(self, facts: dict[str, float]) -> None:
        self.put(facts={**self.record.facts, **facts})

    def files(self, **files: str) -> None:
        self.put(files={**self.record.files, **files})
