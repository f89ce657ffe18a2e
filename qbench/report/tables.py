"""One table of a ranking, in two forms: cells for people, numbers for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qbench.quality.statistics import Ratio, paired_difference, speed_up
from qbench.records import Record
from qbench.report import Ranking, label

HEADERS = (
    "variant",
    "video",
    "step",
    "speed-up (95 %)",
    "peak memory",
    "weights",
    "PSNR",
    "SSIM",
    "CLIP",
    "FVD",
    "follows",
)
NARROW = (0, 1, 3, 4, 6, 10)  # the columns that fit a terminal of 80
MISSING = "-"


@dataclass(frozen=True)
class Row:
    """One record's cells; `struck` where it is invalid and wins nothing."""

    cells: tuple[str, ...]
    status: str
    remark: str = ""

    @property
    def struck(self) -> bool:
        return self.status == "invalid"


def rows(ranking: Ranking) -> list[Row]:
    """A row for every record: what could not run is a row too."""
    return [_row(record, ranking) for record in ranking.records]


def against_reference(record: Record, ranking: Ranking) -> Ratio | None:
    """Speed-up of the video over the reference's, where both were measured."""
    reference = ranking.reference
    if reference is None or reference is record or not record.latency_s:
        return None
    return speed_up(reference.latency_s, record.latency_s)


def _row(record: Record, ranking: Ranking) -> Row:
    name = label(record, ranking)
    if record.status not in ("ok", "invalid"):
        blank = (MISSING,) * (len(HEADERS) - 1)
        return Row((name, *blank), record.status, record.reason)
    latency, step = record.latency, record.step
    cells = (
        name,
        f"{latency.median:.3g} s" if latency else MISSING,
        f"{step.median * 1000:.3g} ms" if step else MISSING,
        _speed(record, ranking),
        _peak(record),
        bytes_text(record.weights_bytes),
        _quality(record, "psnr", "{:.1f} dB"),
        _quality(record, "ssim", "{:.4f}"),
        _quality(record, "clip_score", "{:.1f}"),
        _quality(record, "fvd_reference", "{:.2f}"),
        _quality(record, "following", "{:.0%}"),
    )
    return Row(cells, record.status, record.reason)


def _speed(record: Record, ranking: Ranking) -> str:
    if record is ranking.reference:
        return "reference"
    ratio = against_reference(record, ranking)
    if ratio is None:
        return MISSING
    text = f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
    if not ratio.clear:
        return f"{text} no difference"
    return f"{text} {'faster' if ratio.value > 1 else 'SLOWER'}"


def _quality(record: Record, name: str, form: str) -> str:
    metric = record.quality.get(name)
    return form.format(metric.value) if metric else MISSING


def _peak(record: Record) -> str:
    """What a user needs for a video: allocated on a GPU, resident on a CPU.

    An engine allocates past torch, so on a GPU only the driver's figure of the process holds it.
    """
    peak = record.peak()
    if record.environment.device == "cuda" and record.recipe.variant.engine:
        return f"{bytes_text(peak.driver_bytes)} (process)" if peak.driver_bytes else MISSING
    return bytes_text(peak.allocated_bytes or peak.resident_bytes)


def bytes_text(count: int | None) -> str:
    if count is None:
        return MISSING
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit in ("B", "KiB") else f"{value:.3g} {unit}"


def markdown(ranking: Ranking) -> str:
    """The table as GitHub's Markdown; remarks stand below it."""
    lines = ["| " + " | ".join(HEADERS) + " |", "|" + " --- |" * len(HEADERS)]
    remarks = []
    for row in rows(ranking):
        name, *rest = row.cells
        if row.status not in ("ok", "invalid"):
            rest = [row.status, *rest[1:]]
        cells = [name, *rest]
        if row.struck:
            cells = [f"~~{cell}~~" for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
        if row.remark:
            remarks.append(f"- `{name}` {row.status}: {row.remark}")
    return "\n".join(lines + (["", *remarks] if remarks else []))


def numbers(ranking: Ranking) -> list[dict[str, Any]]:
    """The table as plain numbers with units in the names, one mapping a record, for CSV."""
    found = []
    for record in ranking.records:
        ratio = against_reference(record, ranking)
        peak = record.peak()
        line: dict[str, Any] = {
            "recipe": record.recipe.name,
            "overrides": "; ".join(f"{k}={v}" for k, v in sorted(record.overrides.items())),
            "status": record.status,
            "reason": record.reason,
            "machine": ranking.machine,
            "model": record.recipe.model,
            "latency_n": record.latency.n if record.latency else None,
        }
        for name, summary in (("latency", record.latency), ("step", record.step)):
            for key in ("median", "low", "high", "p90", "sigma"):
                line[f"{name}_{key}_s"] = getattr(summary, key) if summary else None
        line |= {
            "first_call_s": record.first_call_s,
            "speed_up": ratio.value if ratio else None,
            "speed_up_low": ratio.low if ratio else None,
            "speed_up_high": ratio.high if ratio else None,
            "weights_bytes": record.weights_bytes,
            **{f"peak_{name}": value for name, value in peak.model_dump().items()},
            "videos": record.videos,
        }
        for name, metric in record.quality.items():
            line[name] = metric.value
            if metric.summary:
                line |= {f"{name}_low": metric.summary.low, f"{name}_high": metric.summary.high}
        found.append(line | {"run": record.run, "ranking": "-".join(record.fingerprints.ranking())})
    return found


def frame(made: list[Ranking]) -> Any:
    """Every record of every ranking as a pandas DataFrame, for CSV files and notebooks."""
    import pandas as pd

    return pd.DataFrame([line for ranking in made for line in numbers(ranking)])


def ladder(ranking: Ranking) -> str:
    """The variants from closest to the reference to furthest, each step with its paired interval.

    A step is beyond noise where the interval of the paired PSNR difference leaves out zero.
    """
    rungs = [r for r in ranking.records if r.status == "ok" and "psnr" in r.quality]
    rungs.sort(key=lambda r: -r.quality["psnr"].value)
    if len(rungs) < 2:
        return ""
    lines = ["| variant | PSNR (95 %) | above the next by (paired, 95 %) | |", "|" + " --- |" * 4]
    for record, below in zip(rungs, [*rungs[1:], None], strict=True):
        metric = record.quality["psnr"]
        shown = f"{metric.value:.2f} dB"
        if metric.summary and metric.summary.low is not None:
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
        lines.append(f"| {label(record, ranking)} | {shown} | {step} | {verdict} |")
    return "\n".join(lines)
