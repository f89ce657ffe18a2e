"""A run's folder: written beside what is complete in it, and replaced at the end.

A complete record stays where it is until another complete one takes its place, so a run that is
stopped in the middle loses nothing. Where there is none, the run is written in place, so that what
became of it can be seen at any time.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from qbench.quality.outputs import FOLDER as OUTPUTS
from qbench.results import store
from qbench.results.record import Record

DONE = ("ok", "invalid")  # a record with such a status is complete
LOG = "log.txt"
FAILED_LOG = "failed-log.txt"  # of a later attempt that came to nothing


def work_folder(folder: Path) -> Path:
    """An empty folder to run in: this one, or one beside it where a complete record is in it."""
    _recover(folder)
    work = _new(folder) if _status(folder) in DONE else folder
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    return work


def settle(work: Path, folder: Path) -> None:
    """Put a finished run in its place. What came to nothing leaves its log beside the record."""
    status = _status(work)
    if status in DONE:  # a sweep that was killed may have left parts, whatever sweep went on
        shutil.rmtree(parts_folder(folder), ignore_errors=True)
    if work == folder:
        return
    if status in DONE:
        old = _old(folder)
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
        os.rename(work, folder)
        shutil.rmtree(old, ignore_errors=True)
        return
    if (work / LOG).is_file() and status != "interrupted":
        os.replace(work / LOG, folder / FAILED_LOG)
    shutil.rmtree(work, ignore_errors=True)


def log_of(record: Record, folder: Path) -> Path | None:
    """The log that a run has left, also where an earlier one is complete; a lost run left none."""
    try:
        kept = store.read(folder / store.FILE).run == record.run
    except store.Unreadable:
        kept = False
    if not kept and record.status == "interrupted":
        return None
    path = folder / (LOG if kept else FAILED_LOG)
    return path if path.is_file() else None


def complete(folder: Path, draft: Record) -> Record | None:
    """The record that makes this run unnecessary, or None.

    It has the draft's fingerprints, was compared with the same videos, got the pairs that it was
    to have, and its own videos, where others are compared with them, are those that it made.
    """
    _recover(folder)
    try:
        old = store.read(folder / store.FILE)
    except store.Unreadable:
        return None
    whole = (
        old.status in DONE
        and old.fingerprints == draft.fingerprints
        and _same_reference(old, draft)
        and old.interleaved != "reference died"
        and not (draft.recipe.is_reference and damage(folder, old))
    )
    return old if whole else None


def damage(folder: Path, record: Record) -> str:
    """What is wrong with a run's raw videos, in a few words; empty where they are as it made them.

    Records from before there were digests are held against the number of their videos.
    """
    from qbench.quality.outputs import Outputs

    if not record.videos:
        return ""
    outputs = Outputs(folder / OUTPUTS)
    if len(outputs) < record.videos:
        return f"{record.videos - len(outputs)} of {record.videos} videos are missing"
    if record.outputs_sha256 and outputs.digest() != record.outputs_sha256:
        return "the videos are not those that it made"
    return ""


def _same_reference(old: Record, draft: Record) -> bool:
    """Whether both were compared with the same run, or with runs that made the same videos."""
    a, b = old.reference, draft.reference
    if a is None or b is None:
        return a is b
    return a.recipe == b.recipe and (a.run == b.run or bool(a.outputs and a.outputs == b.outputs))


def _status(folder: Path) -> str:
    try:
        return store.read(folder / store.FILE).status
    except store.Unreadable:
        return ""


def _recover(folder: Path) -> None:
    """Finish a replacement in the middle of which the machine went down."""
    if not folder.exists():
        for other in (_new(folder), _old(folder)):
            if _status(other) in DONE:
                os.rename(other, folder)
                break
    for other in (_new(folder), _old(folder)):
        if other.exists():
            shutil.rmtree(other, ignore_errors=True)


def parts_folder(work: Path) -> Path:
    """Where the videos of a run that are made elsewhere, in parts, are gathered."""
    return work.with_name(f".{work.name.removeprefix('.').removesuffix('.new')}.parts")


def _new(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
