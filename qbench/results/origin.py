"""Where a record came from that was not measured here: a note beside it, which reports show."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from qbench import textfile
from qbench.fields import Line, Word
from qbench.results import archive, store
from qbench.results.ranking import Ranking, label

FILE = "origin.json"
LARGEST = 2**16
NAMED = 8


class Origin(BaseModel):
    """Written by `qbench import`. place: as the user named it there and then."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    place: Line
    imported: Word  # ISO 8601, UTC
    record_sha256: Word


def read(folder: Path) -> Origin | None:
    """None for what was measured here, and where the note cannot be read."""
    if archive.split(folder) or not textfile.is_file(folder / FILE):
        return None
    text = store.read_beside(folder, FILE, LARGEST)
    try:
        return Origin.model_validate_json(text) if text is not None else None
    except ValidationError:
        return None


def notes(ranking: Ranking) -> list[str]:
    """A line for each place that records of this ranking were imported from."""
    found: dict[str, list[str]] = {}
    for record, folder in zip(ranking.records, ranking.folders, strict=True):
        if origin := read(folder):
            place = f"{origin.place} on {origin.imported[:10]}"
            found.setdefault(place, []).append(label(record, ranking))
    return [
        f"Not measured here, but imported from {place}: {', '.join(names[:NAMED])}"
        + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        for place, names in found.items()
    ]
