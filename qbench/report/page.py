"""report.md and results.csv: what is ranked, with what it was measured, and what was left out."""

from __future__ import annotations

from pathlib import Path

from qbench.report import cards, tables
from qbench.results.ranking import Ranking

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


def _how(ranking: Ranking) -> str:
    """How the figures of this ranking were taken, in words."""
    first = ranking.records[0]
    unit = first.recipe.measure.unit
    timed = [r.latency or r.step for r in ranking.records]
    n = max((summary.n for summary in timed if summary), default=0)
    text = (
        f"{n} timed {unit}{'s' if n != 1 else ''} each, one at a time, after the first call and "
        f"{first.recipe.measure.warmup} warm-up; medians (means where steps are cached), with "
        "bootstrap intervals."
        if first.recipe.measure.timing
        else "The machine did other things besides, so no latency is shown."
    )
    if any(r.paired_reference_s for r in ranking.records):
        text += f" The reference took its turn before each {unit}; speed-ups are of those pairs."
    videos = max((r.videos for r in ranking.records), default=0)
    if videos:
        text += (
            f" Quality on {videos} videos of the same prompts and noise, PSNR, SSIM and FVD "
            "against the reference."
        )
    return text


def _section(ranking: Ranking, drawn: list[Path]) -> list[str]:
    first = ranking.records[0]
    environment = first.environment
    versions = ", ".join(f"{k} {v}" for k, v in environment.libraries.items() if k != "numpy")
    lines = [
        f"## {ranking.title()}",
        "",
        f"{_how(ranking)} Python {environment.python}, {versions}.",
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
    if len(ranking.records) <= LADDER and (verdicts := tables.verdicts(ranking)):
        lines += ["### Verdicts", "", verdicts, ""]
    if fits := cards.ladder(ranking):
        lines += ["### Which card", "", fits, ""]
    if confusion := tables.confusion(ranking):
        lines += ["### Planted faults", "", confusion, ""]
    for picture in drawn:
        title = picture.stem.replace("-", " ")
        lines += [f"![{title}]({picture.name})", ""]
    return lines
