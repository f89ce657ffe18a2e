"""Writing an engine's folder: beside its place, and into it only when all of it is there.

A reader sees the old folder or the new one. Whatever ends an export, SIGKILL included, leaves no
half of one at its place; what it leaves beside it is removed by the next export there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from qbench import textfile
from qbench.engines import manifest
from qbench.errors import InputError
from qbench.textfile import REFUSALS

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def check_place(out: Path, force: bool) -> None:
    """Raise InputError where the folder cannot be written, or is there and must not be replaced."""
    textfile.nameable(out, str(out))
    if os.path.lexists(out):
        if os.path.islink(out) or not textfile.is_folder(out):
            raise InputError(f"{out}: exists and is not a folder")
        if any(out.iterdir()) and not force:
            raise InputError(f"{out}: exists already; --force replaces it")
        textfile.makeable(out.absolute().parent, str(out))  # what stands beside it takes its place
    else:
        textfile.makeable(out, str(out))


@contextlib.contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `out` where the block ends without an error.

    Raises InputError where the disk is full, or refuses.
    """
    out = out.absolute()
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _forget_partials(out)
        partial.mkdir()
    except OSError as error:  # /proc and the like let nobody write, whatever their modes say
        raise InputError(f"{out}: cannot be written: {error.strerror}") from None
    try:
        yield partial
        _readable(partial)
        _flush(partial)
        _replace(partial, out)
    except Exception as error:
        if not (reason := _unwritable(error)):
            raise
        raise InputError(f"{out}: cannot be written: {reason}; nothing was left there") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unwritable(error: Exception) -> str:
    """What the file system said, where that is the error; libraries wrap it in their own."""
    if isinstance(error, OSError) and error.errno in REFUSALS:
        return os.strerror(error.errno)
    known = (os.strerror(number) for number in REFUSALS)
    return next((said for said in known if said in str(error)), "")


def keep_evidence(partial: Path, out: Path) -> Path:
    """What a failed export found out, in a folder that no one takes for an engine."""
    failed = out.absolute().with_name(f"{out.name}.failed")
    shutil.rmtree(failed, ignore_errors=True)
    failed.mkdir(parents=True)
    for path in partial.iterdir():
        if path.suffix in (".json", ".png", ".txt") and path.name != manifest.FILE:
            shutil.copyfile(path, failed / path.name)
    return failed


def _forget_partials(out: Path) -> None:
    """Remove what exports to this place have left whose process is gone."""
    for path in out.parent.glob(f".{out.name}.*.partial"):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _readable(folder: Path) -> None:
    """Give files the modes that a new file has: safetensors makes its own for their owner alone,
    and whoever serves the engine is often another user."""
    probe = folder / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)


def _flush(folder: Path) -> None:
    """Have the files on the disk before their name is: a power cut must not leave empty ones."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(partial: Path, out: Path) -> None:
    if not out.exists():
        os.rename(partial, out)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(
        AT_FDCWD, os.fsencode(partial), AT_FDCWD, os.fsencode(out), RENAME_EXCHANGE
    )
    if done != 0:  # a file system that cannot exchange two folders at once
        old = partial.with_suffix(".old")
        os.rename(out, old)
        os.rename(partial, out)
        shutil.rmtree(old)
