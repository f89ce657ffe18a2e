"""Text files that a user names, read with limits: whatever is wrong with one is one line."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from qbench.errors import InputError

# What a file system says to a writer where all of it is the user's to mend.
REFUSALS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.ELOOP,
    errno.ENAMETOOLONG,
)  # fmt: skip


def is_file(path: Path) -> bool:
    """Whether this is a regular file; False too for names that no file system takes."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether this is a folder; False too for names that no file system takes."""
    return stat.S_ISDIR(_mode(path))


def exists(path: Path) -> bool:
    return _mode(path) != 0


def is_closed(path: Path) -> bool:
    """Whether nobody knows what is there, for a folder above may not be looked into."""
    try:
        path.stat()
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return False


def closed(path: Path | str) -> str:
    """What is said of a path that `is_closed`."""
    return f"{path}: cannot be read: {os.strerror(errno.EACCES)}"


def hidden(path: Path) -> str:
    """What is said of a path that `is_closed`, or is a link to nothing; empty for any other."""
    if is_closed(path):
        return closed(path)
    return f"{path}: a link that leads nowhere" if _leads_nowhere(path) else ""


def lacking(path: Path, said: str) -> str:
    """What is said of a path where nothing of the kind that was wanted could be seen."""
    return hidden(path) or f"{path}: {said}"


def resolved(path: Path | str) -> Path:
    """The path without links; of links in a circle, as far as it goes."""
    return Path(os.path.realpath(path))  # pathlib's raises RuntimeError


def expanded(name: str) -> Path:
    """The path of a name that may begin with `~`; where nobody has that home, as it stands."""
    return Path(os.path.expanduser(name))  # pathlib's raises RuntimeError


def nameable(path: Path, name: str) -> None:
    """Refuse a path whose bytes are not UTF-8: records, pages and libraries could not name it.

    Raises InputError, which begins with `name`.
    """
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{name}: the path is not UTF-8 throughout; name another") from None


def makeable(folder: Path, name: str) -> Path:
    """Where this folder is or would be made: the last of the folders above that is there.

    Raises InputError, which begins with `name`, where it cannot be made or written to.
    """
    nameable(folder, name)
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))
    if not is_folder(there):
        what = "a link that leads nowhere" if _leads_nowhere(there) else "a file, not a folder"
        raise InputError(f"{name}: {there} is {what}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{name}: {there} cannot be written to")
    most = os.pathconf(there, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > most for part in folder.parts):
        raise InputError(f"{name}: a name of more than {most} bytes")
    return there


def read(path: Path, most_bytes: int, name: str | None = None) -> str:
    """The file's text without a byte order mark, its lines ended by '\\n'.

    UTF-8, or UTF-16 where it begins with that mark. Raises InputError for a folder, a device or a
    pipe, a file past `most_bytes`, one that may not be read, and one in another encoding; the line
    begins with `name`, else with the path.
    """
    name = name or str(path)
    try:
        # A pipe without a writer would block the opening itself.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{name}: cannot be read: {reason}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
            raise InputError(f"{name}: {kind}, not a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(data) > most_bytes:
        raise InputError(f"{name}: larger than {most_bytes:,} bytes")
    return _decoded(data, name).replace("\r\n", "\n").replace("\r", "\n")


def replace(path: Path, text: str) -> None:
    """Write the whole file as UTF-8, or leave the one that is there as it is."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write, of the same suffix, which takes the path where the block ends well."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Raise InputError, one line, where the disk is full or refuses what the block writes."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        where = error.filename or place
        raise InputError(f"{where}: cannot be written: {error.strerror}") from None


def _decoded(data: bytes, name: str) -> str:
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        advice = "save it as UTF-8, for example with iconv"
        raise InputError(
            f"{name}:{line}: not {encoding.upper().removesuffix('-SIG')} text; {advice}"
        ) from None


def _leads_nowhere(path: Path) -> bool:
    return os.path.islink(path) and not exists(path)


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0
