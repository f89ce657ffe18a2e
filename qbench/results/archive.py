"""The records of a matrix in one compressed file, which is read as the folders it was made from.

`records.jsonl.xz` holds one line of JSON a file, `{"path": "RUN/record.json", "content": ...}`, so
`xzcat records.jsonl.xz | jq .content.recipe.name` works too. What was beside a record in its run's
folder (`profile.json`) follows it. Such a file may come from anywhere, so both the memory that
decompressing takes and the size of what comes out have a limit.
"""

from __future__ import annotations

import functools
import io
import json
import lzma
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from qbench import textfile

FILE = "records.jsonl.xz"
SUFFIX = ".jsonl.xz"
RECORD = "record.json"
LARGEST_LINE = 64 * 2**20  # bytes
LARGEST = 2 * 2**30  # bytes of an archive, unpacked
LARGEST_PACKED = 512 * 2**20
MEMORY = 256 * 2**20  # bytes that the decompressor may take
# For text: no byte's place in a word says anything about it, and that before it does.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
BESIDE = 64 * 2**20  # bytes of an archive's files beside the records, which are kept
# Of a line as `write` writes it: what `path` names, and where the content begins.
HEAD = re.compile(
    rb'\s*\{\s*"path"\s*:\s*"(?P<path>[\w.+-]{1,200}/[\w.+-]{1,200})"\s*,\s*"content"\s*:\s*'
)


def named(name: str) -> bool:
    """Whether a file of this name is an archive."""
    return name.endswith(SUFFIX)


def split(path: Path) -> tuple[Path, str] | None:
    """The archive that a path leads into, and the rest of it; None for any other path."""
    if SUFFIX not in str(path):
        return None
    for above in path.parents:
        if named(above.name) and textfile.is_file(above):
            return above, path.relative_to(above).as_posix()
    return None


def is_run(path: Path) -> bool:
    """Whether the path names a run in an archive, and none of its files."""
    place = split(path)
    return place is not None and "/" not in place[1]


def write(entries: Iterable[tuple[str, bytes]], path: Path) -> Path:
    """Pack (`RUN/record.json`, JSON) pairs, atomically. Raises ValueError where one is no JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file, lzma.open(file, "wb", filters=FILTERS) as packed:
            for name, content in entries:
                line = json.dumps(
                    {"path": name, "content": json.loads(content)}, separators=(",", ":")
                ).encode()
                if not HEAD.match(line):
                    raise ValueError(f"{name}: no name of a file in a run's folder")
                packed.write(line + b"\n")
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    return path


def records(path: Path) -> Iterator[tuple[Path, bytes]]:
    """Each record's path and JSON. Raises OSError or ValueError where the archive is damaged."""
    for name, content in lines(path):
        if name.endswith(f"/{RECORD}"):
            yield path / name, content


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each file's name and JSON, in the order of the archive."""
    with _open(path) as file:
        number = 0
        while line := file.readline(LARGEST_LINE + 1):
            number += 1
            if len(line) > LARGEST_LINE:
                raise ValueError(f"line {number} is longer than {LARGEST_LINE:,} bytes")
            found = HEAD.match(line)
            end = line.rstrip()
            if not found or not end.endswith(b"}"):
                raise ValueError(f"line {number} is no file of a run")
            yield found["path"].decode(), end[found.end() : -1]


def member(path: Path, name: str, most: int = LARGEST_LINE) -> bytes:
    """One file of the archive. Raises OSError where it has none of this name, or a larger one."""
    if name.endswith(f"/{RECORD}"):
        content = next((text for known, text in lines(path) if known == name), None)
    else:
        content = _beside(path, _state(path)).get(name)
    if content is None:
        raise OSError(f"no {name} in {path.name}")
    if len(content) > most:
        raise OSError(f"{len(content):,} bytes, more than {most:,}")
    return content


def runs(path: Path) -> list[str]:
    """The names of the runs in the archive."""
    return [inside.parent.name for inside, _ in records(path)]


@functools.lru_cache(maxsize=8)
def _beside(path: Path, state: tuple[int, int]) -> dict[str, bytes]:
    """All files that are no records: charts ask for one after the other."""
    found: dict[str, bytes] = {}
    size = 0
    for name, content in lines(path):
        if not name.endswith(f"/{RECORD}"):
            size += len(content)
            if size > BESIDE:
                break
            found[name] = content
    return found


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _open(path: Path) -> io.BufferedReader:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(handle, "rb")
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST_PACKED:
        file.close()
        raise OSError("no regular file" if not stat.S_ISREG(found.st_mode) else "too large")
    return io.BufferedReader(_Unpacked(file), 2**20)


class _Unpacked(io.RawIOBase):
    """What an xz file holds, up to a limit of memory and size."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._total = file, 0
        self._unpack = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=MEMORY)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._unpack.eof:
            packed = self._file.read(2**16) if self._unpack.needs_input else b""
            if self._unpack.needs_input and not packed:
                raise ValueError("it ends too early")
            try:
                data = self._unpack.decompress(packed, len(buffer))
            except lzma.LZMAError as error:
                raise ValueError(str(error)) from None
            if data:
                self._total += len(data)
                if self._total > LARGEST:
                    raise ValueError(f"more than {LARGEST:,} bytes when unpacked")
                buffer[: len(data)] = data
                return len(data)
        return 0
