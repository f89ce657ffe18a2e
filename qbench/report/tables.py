"""One table of a ranking, in two forms: cells for people, numbers for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qbench.quality.metrics.base import MetricSpec
from qbench.quality.metrics.catalogue import METRICS
from qbench.quality.statistics import Ratio, SpeedWord, paired_difference, speed_up, speed_words
from qbench.results.ranking import Ranking, label
from qbench.results.record import Record

# In the order of the table of metrics; those of other packages after qbench's own.
QUALITY = [spec for spec in METRICS.values() if spec.column]
HEADERS = (
    "variant",
    "video",
    "step",
    "first call",
    "of ceiling",
    "speed-up (95 %)",
    "peak memory",
    "weights",
    *(spec.column.heading for spec in QUALITY if spec.column),
    "verdict",
)
# On a terminal too narrow for all of them these go first; the report has them.
SPARED = (
    "SSIM",
    "LPIPS",
    "first call",
    "of ceiling",
    "weights",
    "FVD",
    "step",
    "CLIP",
    "adherence",
)
MISSING = "-"
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


def rows(ranking: Ranking) -> list[Row]:
    """A row for every record: what could not run is a row too.

    What is said of the speed-ups is corrected for their number.
    """
    ratios = [against_reference(record, ranking) for record in ranking.records]
    return [
        _row(record, ranking, _speed(record, ranking, ratio, word))
        for record, ratio, word in zip(ranking.records, ratios, speed_words(ratios), strict=True)
    ]


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


def against_reference(record: Record, ranking: Ranking) -> Ratio | None:
    """Speed-up over the reference, of the video, or of the step where only steps were timed.

    Interleaved runs carry their own pairs; others are compared run against run.
    """
    reference = ranking.reference
    if not record.recipe.measure.timing:
        return None
    if record.paired_speed_up or reference is None or reference is record:
        return record.paired_speed_up
    if record.latency_s and reference.latency_s:
        return speed_up(reference.latency_s, record.latency_s)
    if record.step_s and reference.step_s:
        return speed_up(_flat(reference.step_s), _flat(record.step_s))
    return None


def _flat(videos: list[list[float]]) -> list[float]:
    return [step for video in videos for step in video]


def _row(record: Record, ranking: Ranking, speed: str) -> Row:
    name = label(record, ranking)
    if record.status not in ("ok", "invalid"):
        blank = (MISSING,) * (len(HEADERS) - 1)
        return Row((name, *blank), record.status, record.reason)
    video, step, share = record.video_seconds(), record.step_seconds(), record.ceiling_share()
    first = record.first_call_s if record.recipe.measure.timing else None
    cells = (
        name,
        f"{video:.3g} s" if video else MISSING,
        time_text(step) if step else MISSING,
        f"{first:.3g} s" if first else MISSING,
        f"{share:.0%}" if share else MISSING,
        speed,
        _peak(record),
        bytes_text(record.weights_bytes),
        *(_quality(record, spec) for spec in QUALITY),
        judged.text if (judged := ranking.judged.get(record.run)) else MISSING,
    )
    return Row(cells, record.status, record.reason)


def _speed(record: Record, ranking: Ranking, ratio: Ratio | None, word: SpeedWord) -> str:
    if not record.recipe.measure.timing:
        return MISSING
    if record is ranking.reference:
        return "reference"
    if ratio is None:
        return MISSING
    samples = record.latency or record.step
    if samples is not None and samples.n < FEW:
        return f"{ratio.value:.2f}x (n = {samples.n})"  # too few to say how sure that is
    ends, digits = (ratio.value, ratio.low, ratio.high), 2
    claimed = word in ("faster", "SLOWER")
    while claimed and digits < 5 and any(float(f"{end:.{digits}f}") == 1 for end in ends):
        digits += 1  # "1.00x SLOWER" would contradict itself
    value, low, high = (f"{end:.{digits}f}" for end in ends)
    return f"{value}x [{low}, {high}] {word}"


def _quality(record: Record, spec: MetricSpec) -> str:
    metric = record.quality.get(spec.name)
    if metric is None or spec.column is None:
        return MISSING
    shown = spec.column.form.format(metric.value)
    return f"{shown} (n = {record.videos})" if record.videos < spec.few else shown


def _peak(record: Record) -> str:
    """What a user needs for a video, and which of torch's figures it is where not the usual one.

    An engine allocates past torch, so on a GPU only the driver's figure of the process holds it.
    """
    peak = record.peak()
    if record.environment.device == "cuda" and record.recipe.variant.engine:
        return f"{bytes_text(peak.driver_bytes)} (process)" if peak.driver_bytes else MISSING
    held = record.held_bytes(peak)
    reserved = peak.reserved_bytes is not None and held == peak.reserved_bytes
    return bytes_text(held) + (" (reserved)" if reserved else "")


def time_text(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


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
    found = rows(ranking)
    kept = columns(found)
    lines: list[Sequence[str]] = []
    remarks = []
    for row in found:
        cells = row.shown(kept)
        lines.append([f"~~{cell}~~" for cell in cells] if row.struck else cells)
        if row.remark:
            remarks.append(f"- `{row.cells[0]}` {row.status}: {row.remark}")
    return "\n".join(
        [grid([HEADERS[i] for i in kept], lines), *(["", *remarks] if remarks else [])]
    )


def numbers(ranking: Ranking) -> list[dict[str, Any]]:
    """The table as plain numbers with units in the names, one mapping a record, for CSV."""
    found = []
    for record in ranking.records:
        ratio = against_reference(record, ranking)
        peak = record.peak()
        timed = record.recipe.measure.timing
        latency, step = (record.latency, record.step) if timed else (None, None)
        line: dict[str, Any] = {
            "recipe": record.recipe.name,
            "overrides": "; ".join(f"{k}={v}" for k, v in sorted(record.overrides.items())),
            "status": record.status,
            "reason": record.reason,
            "machine": ranking.machine,
            "model": record.recipe.model,
            "latency_n": latency.n if latency else None,
        }
        for name, summary in (("latency", latency), ("step", step)):
            for key in ("median", "low", "high", "p90", "sigma"):
                line[f"{name}_{key}_s"] = getattr(summary, key) if summary else None
        line |= {
            "first_call_s": record.first_call_s if timed else None,
            "payback_videos": payback_videos(record, ranking),
            "achieved_flop_per_s": record.achieved_flop_per_s(),
            "ceiling_share": record.ceiling_share(),
            "interleaved": bool(record.paired_reference_s),
            **_gauges(record),
            "speed_up": ratio.value if ratio else None,
            "speed_up_low": ratio.low if ratio else None,
            "speed_up_high": ratio.high if ratio else None,
            "weights_bytes": record.weights_bytes,
            **{f"peak_{name}": value for name, value in peak.model_dump().items()},
            "videos": record.videos,
            **_verdict(record, ranking),
        }
        for name, metric in record.quality.items():
            line[name] = metric.value
            if metric.summary:
                line |= {f"{name}_low": metric.summary.low, f"{name}_high": metric.summary.high}
        found.append(line | {"run": record.run, "ranking": "-".join(record.fingerprints.ranking())})
    return found


def _verdict(record: Record, ranking: Ranking) -> dict[str, Any]:
    """The verdict, whether it is shown, and its evidence figure by figure."""
    judged = ranking.judged.get(record.run)
    if judged is None:
        return {}
    line: dict[str, Any] = {"verdict": judged.verdict, "verdict_shown": judged.shown}
    for tested in judged.tests:
        c = tested.comparison
        line |= {
            f"{c.metric}_gain": c.gain,
            f"{c.metric}_gain_low": c.low,
            f"{c.metric}_gain_high": c.high,
            f"{c.metric}_margin": c.margin,
            f"{c.metric}_worse_p_holm": tested.worse_p,
            f"{c.metric}_no_loss_p_holm": tested.no_loss_p,
        }
    return line


def _gauges(record: Record) -> dict[str, Any]:
    """Energy of a timed unit, and the state of the GPU while it was timed."""
    gauges = record.gauges
    if gauges is None or not record.recipe.measure.timing:
        return {}
    unit = record.recipe.measure.unit
    return {
        f"energy_j_per_{unit}": gauges.mean_energy_j(),
        **gauges.model_dump(include={"power_w", "sm_clock_mhz", "temperature_c"}),
        "throttled": "; ".join(f"{k} {v:.0%}" for k, v in gauges.throttled.items()),
    }


def grid(head: Sequence[str], rows: list[Sequence[str]]) -> str:
    """A table in GitHub's Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def verdicts(ranking: Ranking) -> str:
    """Every verdict and what it rests on; empty where none was reached."""
    rows: list[Sequence[str]] = [
        (label(record, ranking), judged.text, judged.because or "no loss")
        for record in ranking.records
        if (judged := ranking.judged.get(record.run))
    ]
    return grid(("variant", "verdict", "because"), rows) if rows else ""


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
        cells = [label(record, ranking), str(wanted), got]
        for name in alone:
            said = judged.alone.get(name)
            cells.append(f"**{said}**" if said == wanted else said or MISSING)
        rows.append(cells)
    return grid(head, rows)


def payback_videos(record: Record, ranking: Ranking) -> float | None:
    """After how many videos quantizing and compiling have paid for themselves.

    The extra time until the first result, over what each video saves; null where nothing is saved.
    Where only steps were timed a video is `generation.steps` of them.
    """
    reference = ranking.reference
    if reference is None or reference is record:
        return None
    times = []
    for one in (reference, record):
        video = one.video_seconds()
        step = one.step_seconds()
        if video is None and step is not None:
            steps = one.generation.get("steps")
            video = step * steps if isinstance(steps, int) else None
        stage = one.stages.get("quantize")
        if video is None or one.first_call_s is None:
            return None
        times.append((video, one.first_call_s + (stage.seconds[0] if stage else 0.0)))
    (video_before, start_before), (video_after, start_after) = times
    saved = video_before - video_after
    return max(0.0, start_after - start_before) / saved if saved > 0 else None


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
    lines: list[Sequence[str]] = []
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
        lines.append((label(record, ranking), shown, step, verdict))
    return grid(("variant", "PSNR (95 %)", "above the next by (paired, 95 %)", ""), lines)
