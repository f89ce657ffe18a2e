"""report.md and results.csv: what is ranked, with what it was measured, and what was left out."""

from __future__ import annotations

from pathlib import Path

from qbench.report import Ranking, tables

CHARTED = 4  # rankings that get charts; the tables hold every one
LADDER = 40  # longest ladder that is written out


def write(
    made: list[Ranking], pictures: list[list[Path]], unreadable: list[str], out: Path
) -> Path:
    lines = ["# Report", ""]
    if unreadable:
        lines += ["Left out, because they could not be read:", ""]
        lines += [f"- {line}" for line in unreadable] + [""]
    if not made:
        lines += ["No records.", ""]
    if len(made) > 1:
        lines += [
            f"{len(made)} rankings: figures from different machines, settings, weights or "
            "software are not ranked together.",
            "",
        ]
    for ranking, drawn in zip(made, pictures, strict=True):
        lines += _section(ranking, drawn)
    path = out / "report.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    tables.frame(made).to_csv(out / "results.csv", index=False)
    return path


def _section(ranking: Ranking, drawn: list[Path]) -> list[str]:
    first = ranking.records[0]
    environment = first.environment
    versions = ", ".join(f"{k} {v}" for k, v in environment.libraries.items() if k != "numpy")
    n = max((r.latency.n for r in ranking.records if r.latency), default=0)
    videos = max((r.videos for r in ranking.records), default=0)
    lines = [
        f"## {ranking.title()}",
        "",
        f"{n} timed videos each, one at a time, after the first call and "
        f"{first.recipe.measure.warmup} warm-up; medians, with bootstrap intervals. Quality on "
        f"{videos} videos of the same prompts and noise, PSNR, SSIM and FVD against the reference. "
        f"Python {environment.python}, {versions}.",
        "",
        tables.markdown(ranking),
        "",
    ]
    notes = {note for record in ranking.records for note in record.notes}
    notes |= {
        f"{name}: {metric.note}"
        for record in ranking.records
        for name, metric in record.quality.items()
        if metric.note and "_" not in name.removeprefix("fvd_").removeprefix("clip_")
    }
    lines += [f"- {note}" for note in sorted(notes)] + [""]
    if len(ranking.records) <= LADDER and (steps := tables.ladder(ranking)):
        lines += ["### Quality ladder", "", steps, ""]
    for picture in drawn:
        title = picture.stem.replace("-", " ")
        lines += [f"![{title}]({picture.name})", ""]
    return lines
