"""One run at a time in a folder, and one timed run at a time on a device.

Locks are the system's own (flock): they end with the process that holds them, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qbench.meters import nvml

EVERY_S = 0.2
FOLDER = ".locks"  # beside the folders of runs


@contextmanager
def held(
    path: Path, holder: str, waiting: Callable[[str], None], shared: bool = False
) -> Iterator[None]:
    """Hold the lock of this file for the block, waiting until it is free.

    holder: what others are told who wait for it. waiting: called once, with what holds it, before
    the first wait. Where the file system knows no locks, there are none.
    """
    handle = _open(path)
    if handle is None:
        yield
        return
    try:
        told = False
        while not _taken(handle, shared):
            if not told:
                waiting(_holder(path))
                told = True
            time.sleep(EVERY_S)
        with contextlib.suppress(OSError):  # another user's file: locked, if not written to
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{holder} (process {os.getpid()})".encode(), 0)
        yield
    finally:
        os.close(handle)


def of_folder(folder: Path) -> Path:
    """The lock of a run's folder. Not in it, for that is replaced while the lock is held."""
    return folder.parent / FOLDER / folder.name


def of_devices(device: str, count: int = 1) -> list[Path]:
    """The locks of devices, of all sweeps on this machine: of the CPU, or of the GPUs in use.

    A GPU has one lock, whatever CUDA_VISIBLE_DEVICES calls it. In an order that is the same for
    all who want several of them, or two might each hold what the other waits for.
    """
    if device == "cpu":
        return [_of("cpu")]
    found = nvml.identities(nvml.visible(count) or ("0",))
    return sorted({_of(f"gpu-{uuid}") for uuid in found})


def _of(device: str) -> Path:
    plain = "".join(c if c.isalnum() else "-" for c in device)
    return Path(tempfile.gettempdir()) / f"qbench-{plain}.lock"


def _open(path: Path) -> int | None:
    """A handle on the file, made where it is missing; another user's is opened for reading."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    for flags in (os.O_RDWR, os.O_RDONLY, os.O_RDWR | os.O_CREAT):
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    return None


def _taken(handle: int, shared: bool) -> bool:
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EINTR)
    return True


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(300).decode("utf-8", "replace")
    except OSError:
        text = ""
    return " ".join(text.split()) or "another sweep"
