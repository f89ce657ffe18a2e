"""Records as rows of plain numbers with units in their names: for CSV files and notebooks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.results import store
from qbench.results.ranking import Ranking, rankings
from qbench.results.record import Record
from qbench.results.speed import Timing, payback_videos

if TYPE_CHECKING:
    import pandas as pd

Cell = str | int | float | bool | None
Row = dict[str, Cell]


@dataclass(frozen=True)
class Results:
    """Records sorted into rankings: those that were measured alike, and so may be compared."""

    rankings: tuple[Ranking, ...]
    unreadable: tuple[str, ...] = ()  # a line for each record that could not be read

    def rows(self) -> list[Row]:
        """One flat mapping a record; `ranking` tells which ones may be compared."""
        return [row for ranking in self.rankings for row in rows(ranking)]

    def to_pandas(self) -> pd.DataFrame:
        """One row a record. Seconds end in `_s`, bytes in `_bytes`, rates in `_per_s`."""
        import pandas as pd

        return pd.DataFrame(self.rows())


def load_results(path: str | Path) -> Results:
    """Read the records at or below a path: a file, a folder, an archive, or a run in one.

        frame = qbench.load_results("results/runs").to_pandas()

    Raises InputError where there is nothing of that name, or no record. What cannot be read is
    named in `unreadable`.
    """
    found, unreadable = store.read_all(store.find([Path(path)]), compact=True)
    return Results(tuple(rankings(found)), tuple(unreadable))


def rows(ranking: Ranking) -> Iterator[Row]:
    """One flat mapping a record, units in the names.

    `video_s` and `step_s` are what tables show beside the speed-up, by the rule in `speed`;
    `latency_*` and `step_*` are of this run's own samples.
    """
    reference = ranking.reference
    first = ranking.timing(reference) if reference else Timing()
    for record in ranking.records:
        shown = ranking.timing(record)
        ratio = shown.speed_up
        peak = record.peak()
        timed = record.recipe.measure.timing
        latency, step = (record.latency, record.step) if timed else (None, None)
        line: Row = {
            "recipe": record.recipe.name,
            "overrides": "; ".join(f"{k}={v}" for k, v in sorted(record.overrides.items())),
            "status": record.status,
            "reason": record.reason,
            "machine": ranking.machine,
            "model": record.recipe.model,
            "commit": record.environment.commit,
            "video_s": shown.video_s,
            "step_s": shown.step_s,
            "latency_n": latency.n if latency else None,
        }
        for name, summary in (("latency", latency), ("step", step)):
            for key in ("median", "low", "high", "p90", "sigma"):
                line[f"{name}_{key}_s"] = getattr(summary, key) if summary else None
        line |= {
            "first_call_s": record.first_call_s if timed else None,
            "first_call_warm_s": record.first_call_warm_s if timed else None,
            "payback_videos": payback_videos(record, reference, shown, first),
            "achieved_flop_per_s": record.achieved_flop_per_s(shown.step_s),
            "mfu": record.mfu(shown.step_s),
            "interleaved": bool(record.paired_reference_s),
            **_gauges(record),
            "speed_up": ratio.value if ratio else None,
            "speed_up_low": ratio.low if ratio else None,
            "speed_up_high": ratio.high if ratio else None,
            "speed_up_word": ranking.speed_word(record),
            "weights_bytes": record.weights_bytes,
            **{f"peak_{name}": value for name, value in peak.model_dump().items()},
            "videos": record.videos,
            **_verdict(record, ranking),
        }
        for name, metric in record.quality.items():
            figures: Row = {name: metric.value}
            bounds = metric.summary or metric
            if bounds.low is not None:
                figures |= {f"{name}_low": bounds.low, f"{name}_high": bounds.high}
            for key, value in figures.items():
                line.setdefault(key, value)  # a figure may have any name, but no other's place
        line |= {"run": record.run, "ranking": "-".join(record.fingerprints.ranking())}
        yield line


def _verdict(record: Record, ranking: Ranking) -> Row:
    """The verdict, whether it is shown, and its evidence figure by figure."""
    judged = ranking.judged.get(record.run)
    if judged is None:
        return {}
    line: Row = {"verdict": judged.verdict, "verdict_shown": judged.shown}
    line["verdict_distance"] = judged.distance
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


def _gauges(record: Record) -> Row:
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
