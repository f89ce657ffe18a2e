"""Very many records: of each only the head is in memory, and it is parsed and checked once.

The rest of one is fetched when it is looked at, and kept for a later call. An entry's key is the
SHA-256 of the record's own bytes, so a record that changed has none, whatever its name, size and
time say. Each entry holds digests of itself, and lies in a file named after a digest of this
program, so that neither damage nor another version is ever shown: what cannot be used is parsed
again. Where there can be no such file it is a temporary one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from qbench import cache
from qbench.errors import InputError
from qbench.results import codec
from qbench.results.record import Record

FOLDER = "records"
LARGEST = 4 * 2**30  # bytes of the file, past which it is begun anew
OLD = 24 * 3600.0  # seconds after which another version's file is removed
HELD = 10_000  # records whose rest is held in memory: the first that are looked at
PASSING = 2500  # of all others, the last that were: a series of a history is looked at twice
READ = 64  # records whose numbers are
EACH = 500  # entries written at a time, so that others may write too
TABLES = """
create table if not exists entries (
    key blob primary key, head_digest blob, rest_digest blob, numbers_digest blob,
    head blob, rest blob, numbers blob
);
create table if not exists parts (key text primary key, part blob);
"""
Anew = Callable[[Path], tuple[bytes, Record]]


class Stored(Record):
    """A record of which only the head is in memory until more of it is looked at."""

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            place = codec.PLACES.get(name)
            if place is None:
                return super().__getattr__(name)
            kept, key, path = object.__getattribute__(self, "_source")
            value = kept.value(self, key, path, place)
            if name in codec.MADE:  # past thirty attributes Python keeps the names with each object
                object.__setattr__(self, name, value)
            return value

    def model_copy(self, **options: object) -> Record:  # type: ignore[override]
        """All of it, as a record of its own."""
        values = {name: getattr(self, name) for name in Record.model_fields}
        return Record.model_construct(**values).model_copy(**options)  # type: ignore[arg-type]

    def forget(self) -> None:
        """All but the head, until it is looked at again."""
        for name in codec.MADE & self.__dict__.keys():
            object.__delattr__(self, name)


Held = tuple[Stored, list[object], codec.Read]


class Kept:
    """What earlier calls have read, and what this one reads. anew: reads and parses a record again.

    Where nothing can be kept (no room on any disk), `add` gives None. Looking at a record of which
    something was lost since raises InputError where it is another one by then.
    """

    def __init__(self, anew: Anew) -> None:
        self._anew = anew
        self._decoder, self._encoder = codec.Decoder(self._part), codec.Encoder()
        self._lost_parts: dict[codec.Key, bytes] = {}
        self._waiting = 0
        self._database = _opened()
        self._held: dict[int, Held] = {}
        self._passing: dict[int, Held] = {}
        self._numbers = functools.lru_cache(maxsize=READ)(self._read_numbers)

    def find(self, key: bytes, path: Path) -> Record | None:
        """The record of this content, if it was read before."""
        head = self._blob("head", key)
        try:
            return self._made(head, key, path) if head is not None else None
        except (KeyError, ValueError):  # a part of it is lost, or damaged
            return None

    def add(self, key: bytes, path: Path, record: Record) -> Record | None:
        """The record as it is held from now on."""
        return self.add_encoded(key, path, self._encoder.encode(record))

    def add_encoded(self, key: bytes, path: Path, made: codec.Encoded) -> Record | None:
        """The same of one that another process has parsed, with all of its parts."""
        if self._database is None:
            return None
        try:
            execute = self._database.execute
            for item in made.parts.items():
                execute("insert or replace into parts values (?, ?)", item)
            blobs = made.head, made.rest, made.numbers
            execute(
                "insert or replace into entries values (?, ?, ?, ?, ?, ?, ?)",
                (key, *(_digest(key, blob) for blob in blobs), *blobs),
            )
            self._waiting += 1
            if self._waiting >= EACH:
                self.commit()
        except sqlite3.Error:  # a full disk, or another process holds it
            self._database = None
            return None
        return self._made(made.head, key, path)

    def commit(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._database is not None:
                self._database.commit()
        self._waiting = 0

    def _made(self, head: bytes, key: bytes, path: Path) -> Stored:
        made = Stored.__new__(Stored)
        write = object.__setattr__
        for name, value in zip(codec.HEAD, self._decoder.head(head), strict=True):
            write(made, name, value)
        write(made, "_source", (self, key, path))
        write(made, "__pydantic_fields_set__", codec.UNSET)
        write(made, "__pydantic_extra__", None)
        write(made, "__pydantic_private__", None)
        return made

    def value(self, record: Stored, key: bytes, path: Path, place: int) -> object:
        """One of what is not head. Tables look at all records in turn, again and again, so that of
        more than can be held none would be found again if the last were.
        """
        held = self._held.get(id(record)) or self._passing.get(id(record))
        if held is None:
            held = record, self._rest(key, path), functools.partial(self._some, key, path)
            if len(self._held) < HELD:
                self._held[id(record)] = held
            else:
                if len(self._passing) >= PASSING:
                    self._passing.pop(next(iter(self._passing)))[0].forget()
                self._passing[id(record)] = held
        return self._decoder.value(held[1], place, held[2])

    def _rest(self, key: bytes, path: Path) -> list[object]:
        found = self._blob("rest", key)
        with contextlib.suppress(ValueError):
            if found is not None:
                return self._decoder.rest(found)
        return self._decoder.rest(self._again(key, path).rest)

    def _some(self, key: bytes, path: Path, start: int, n: int) -> bytes:
        return self._numbers(key, path)[8 * start : 8 * (start + n)]

    def _read_numbers(self, key: bytes, path: Path) -> bytes:
        found = self._blob("numbers", key)
        return self._again(key, path).numbers if found is None else found

    def _again(self, key: bytes, path: Path) -> codec.Encoded:
        """What was kept and is lost, from the record itself."""
        text, record = self._anew(path)
        if hashlib.sha256(text).digest() != key:
            raise InputError(f"{path}: changed while it was read; the same command reads it anew")
        made = codec.Encoder().encode(record)  # with all of its parts
        self._lost_parts.update(made.parts)
        return made

    def _part(self, key: codec.Key) -> bytes:
        row = self._row("select part from parts where key = ?", key)
        if row is not None and codec.key_of(row[0]) == key:
            return row[0]
        return self._lost_parts[key]

    def _blob(self, column: str, key: bytes) -> bytes | None:
        """One of an entry's, where it is as it was written."""
        row = self._row(f"select {column}, {column}_digest from entries where key = ?", key)
        return row[0] if row is not None and _digest(key, row[0]) == row[1] else None

    def _row(self, query: str, key: bytes | str) -> tuple[bytes, ...] | None:
        if self._database is None:
            return None
        try:
            row: tuple[bytes, ...] | None = self._database.execute(query, (key,)).fetchone()
        except sqlite3.Error:
            return None
        return row if row and all(isinstance(cell, bytes) for cell in row) else None


def _digest(key: bytes, blob: bytes) -> bytes:
    return hashlib.blake2b(blob, digest_size=16, key=key).digest()


def _opened() -> sqlite3.Connection | None:
    """The file of this version of the program, or a temporary one; None where there is neither."""
    with contextlib.suppress(OSError):
        folder = cache.folder() / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{_program()}.sqlite"
        _tidy(folder, path)
        for fresh in (False, True):
            if fresh:
                path.unlink(missing_ok=True)
            if found := _connected(str(path)):
                return found
    return _connected("")  # SQLite's word for a file without a name


def _connected(place: str) -> sqlite3.Connection | None:
    try:
        found = sqlite3.connect(place, timeout=5.0)
        found.execute("pragma synchronous = off")  # what a power cut damages is read again
        found.executescript(TABLES)
        return found
    except sqlite3.Error:
        return None


def _tidy(folder: Path, own: Path) -> None:
    """Remove what other versions left, and a file that has grown too large."""
    with contextlib.suppress(OSError):
        if own.stat().st_size > LARGEST:
            own.unlink()
        else:
            os.utime(own)
    for other in folder.glob("*.sqlite"):
        with contextlib.suppress(OSError):
            if other != own and time.time() - other.stat().st_mtime > OLD:
                other.unlink()


@functools.cache
def _program() -> str:
    """Digest of all that makes a record of its bytes: this package, pydantic and Python."""
    hashed = hashlib.sha256(f"{pydantic.VERSION} {platform.python_version()}".encode())
    package = Path(cache.__file__).parent
    for path in sorted(package.rglob("*.py")):
        hashed.update(f"{path.relative_to(package)}\0".encode())
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:32]
