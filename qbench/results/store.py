"""Records on disk: written atomically, read with their schema checked, found below folders.

A run's record is `record.json` in the folder of the run. The records of a whole matrix may also be
packed into one compressed file (see `archive`), which is read as the folders that it was made from:
`ARCHIVE/RUN/record.json` is a path like any other here.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import json
import os
import re
import signal
import stat
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from qbench import textfile
from qbench.errors import InputError
from qbench.results import archive, codec, kept
from qbench.results.derive import derived
from qbench.results.record import READABLE, Record

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

FILE = "record.json"
LARGEST = 64 * 2**20  # bytes of a record; one of 2,048 videos has 1 MiB
NEIGHBOURS = 10_000  # folders beside a run that are looked into
FEW = 50  # records that are held in memory without further ado
EACH = 250  # records that a process parses at a time
MANY = 2000  # to be parsed, from which on other cores are worth their start
FED = 8  # cores that one process can read for, and keep what they parse

_New = tuple[int, bytes, Path, bytes]  # its place, key, path and text
_Encoded = list[codec.Encoded | str]  # a line in place of what is no record


def write(record: Record, folder: Path) -> Path:
    """Write atomically: a reader sees the old record or the new one, never half of it."""
    record = derived(record)
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


class _Version(BaseModel):
    schema_version: object = None


def read(path: Path) -> Record:
    """The record of a file, or of a path into an archive.

    Raises Unreadable with the path and the reason. Fingerprints of the recipe are taken anew:
    fields that came later have their defaults in it, so runs from before and after them share a
    ranking. Summaries are those of the samples: see `derive`.
    """
    return parse(read_text(path), path)


def read_text(path: Path) -> bytes:
    """The JSON of a record as it is on file. Raises Unreadable with the path and the reason."""
    try:
        place = archive.split(path)
        return archive.member(*place) if place else read_bounded(path, LARGEST)
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path}: {_reason(error, 'a record')}") from None


def parse(text: bytes, path: Path) -> Record:
    """The record in `text`. Raises Unreadable, in which `path` names it."""
    try:
        record = Record.model_validate_json(text)
    except ValidationError as error:
        raise Unreadable(f"{path}: {_refusal(text, error)}") from None
    if record.schema_version not in READABLE:
        raise Unreadable(f"{path}: {_version(record.schema_version)}")
    recipe, settings = record.recipe.both_fingerprints()
    if (record.fingerprints.recipe, record.fingerprints.settings) != (recipe, settings):
        anew = {"recipe": recipe, "settings": settings}
        prints = record.fingerprints.model_copy(update=anew)
        record = record.model_copy(update={"fingerprints": prints})
    return derived(record)


def _refusal(text: bytes, error: ValidationError) -> str:
    """Why these bytes are no record of this program: another version, or what is wrong first."""
    with contextlib.suppress(ValidationError):  # no JSON, or no object
        version = _Version.model_validate_json(text).schema_version
        if version not in READABLE:
            return _version(version)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = [".".join(map(str, first["loc"]))[:200]] if first["loc"] else []
    return ": ".join(["not a record", *where, first["msg"][:500]])


def _version(version: object) -> str:
    if version is None:
        return "not a record: it has no schema_version"
    known = ", ".join(map(str, READABLE))
    return f"schema version {str(version)[:40]!r}; this qbench reads {known}"


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a regular file. Raises OSError where it is another thing or larger than `most`.

    Opening never waits: a pipe has nobody at its other end, and a device may have no end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("no regular file")
        if found.st_size > most:
            raise OSError(f"{found.st_size:,} bytes, more than {most:,}")
        text = file.read(found.st_size + 1)  # a larger buffer would be made for each record
        if len(text) != found.st_size or not text:  # some have no size until they are read
            text += file.read(most + 1 - len(text))
    if len(text) > most:
        raise OSError(f"more than {most:,} bytes")
    return text


def read_beside(folder: Path, name: str, most: int) -> bytes | None:
    """The bytes of a file in a run's folder, real or packed; None where there is no such file.

    A record is data from elsewhere: neither its `files` nor a link may lead out of the folder.
    """
    if not name or "\0" in name:
        return None
    try:
        if place := archive.split(folder / name):
            return archive.member(*place, most) if ".." not in Path(name).parts else None
        if not os.path.lexists(folder / name):  # resolving looks at every folder above
            return None
        inside = folder.resolve()
        path = (inside / name).resolve()
        return read_bounded(path, most) if path.is_relative_to(inside) else None
    except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle
        return None


def absent(place: Path) -> str:
    """Why there is no such file or folder, be it in an archive; empty where there is."""
    try:
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "" if archive.split(place) else "no such file or folder; 'qbench run' makes records"
    except (OSError, ValueError) as error:
        return _reason(error, "a name of a file")
    return ""


def find(places: list[Path]) -> list[Path]:
    """Records and archives at or below the places named, sorted. Links are not followed.

    So are folders that cannot be looked into, for there may be some below: reading one says why.
    Raises InputError where a place is not there, or nothing is at or below any of them.
    """
    found: set[Path] = set()
    for place in places:
        if reason := absent(place):
            raise InputError(f"{place}: {reason}")
        if not place.is_dir():
            found.add(place / FILE if archive.is_run(place) else place)
            continue
        closed: list[OSError] = []
        for folder, inner, names in os.walk(place, onerror=closed.append):
            inner[:] = [name for name in inner if not name.startswith(".")]  # runs not in place yet
            found |= {Path(folder, name) for name in names if name == FILE or archive.named(name)}
            found |= {Path(folder, name) for name in inner if name == FILE}  # a run has none then
        found |= {Path(error.filename) for error in closed}
    if not found:
        raise InputError(f"{places[0]}: no {FILE} at or below it")
    return sorted(found, key=lambda path: path.parts)  # as paths themselves sort, but faster


def siblings(path: Path) -> list[Path]:
    """The record at `path`, and those of the runs beside it: in the same archive, or in folders of
    the same folder. Nothing further away is looked at, wherever a run's folder was copied to.
    """
    if place := archive.split(path):
        return [place[0]]
    found: list[Path] = []
    with contextlib.suppress(OSError), os.scandir(path.parent.parent) as entries:
        for entry in itertools.islice(entries, NEIGHBOURS):
            record = Path(entry.path, FILE)
            if entry.is_dir(follow_symlinks=False) and textfile.is_file(record):
                found.append(record)
    return sorted({path, *found})


def read_all(
    paths: list[Path], *, compact: bool = False
) -> tuple[list[tuple[Path, Record]], list[str]]:
    """All readable records with their paths, and a line for each that is not.

    With `compact` many take little memory: of all but the first few only the head is held, and the
    rest is found where the next call need not parse it again (see `kept`). Such records are for
    reading only, and have no figures by frame.
    """
    found: list[tuple[Path, Record | str]] = []  # a line in place of what is none
    crowd: _Crowd | None = None
    for path, text in _held(_texts(paths)):
        if compact and crowd is None and len(found) >= FEW:
            crowd = _Crowd(found)
        if isinstance(text, str):
            found.append((path, text))
        elif crowd:
            crowd.add(path, text)
        else:
            found.append((path, _parsed(text, path)))
    if crowd:
        crowd.end()
    good = [(path, record) for path, record in found if isinstance(record, Record)]
    return good, [line for _, line in found if isinstance(line, str)]


def _parsed(text: bytes, path: Path) -> Record | str:
    try:
        return parse(text, path)
    except Unreadable as error:
        return str(error)


class _Crowd:
    """Very many records, of which those that are not kept yet are parsed on all cores."""

    def __init__(self, found: list[tuple[Path, Record | str]]) -> None:
        """found: what is to grow, in order."""
        self._found, self._kept = found, kept.Kept(_anew)
        self._new: list[_New] = []
        self._sent: deque[tuple[list[_New], Future[_Encoded]]] = deque()
        self._unknown = 0
        self._pool: ProcessPoolExecutor | None = None

    def add(self, path: Path, text: bytes) -> None:
        key = hashlib.sha256(text).digest()
        record = self._kept.find(key, path)
        self._found.append((path, record or ""))
        if record is None:
            self._new.append((len(self._found) - 1, key, path, text))
            if len(self._new) == EACH:
                self._parse()

    def end(self) -> None:
        self._parse()
        while self._sent:
            self._receive()
        if self._pool:
            self._pool.shutdown()
        self._kept.commit()

    def _parse(self) -> None:
        new, self._new = self._new, []
        self._unknown += len(new)
        cores = min(len(os.sched_getaffinity(0)), FED) if sys.platform == "linux" else 1
        if self._unknown < MANY or cores == 1:
            for place, key, path, text in new:
                record = _parsed(text, path)
                if isinstance(record, Record):
                    record = self._kept.add(key, path, record) or record
                self._found[place] = path, record
            return
        if self._pool is None:
            from concurrent.futures import ProcessPoolExecutor
            from multiprocessing import get_context

            # Forked, so that they need not import anything again.
            self._pool = ProcessPoolExecutor(cores, get_context("fork"), _leave_ctrl_c_alone)
        self._sent.append((new, self._pool.submit(_encoded, [item[2:] for item in new])))
        if len(self._sent) > 2 * cores:
            self._receive()

    def _receive(self) -> None:
        new, made = self._sent.popleft()
        for (place, key, path, text), one in zip(new, made.result(), strict=True):
            if isinstance(one, str):
                self._found[place] = path, one
            else:
                record = self._kept.add_encoded(key, path, one)
                self._found[place] = path, record or _parsed(text, path)


def _encoded(items: list[tuple[Path, bytes]]) -> _Encoded:
    encoder = codec.Encoder()
    return [
        one if isinstance(one := _parsed(text, path), str) else encoder.encode(one)
        for path, text in items
    ]


def _leave_ctrl_c_alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _anew(path: Path) -> tuple[bytes, Record]:
    text = read_text(path)
    return text, parse(text, path)


def _texts(paths: list[Path]) -> Iterator[tuple[Path, bytes | str]]:
    """The bytes of each record with its path, or the line that says why there are none."""
    for path in paths:
        try:
            if archive.named(path.name):
                yield from archive.records(path)
            else:
                yield path, read_text(path)
        except Unreadable as error:
            yield path, str(error)
        except (OSError, ValueError) as error:
            yield path, f"{path}: {_reason(error, 'an archive of records')}"


def _held(items: Iterator[tuple[Path, bytes | str]]) -> Iterator[tuple[Path, bytes | str]]:
    """The items, made without the garbage collector, which would look through them all each time"""
    running = gc.isenabled()
    gc.disable()
    try:
        yield from items
    finally:
        if running:
            gc.enable()


def _reason(error: Exception, kind: str) -> str:
    """Why a file is none of this kind, in one line without the path that the system repeats."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    return f"not {kind}: {' '.join(str(error).split())[:500]}"
