"""Reports, from records alone: tables, charts, contact sheets side by side."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from qbench.errors import InputError
from qbench.results import store
from qbench.results.ranking import Ranking

MANIFEST = ".qbench-report.json"  # the names of the files that a report consists of


def write(made: list[Ranking], unreadable: list[str], out: Path, *, page: bool = True) -> Path:
    """Everything into `out`, the page among it if `page`. Returns the path of report.md.

    Charts that an earlier report left there and this one does not have are removed; files that no
    report wrote are left alone. Raises InputError where `out` cannot be written.
    """
    from qbench.report import charts, markdown, sheets
    from qbench.report.page import write as pages

    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures: list[list[Path]] = []
        for i, ranking in enumerate(made):
            suffix = f"-{i + 1}" if len(made) > 1 else ""
            charted = i < markdown.CHARTED
            drawn = charts.draw(ranking, out, suffix) if charted else []
            sheet = out / f"contact-sheets{suffix}.webp"
            side_by_side = sheets.side_by_side(ranking, sheet) if charted else None
            pictures.append(drawn + ([side_by_side] if side_by_side else []))
        path = markdown.write(made, pictures, unreadable, out)
        kept = [picture for drawn in pictures for picture in drawn]
        kept += [picture.with_suffix(".svg") for picture in kept if picture.suffix == ".png"]
        _tidy(out, {picture.name for picture in kept})
        if page:
            pages.write(made, unreadable, out)
    except OSError as error:
        where = error.filename or out
        raise InputError(f"{where}: cannot be written: {error.strerror or error}") from None
    return path


def _tidy(out: Path, names: set[str]) -> None:
    """Remove what the last report wrote and this one did not; note what this one wrote."""
    manifest = out / MANIFEST
    with contextlib.suppress(OSError, ValueError, RecursionError):
        before = json.loads(store.read_bounded(manifest, 2**20))
        for name in before if isinstance(before, list) else []:
            plain = isinstance(name, str) and Path(name).name == name and name not in names
            if plain and Path(name).suffix in (".png", ".svg", ".webp"):
                (out / name).unlink(missing_ok=True)
    manifest.write_text(json.dumps(sorted(names)) + "\n", encoding="utf-8")
