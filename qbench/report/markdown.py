"""report.md and results.csv: what is ranked, with what it was measured, and what was left out."""

from __future__ import annotations

import csv
import functools
import itertools
import tempfile
from pathlib import Path

from qbench import escape, textfile
from qbench.quality.comparison import unseen_share
from qbench.report import cards, tables
from qbench.results import frame, origin
from qbench.results.ranking import Ranking

CHARTED = 4  # rankings that get charts; the tables hold every one
LADDER = 40  # longest ladder that is written out
NOTES, NOTE = 60, 1000  # notes below a table, and the characters of one
NAMED = 100  # unreadable records that are named
COLUMNS = 2000  # of the CSV: figures may have any name
RULE = (
    "Seconds of interleaved rows are the reference's median over the paired speed-up, so the two "
    "never contradict each other; MFU is of the GEMM peak measured on this machine."
)


def write(
    made: list[Ranking], pictures: list[list[Path]], unreadable: list[str], out: Path
) -> Path:
    """Write both files. Returns the path of report.md."""
    lines = ["# Report", ""]
    if unreadable:
        lines += ["Left out, because they could not be read:", ""]
        lines += [f"- {_note(line)}" for line in unreadable[:NAMED]]
        lines += [f"- and {len(unreadable) - NAMED} more"] if len(unreadable) > NAMED else []
        lines += [""]
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
    textfile.replace(path, "\n".join(lines))
    _write_csv(made, out / "results.csv")
    return path


def _write_csv(made: list[Ranking], path: Path) -> None:
    """Every record as a row of numbers. No cell begins a formula: names come from records."""
    columns: dict[str, None] = {}
    known: list[int] = []  # columns by the time of each row
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="", dir=path.parent) as body,
        path.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(body, lineterminator="\n")
        for ranking in made:
            for row in frame.rows(ranking):
                columns.update(dict.fromkeys(row))
                cells = map(row.get, itertools.islice(columns, COLUMNS))
                writer.writerow([_cell(c) if type(c) is str else c for c in cells])
                known.append(min(len(columns), COLUMNS))
        names = list(columns)[:COLUMNS]
        csv.writer(file, lineterminator="\n").writerow([escape.csv(name) for name in names])
        body.seek(0)
        for count, line in zip(known, body, strict=True):  # no cell has two lines
            file.write(line[:-1] + "," * (len(names) - count) + "\n")


_cell = functools.lru_cache(maxsize=4096)(escape.csv)  # most of what is not a number is alike


def how(ranking: Ranking) -> str:
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
        text += (
            f" The reference took its turn for each {unit}; speed-ups are of those pairs. {RULE}"
        )
    videos = max((r.videos for r in ranking.records), default=0)
    if videos:
        text += (
            f" Quality on {videos} videos of the same prompts and noise, PSNR, SSIM and FVD "
            "against the reference. A fault that is in up to "
            f"{unseen_share(videos):.1%} of all videos is in none of so many in one case of twenty."
        )
    return text


def _section(ranking: Ranking, drawn: list[Path]) -> list[str]:
    first = ranking.records[0]
    environment = first.environment
    versions = ", ".join(f"{k} {v}" for k, v in environment.libraries.items() if k != "numpy")
    lines = [
        f"## {escape.markdown(ranking.title())}",
        "",
        f"{how(ranking)} Python {escape.markdown(environment.python)}, "
        f"{escape.markdown(escape.clipped(versions, NOTE))}.",
        "",
        tables.markdown(ranking),
        "",
    ]
    lines += [f"- {_note(note)}" for note in notes(ranking)] + [""]
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


def notes(ranking: Ranking) -> list[str]:
    """What a reader of this ranking must know, as plain text."""
    found = {note for record in ranking.records for note in record.notes}
    found |= set(metric_notes(ranking))
    return [*origin.notes(ranking), *ranking.notes(), *sorted(found)[:NOTES]]


def metric_notes(ranking: Ranking) -> list[str]:
    """What a reader of the quality figures must know, such as that FVD is of too few videos."""
    found = {
        f"{name}: {metric.note}"
        for record in ranking.records
        for name, metric in record.quality.items()
        if metric.note and "_" not in name.removeprefix("fvd_").removeprefix("clip_")
    }
    return sorted(found)


def _note(text: str) -> str:
    return escape.markdown(escape.clipped(text, NOTE))
