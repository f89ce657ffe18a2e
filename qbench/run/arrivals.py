"""Files of a run that come to the head: each is in its place at once, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from qbench.run.nodes import Piece, left_in


def write(piece: Piece, folder: Path) -> None:
    """The next bytes of a file. Raises ValueError for one that would lie elsewhere."""
    path = folder / piece.name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{piece.name}: leads out of the run's folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.part")
    with new.open("ab") as file:
        file.write(piece.data)
    if piece.last:
        new.replace(path)


def take(source: Path, folder: Path) -> None:
    """Move the files of a run, but for its record; on one disk that is a new name for each."""
    for name in left_in(source):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.part")
        shutil.move(source / name, new)
        new.replace(path)
