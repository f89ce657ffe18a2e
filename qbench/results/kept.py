"""Records that were read before: parsed and checked once, and found again by their content.

An entry's key is the SHA-256 of the record's own bytes, so a record that changed has none, whatever
its name, size and time say. Each entry holds a digest of itself, and lies in a file named after a
digest of this program, so that neither damage nor another version is ever shown: what cannot be
used is parsed again. Records made from entries look like any other, but hold little: the rest of
one is fetched when it is looked at, and of few at a time.
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
HELD = 20_000  # records whose rest is held in memory
READ = 64  # records whose numbers are
EACH = 500  # entries written at a time, so that others may write too
TABLES = """
create table if not exists entries (key blob primary key, head blob, rest blob, digest blob);
create table if not exists numbers (key blob primary key, numbers blob, digest blob);
create table if not exists parts (key text primary key, part blob);
"""
Anew = Callable[[Path], tuple[bytes, Record]]


class Stored(Record):
    """A record of which only the head is in memory."""

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            place = codec.PLACES.get(name)
            if place is None:
                return super().__getattr__(name)
            own = object.__getattribute__(self, "_source")
            return own[0].rest(own[1], own[2])[place]

    def model_copy(self, **options: object) -> Record:  # type: ignore[override]
        """All of it, as a record of its own."""
        values = {name: getattr(self, name) for name in Record.model_fields}
        return Record.model_construct(**values).model_copy(**options)  # type: ignore[arg-type]


class Kept:
    """What earlier calls have read, and what this one reads. anew: reads and parses a record again.

    Where nothing can be kept (no room, no place that can be written), `add` gives None. Looking at
    a record of which something was lost since raises InputError where it is another one by then.
    """

    def __init__(self, anew: Anew) -> None:
        self._anew = anew
        self._decoder = codec.Decoder(self._part)
        self._encoder = codec.Encoder()
        self._waiting = 0
        self._database = _opened()
        self.rest = functools.lru_cache(maxsize=HELD)(self._rest)
        self._numbers = functools.lru_cache(maxsize=READ)(self._read_numbers)

    def find(self, key: bytes, path: Path) -> Record | None:
        """The record of this content, if it was read before."""
        row = self._row("select head, rest, digest from entries where key = ?", key)
        if row is None or _digest(key, row[0], row[1]) != row[2]:
            return None
        try:
            return self._made(row[0], key, path)
        except (KeyError, ValueError):  # a part of it is lost, or damaged
            return None

    def add(self, key: bytes, path: Path, record: Record) -> Record | None:
        """The record as it is held from now on."""
        if self._database is None:
            return None
        try:
            made = self._encoder.encode(record)
        except TypeError:
            return None
        try:
            execute = self._database.execute
            for item in made.parts.items():
                execute("insert or replace into parts values (?, ?)", item)
            execute(
                "insert or replace into entries values (?, ?, ?, ?)",
                (key, made.head, made.rest, _digest(key, made.head, made.rest)),
            )
            execute(
                "insert or replace into numbers values (?, ?, ?)",
                (key, made.numbers, _digest(key, made.numbers)),
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

    def _made(self, head: bytes, key: bytes, path: Path) -> Record:
        made = Stored.__new__(Stored)
        write = object.__setattr__
        for name, value in zip(codec.HEAD, self._decoder.values(head), strict=True):
            write(made, name, value)
        write(made, "_source", (self, key, path))
        write(made, "__pydantic_fields_set__", codec.UNSET)
        write(made, "__pydantic_extra__", None)
        write(made, "__pydantic_private__", None)
        return made

    def _rest(self, key: bytes, path: Path) -> list[object]:
        row = self._row("select head, rest, digest from entries where key = ?", key)
        read = functools.partial(self._some, key, path)
        with contextlib.suppress(KeyError, ValueError):
            if row is not None and _digest(key, row[0], row[1]) == row[2]:
                return self._decoder.values(row[1], read)
        return self._decoder.values(self._again(key, path).rest, read)

    def _some(self, key: bytes, path: Path, start: int, n: int) -> bytes:
        return self._numbers(key, path)[8 * start : 8 * (start + n)]

    def _read_numbers(self, key: bytes, path: Path) -> bytes:
        row = self._row("select numbers, digest from numbers where key = ?", key)
        if row is not None and _digest(key, row[0]) == row[1]:
            return row[0]
        return self._again(key, path).numbers

    def _again(self, key: bytes, path: Path) -> codec.Encoded:
        """What was kept and is lost, from the record itself."""
        text, record = self._anew(path)
        if hashlib.sha256(text).digest() != key:
            raise InputError(f"{path}: changed while it was read; the same command reads it anew")
        made = codec.Encoder().encode(record)  # with all of its parts
        self._lost_parts.update(made.parts)
        return made

    @functools.cached_property
    def _lost_parts(self) -> dict[codec.Key, bytes]:
        return {}

    def _part(self, key: codec.Key) -> bytes:
        row = self._row("select part from parts where key = ?", key)
        if row is not None and codec.key_of(row[0]) == key:
            return row[0]
        return self._lost_parts[key]

    def _row(self, query: str, key: bytes | str) -> tuple[bytes, ...] | None:
        if self._database is None:
            return None
        try:
            row: tuple[bytes, ...] | None = self._database.execute(query, (key,)).fetchone()
        except sqlite3.Error:
            return None
        return row if row and all(isinstance(cell, bytes) for cell in row) else None


def _digest(*parts: bytes) -> bytes:
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.digest()


def _opened() -> sqlite3.Connection | None:
    """The file of this version of the program; None where there cannot be one."""
    try:
        folder = cache.folder() / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{_program()}.sqlite"
        _tidy(folder, path)
        for fresh in (False, True):
            if fresh:
                path.unlink(missing_ok=True)
            with contextlib.suppress(sqlite3.Error):
                found = sqlite3.connect(path, timeout=5.0)
                found.execute("pragma synchronous = off")  # what a power cut damages is read again
                found.executescript(TABLES)
                return found
    except OSError:
        pass
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
