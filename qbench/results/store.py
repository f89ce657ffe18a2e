"""Records on disk: written atomically, read with their schema checked, found below folders."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

from pydantic import ValidationError

from qbench.results.record import READABLE, Record

FILE = "record.json"


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
