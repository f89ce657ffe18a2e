"""Files of a run that come to the head: each is in its place at once, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from qbench.run.nodes import Chunk, left_in


def write(chunk: Chunk, folder: Path) -> None:
    """The next bytes of a file. Raises ValueError for one that would lie elsewhere."""
    path, new = _places(folder, chunk.name)
    with new.open("ab") as file:
        file.write(chunk.data)
    if chunk.last:
        new.replace(path)


def take(source: Path, folder: Path) -> None:
    """Move the files of a run, but for its record; on one disk that is a new name for each."""
    for name in left_in(source):
        path, new = _places(folder, name)
        shutil.move(source / name, new)
        new.replace(path)


def _places(folder: Path, name: str) -> tuple[Path, Path]:
    """Where a file is to be, and where it is until it is whole."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name}: leads out of the run's folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path, path.with_name(f"{path.name}.part")
