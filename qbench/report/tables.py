"""The tables of a ranking, as cells for people and as Markdown.

Names and reasons come from records, so they may hold anything: cells are plain text, and what makes
Markdown of them escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qbench import escape, units
from qbench.quality.metrics.base import MetricSpec
from qbench.quality.metrics.catalogue import METRICS
from qbench.quality.statistics import paired_difference
from qbench.quality.verdict import Judged
from qbench.results import origin
from qbench.results.ranking import Ranking, label
from qbench.results.record import Record
from qbench.units import three

# In the order of the table of metrics; those of other packages after qbench's own.
QUALITY = [spec for spec in METRICS.values() if spec.column]
HEADERS = (
    "variant",
    "video",
    "step",
    "build",
    "first call",
    "MFU",
    "speed-up (95 %)",
    "peak memory",
    "weights",
    *(spec.column.heading for spec in QUALITY if spec.column),
    "verdict",
    "code",
)
# On a terminal too narrow for all of them these go first; the report has them.
SPARED = (
    "code",
    "build",
    "SSIM",
    "LPIPS",
    "first call",
    "MFU",
    "weights",
    "FVD",
    "step",
    "CLIP",
    "adherence",
)
MISSING = "-"
REMARK = 1000  # characters of a reason
FEW = 3  # samples below which there is no interval


@dataclass(frozen=True)
class Row:
    """One record's cells; `struck` where it is invalid and wins nothing."""

    cells: tuple[str, ...]
    status: str
    remark: str = ""

    @property
    def struck(self) -> bool:
        return self.status == "invalid"

    def shown(self, columns: list[int]) -> list[str]:
        """The cells of these columns; what did not run says so in the first after its name."""
        cells = [self.cells[i] for i in columns]
        if self.status not in ("ok", "invalid"):
            cells[1] = self.status
        return cells


def rows(ranking: Ranking, most: int | None = None) -> list[Row]:
    """A row for every record, or for the first so many: what could not run is a row too."""
    return [_row(record, ranking) for record in ranking.records[:most]]


def columns(found: list[Row], width: float = float("inf")) -> list[int]:
    """The columns in which some row says something, as many as fit on a line of `width`."""
    known = range(1, len(HEADERS))
    kept = [i for i in known if any(row.cells[i] != MISSING for row in found)] or [1]
    wide = [max(len(row.cells[i]) for row in found) for i in range(len(HEADERS))]
    for name in SPARED:
        if sum(max(wide[i], len(HEADERS[i])) + 1 for i in [0, *kept]) <= width:
            break
        kept = [i for i in kept if HEADERS[i] != name]
    return [0, *kept]


def _row(record: Record, ranking: Ranking) -> Row:
    name = label(record, ranking)
    if record.status not in ("ok", "invalid"):
        blank = (MISSING,) * (len(HEADERS) - 1)
        return Row((name, *blank), record.status, record.reason)
    shown = ranking.timing(record)
    video, step, share = shown.video_s, shown.step_s, record.mfu(shown.step_s)
    built = record.facts.get("engine_build_s")
    cells = (
        name,
        f"{three(video)} s" if video else MISSING,
        time_text(step) if step else MISSING,
        time_text(built) if built else MISSING,
        _first_call(record),
        f"{share:.0%}" if share else MISSING,
        _speed(record, ranking),
        _peak(record),
        bytes_text(record.weights_bytes),
        *(_quality(record, spec) for spec in QUALITY),
        _word(judged) if (judged := ranking.judged.get(record.run)) else MISSING,
        (record.environment.commit or "unknown")[:20] if len(ranking.commits) > 1 else MISSING,
    )
    return Row(cells, record.status, record.reason)


def _speed(record: Record, ranking: Ranking) -> str:
    if not record.recipe.measure.timing:
        return MISSING
    if record is ranking.reference:
        return "reference"
    ratio = ranking.timing(record).speed_up
    if ratio is None:
        return MISSING
    samples = record.latency or record.step
    if samples is not None and samples.n < FEW:
        return f"{ratio.value:.2f}x (n = {samples.n})"  # too few to say how sure that is
    word = ranking.speed_word(record)
    ends, digits = (ratio.value, ratio.low, ratio.high), 2
    claimed = word in ("faster", "SLOWER")
    while claimed and digits < 5 and any(float(f"{end:.{digits}f}") == 1 for end in ends):
        digits += 1  # "1.00x SLOWER" would contradict itself
    value, low, high = (f"{end:.{digits}f}" for end in ends)
    return f"{value}x [{low}, {high}] {word}".rstrip()


def _first_call(record: Record) -> str:
    """With empty compiler caches, and beside it with what they kept, where that was timed."""
    cold, warm = record.first_call_s, record.first_call_warm_s
    if not cold or not record.recipe.measure.timing:
        return MISSING
    return f"{three(cold)} s" + (f" ({three(warm)} s warm)" if warm else "")


def _word(judged: Judged) -> str:
    """The verdict, and beside it how far the videos are where a seed floor tells."""
    told = judged.distance in ("close", "as far as another seed")
    return f"{judged.text}, {judged.distance}" if told else judged.text


def _quality(record: Record, spec: MetricSpec) -> str:
    metric = record.quality.get(spec.name)
    if metric is None or spec.column is None:
        return MISSING
    shown = spec.column.form.format(metric.value)
    return f"{shown} (n = {record.videos})" if record.videos < spec.few else shown


def peak(record: Record) -> tuple[int | None, str]:
    """Bytes that a user needs for a video, and whose figure it is where not the usual one.

    An engine allocates past torch, so on a GPU only the driver's figure of the process holds it.
    """
    found = record.peak()
    if record.environment.device == "cuda" and record.recipe.variant.left_python:
        return found.driver_bytes or None, "process"
    held = record.held_bytes(found)
    reserved = found.reserved_bytes is not None and held == found.reserved_bytes
    return held, "reserved" if reserved else ""


def _peak(record: Record) -> str:
    size, kind = peak(record)
    return bytes_text(size) + (f" ({kind})" if kind and size else "")


def time_text(seconds: float) -> str:
    return f"{three(seconds)} s" if seconds >= 1 else f"{three(seconds * 1000)} ms"


def bytes_text(count: int | None) -> str:
    return MISSING if count is None else units.bytes_text(count)


def markdown(ranking: Ranking) -> str:
    """The table as GitHub's Markdown; remarks stand below it."""
    found = rows(ranking)
    kept = columns(found)
    lines: list[Sequence[str]] = []
    remarks = []
    for row in found:
        cells = row.shown(kept)
        cells = [escape.markdown(cells[0]), *cells[1:]]
        lines.append([f"~~{cell}~~" for cell in cells] if row.struck else cells)
        if row.remark:
            said = escape.markdown(escape.clipped(row.remark, REMARK))
            remarks.append(f"- {escape.code(row.cells[0])} {row.status}: {said}")
    return "\n".join(
        [grid([HEADERS[i] for i in kept], lines), *(["", *remarks] if remarks else [])]
    )


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in GitHub's Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def remarks(ranking: Ranking) -> list[str]:
    """What a reader of the table must know wherever it is shown, as plain text."""
    fvd = {
        record.quality["fvd_reference"].note
        for record in ranking.records
        if "fvd_reference" in record.quality
    }
    return [
        *origin.notes(ranking),
        *ranking.notes(),
        *sorted(f"FVD: {note}" for note in fvd if note),
    ]


def named(record: Record, ranking: Ranking) -> str:
    """The record's name for a cell of Markdown."""
    return escape.markdown(label(record, ranking))


def verdicts(ranking: Ranking) -> str:
    """Every verdict and what it rests on; empty where none was reached."""
    rows: list[Sequence[str]] = [
        (
            named(record, ranking),
            judged.text,
            judged.distance or MISSING,
            escape.markdown(judged.because) or "no loss",
            escape.markdown("; ".join(judged.missing)) or MISSING,
        )
        for record in ranking.records
        if (judged := ranking.judged.get(record.run))
    ]
    head = ("variant", "verdict", "distance", "because", "not measured")
    return grid(head, rows) if rows else ""


def confusion(ranking: Ranking) -> str:
    """Planted faults and controls: the verdict that each deserves, the one that it got, and what
    each figure by itself would have said; bold where that is the deserved one."""
    planted = [r for r in ranking.records if r.recipe.expects and r.run in ranking.judged]
    if not planted:
        return ""
    alone = list(dict.fromkeys(name for r in planted for name in ranking.judged[r.run].alone))
    head = ["planted", "deserves", "got", *(f"{name} alone" for name in alone)]
    rows: list[Sequence[str]] = []
    for record in planted:
        judged, wanted = ranking.judged[record.run], record.recipe.expects
        got = judged.text if judged.verdict == wanted else f"**{judged.text}, wrong**"
        cells = [named(record, ranking), str(wanted), got]
        for name in alone:
            said = judged.alone.get(name)
            cells.append(f"**{said}**" if said == wanted else said or MISSING)
        rows.append(cells)
    return grid(head, rows)


def ladder(ranking: Ranking) -> str:
    """The variants from closest to the reference to furthest, each step with its paired interval.

    A step is beyond noise where the interval of the paired PSNR difference leaves out zero.
    """
    rungs = [r for r in ranking.records if r.status == "ok" and "psnr" in r.quality]
    rungs.sort(key=lambda r: -r.quality["psnr"].value)
    if len(rungs) < 2:
        return ""
    lines: list[Sequence[str]] = []
    for record, below in zip(rungs, [*rungs[1:], None], strict=True):
        metric = record.quality["psnr"]
        shown = f"{metric.value:.2f} dB"
        if metric.summary and metric.summary.low is not None and metric.summary.high is not None:
            shown += f" [{metric.summary.low:.2f}, {metric.summary.high:.2f}]"
        step, verdict = "", ""
        if below is not None:
            a, b = metric.samples or [], below.quality["psnr"].samples or []
            if a and len(a) == len(b):
                gap = paired_difference(a, b)
                step = f"{gap.mean:.2f} dB"
                if gap.low is not None and gap.high is not None:
                    step += f" [{gap.low:.2f}, {gap.high:.2f}]"
                    verdict = "beyond noise" if gap.low > 0 or gap.high < 0 else "within noise"
        lines.append((named(record, ranking), shown, step, verdict))
    return grid(("variant", "PSNR (95 %)", "above the next by (paired, 95 %)", ""), lines)
