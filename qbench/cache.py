"""Where a machine keeps what is fetched or measured once, and what identifies a file's content."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import tempfile
import threading
from pathlib import Path

CHUNK = 2**20
LARGE = 2**26  # bytes of a file from which its digest is kept on disk
DIGESTS = "digests.json"
_keeping = threading.Lock()


def folder() -> Path:
    """The user's cache folder (XDG Base Directory), or a temporary one where it cannot be written.

    A container's user may have no home, or one that belongs to another; a line on stderr says
    where things are kept instead.
    """
    return _usable(os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME"))


def kept(name: str) -> Path:
    """Where the file of this name is kept, or would be: read-only caches are read, too."""
    own = _wished(os.environ.get("XDG_CACHE_HOME"))
    if own is not None:
        try:
            if (own / name).is_file():
                return own / name
        except OSError:
            pass  # a folder that may not even be looked into
    return folder() / name


def _wished(configured: str | None) -> Path | None:
    """Where the cache belongs, None for a user without a home."""
    try:
        return Path(configured or Path.home() / ".cache") / "qbench"
    except RuntimeError:
        return None


@functools.cache
def _usable(configured: str | None, home: str | None) -> Path:
    """Once for each setting of the environment, so that the note is said once."""
    wished = _wished(configured)
    reason = "there is no home folder" if wished is None else _refusal(wished)
    if wished is not None and not reason:
        return wished
    spare = Path(tempfile.gettempdir()) / f"qbench-{os.getuid()}"
    if not _private(spare):
        spare = Path(tempfile.mkdtemp(prefix="qbench-"))
    print(
        f"qbench: the cache folder cannot be used ({reason}); {spare} is, until it is cleared. "
        "XDG_CACHE_HOME names another",
        file=sys.stderr,
    )
    return spare


def _refusal(place: Path) -> str:
    """Why no file can be written there, empty where one can."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return f"{place}: {error.strerror or error}"


def _private(place: Path) -> bool:
    """Make a folder that is this user's alone: others may write to /tmp and plant links there."""
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        status = place.lstat()
    except OSError:
        return False
    alone = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return alone and not place.is_symlink() and not _refusal(place)


def file_digest(path: Path) -> str:
    """SHA-256 of the whole file; read again only where size, time or inode have changed."""
    status = path.stat()
    return _digest(str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=4096)
def _digest(path: str, size: int, modified_ns: int, inode: int) -> str:
    """Those of large files are kept on disk, for each run is a process of its own."""
    key = f"{path}:{size}:{modified_ns}:{inode}"
    if size < LARGE:
        return _read(path)
    if known := _known().get(key):
        return known
    digest = _read(path)
    with _keeping:
        _keep(_known() | {key: digest})
    return digest


def _known() -> dict[str, str]:
    try:
        found = json.loads(kept(DIGESTS).read_bytes())
    except (OSError, ValueError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in items if isinstance(value, str)}


def _keep(known: dict[str, str]) -> None:
    """Atomically; what another process kept meanwhile may be lost, and is then computed again."""
    with contextlib.suppress(OSError):
        handle, partial = tempfile.mkstemp(dir=folder(), prefix=f".{DIGESTS}.")
        with os.fdopen(handle, "w") as file:
            json.dump(known, file)
        os.replace(partial, folder() / DIGESTS)


def _read(path: str) -> str:
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(CHUNK):
            hashed.update(part)
    return hashed.hexdigest()


def folder_digest(place: Path, suffixes: tuple[str, ...] = (".json", ".safetensors")) -> str:
    """SHA-256 over the names and contents of a folder's files with these endings."""
    hashed = hashlib.sha256()
    for path in sorted(place.rglob("*")):
        if path.suffix in suffixes and path.is_file():
            hashed.update(f"{path.relative_to(place)}\0{file_digest(path)}\n".encode())
    return hashed.hexdigest()
