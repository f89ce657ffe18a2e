"""Reports, from records alone: tables, charts, contact sheets side by side."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from qbench.errors import InputError
from qbench.report.page.videos import NAME
from qbench.report.page.write import Options
from qbench.report.page.write import write as write_page
from qbench.results import store
from qbench.results.ranking import Ranking

DEFAULT = Options()
MANIFEST = ".qbench-report.json"  # the names of the files that a report consists of


def write(
    made: list[Ranking],
    unreadable: list[str],
    out: Path,
    page: Options | None = DEFAULT,
    pictured: bool = True,
) -> Path:
    """Everything into `out`, the page among it unless that is None. Returns the path of report.md.

    pictured: with charts and contact sheets.

    Charts that an earlier report left there and this one does not have are removed; files that no
    report wrote are left alone. Raises InputError where `out` cannot be written.
    """
    from qbench.report import charts, markdown, sheets

    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures: list[list[Path]] = []
        for i, ranking in enumerate(made):
            suffix = f"-{i + 1}" if len(made) > 1 else ""
            charted = pictured and i < markdown.CHARTED
            drawn = charts.draw(ranking, out, suffix) if charted else []
            sheet = out / f"contact-sheets{suffix}.webp"
            side_by_side = sheets.side_by_side(ranking, sheet) if charted else None
            pictures.append(drawn + ([side_by_side] if side_by_side else []))
        path = markdown.write(made, pictures, unreadable, out)
        kept = [picture for drawn in pictures for picture in drawn]
        kept += [picture.with_suffix(".svg") for picture in kept if picture.suffix == ".png"]
        names = {picture.name for picture in kept}
        if page is not None:
            names |= set(write_page(made, unreadable, out, page))
        _tidy(out, names)
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
            if isinstance(name, str) and name not in names and _ours(name):
                (out / name).unlink(missing_ok=True)
                if NAME.fullmatch(name):
                    with contextlib.suppress(OSError):  # others are left in it
                        (out / name).parent.rmdir()
    manifest.write_text(json.dumps(sorted(names)) + "\n", encoding="utf-8")


def _ours(name: str) -> bool:
    """Whether a report writes files of such a name, and nothing outside its folder."""
    if NAME.fullmatch(name):
        return ".." not in Path(name).parts
    return Path(name).name == name and Path(name).suffix in (".png", ".svg", ".webp")
