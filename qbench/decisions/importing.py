"""`qbench import OTHER/results`: records of another machine, checked and laid beside one's own.

What is copied stands in a folder of its own, `OUT/MACHINE/RUN-DIGEST`, with a note of its origin.
It is made beside its place and renamed, so it is whole or not there; nothing is overwritten and no
link is followed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from qbench import textfile
from qbench.decisions import plausible
from qbench.errors import InputError, Mistakes
from qbench.results import archive, origin, store
from qbench.results.record import Record, Strict
from qbench.run.profiling import PROFILE

UNFINISHED = ("running", "interrupted")
LARGEST = 64 * 2**20  # bytes of a file beside a record
SHOWN = 20  # records that pass and are named
FILES = 100  # files of a run that are copied
BESIDE = re.compile(r"[A-Za-z0-9._+-]{1,200}")  # what a file beside a record may be called
NAME = re.compile(r"[^A-Za-z0-9._+-]")

Status = Literal["imported", "here already", "unfinished", "refused"]


class Check(Strict):
    """faults: empty where the record passes."""

    name: str
    faults: tuple[str, ...] = ()


class Item(Strict):
    """One record of the place that was named. folder: where it lies now."""

    source: str
    run: str
    status: Status
    checks: tuple[Check, ...]
    folder: str = ""


class Imported(Strict):
    items: tuple[Item, ...]
    out: str

    @property
    def refused(self) -> bool:
        return any(item.status == "refused" for item in self.items)


def take_in(places: list[Path], out: Path) -> Imported:
    """Check all records at or below the places, and copy those that pass.

    Raises InputError where a place is not there or has no records, none of them can be read at all,
    or `out` cannot be written.
    """
    paths = []
    for place in places:
        if _within(out, place) or _within(place, out):
            raise InputError(f"{place}: lies in {out}, or {out} in it: nothing to import")
        paths += [(place, path) for path in store.find([place])]
    items: list[Item] = []
    unread = Mistakes()
    for place, path in paths:
        if archive.named(path.name):
            items += _of_archive(place, path, out, unread)
        else:
            items.append(_one(place, path, out, unread))
    if unread.count == len(items):  # nothing was checked, so nothing was refused
        unread.tell()
    return Imported(items=tuple(items), out=str(out))


def _within(inner: Path, outer: Path) -> bool:
    return textfile.resolved(inner).is_relative_to(textfile.resolved(outer))


def _of_archive(place: Path, path: Path, out: Path, unread: Mistakes) -> list[Item]:
    if path.is_symlink():
        return [_refused(path, "a link, which is not followed")]
    items = []
    try:
        for inside, text in archive.records(path):
            items.append(_checked(place, inside, text, out))
    except OSError as error:
        fault = f"cannot be read: {error.strerror or error}"
        unread.add(f"{path}: {fault}")
        items.append(_refused(path, fault))
    except ValueError as error:
        items.append(_refused(path, f"not an archive of records: {error}"))
    return items


def _one(place: Path, path: Path, out: Path, unread: Mistakes) -> Item:
    if archive.split(path) is None and path.is_symlink():
        return _refused(path, "a link, which is not followed")
    try:
        text = store.read_text(path)
    except store.Unreadable as error:
        unread.add(str(error))
        return _refused(path, str(error).removeprefix(f"{path}: "))
    return _checked(place, path, text, out)


def _refused(path: Path, fault: str) -> Item:
    check = Check(name="schema", faults=(fault,))
    return Item(source=str(path), run="", status="refused", checks=(check,))


def _checked(place: Path, path: Path, text: bytes, out: Path) -> Item:
    try:
        record = store.parse(text, path)
        stored = Record.model_validate_json(text)
    except store.Unreadable as error:
        return _refused(path, str(error).removeprefix(f"{path}: "))
    made: dict[str, list[str]] = {"schema": []}
    made["fingerprints"] = plausible.fingerprints(record, stored)
    made["samples"] = plausible.samples(record, stored)
    made |= {name: check(record) for name, check in plausible.CHECKS.items()}
    made["videos"] = plausible.videos(path.parent, record)
    checks = tuple(Check(name=name, faults=tuple(faults)) for name, faults in made.items())
    status: Status = "imported"
    folder = ""
    if any(check.faults for check in checks):
        status = "refused"
    elif record.status in UNFINISHED:
        status = "unfinished"
    else:
        status, folder = _laid(place, path, text, record, out)
    return Item(source=str(path), run=record.run, status=status, checks=checks, folder=folder)


def _laid(place: Path, path: Path, text: bytes, record: Record, out: Path) -> tuple[Status, str]:
    """Copy one run. Its name has a digest, so that other runs of the recipe stand beside it."""
    sha256 = hashlib.sha256(text).hexdigest()
    name = NAME.sub("-", record.recipe.plain_name)
    machine = out / record.environment.machine()
    target = machine / f"{name}-{sha256[:12]}"
    if os.path.lexists(target):
        return "here already", str(target)
    note = origin.Origin(
        place=str(place)[:4000],
        imported=datetime.now(UTC).isoformat(timespec="seconds"),
        record_sha256=sha256,
    )
    partial: Path | None = None
    try:
        machine.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=machine, prefix=".import-"))
        (partial / store.FILE).write_bytes(text)
        (partial / origin.FILE).write_text(note.model_dump_json(indent=1) + "\n", encoding="utf-8")
        _copy_beside(path.parent, record, partial)
        partial.chmod(0o755)
        os.rename(partial, target)  # refused where the target came to be meanwhile
    except OSError as error:
        where = error.filename or machine
        raise InputError(f"{where}: cannot be written: {error.strerror or error}") from None
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)
    return "imported", str(target)


def _copy_beside(folder: Path, record: Record, target: Path) -> None:
    """What reports read beside a record, and the videos that people look at; no raw ones."""
    from qbench.quality.outputs import FOLDER

    names = {PROFILE, *record.files.values()} - {FOLDER, store.FILE, origin.FILE}
    left = FILES
    for name in sorted(names):
        if name.startswith(".") or not BESIDE.fullmatch(name):
            continue
        if archive.split(folder):
            text = store.read_beside(folder, name, LARGEST)
            if text is not None:
                (target / name).write_bytes(text)
            continue
        source = folder / name
        if source.is_symlink():
            continue
        if source.is_dir():
            inside = sorted(p for p in source.iterdir() if not p.name.startswith("."))[:left]
            (target / name).mkdir()
        else:
            inside = [source]
        for file in inside:
            left -= 1
            _copy(file, target / file.relative_to(folder))


def _copy(source: Path, target: Path) -> None:
    """A regular file that is no link; anything else is passed over."""
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            return
        with target.open("xb") as copy:
            shutil.copyfileobj(file, copy)


def lines(made: Imported) -> list[str]:
    """What became of each record; of one that is refused every check on its own line."""
    said = []
    passed = [item for item in made.items if item.status in ("imported", "here already")]
    quiet = {item.source for item in passed[SHOWN:]}
    for item in made.items:
        if item.source in quiet:
            continue
        name = item.run or item.source
        where = f", {item.folder}" if item.folder else ""
        said.append(f"{name}: {item.status}{where}")
        if item.status == "refused":
            said.append(f"  in {item.source}")
            said += [f"  {c.name}: {'; '.join(c.faults) or 'passes'}" for c in item.checks]
    if len(passed) > SHOWN:
        said.append(f"and {len(passed) - SHOWN} more that pass")
    count = Counter(item.status for item in made.items)
    return [*said, ", ".join(f"{n} {status}" for status, n in count.items())]
