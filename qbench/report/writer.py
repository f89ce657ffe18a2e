"""Reports, from records alone: tables, charts, contact sheets side by side."""

from __future__ import annotations

from pathlib import Path

from qbench.results.ranking import rankings
from qbench.results.record import Record


def write(found: list[tuple[Path, Record]], unreadable: list[str], out: Path) -> Path:
    """Everything into `out`. Returns the path of report.md."""
    from qbench.report import charts, page, sheets

    out.mkdir(parents=True, exist_ok=True)
    made = rankings(found)
    pictures: list[list[Path]] = []
    for i, ranking in enumerate(made):
        suffix = f"-{i + 1}" if len(made) > 1 else ""
        drawn = charts.draw(ranking, out, suffix) if i < page.CHARTED else []
        sheet = sheets.side_by_side(ranking, out / f"contact-sheets{suffix}.webp")
        pictures.append(drawn + ([sheet] if sheet else []))
    return page.write(made, pictures, unreadable, out)
