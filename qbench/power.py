"""How many prompts a claim needs, from the spread between videos that records show."""

from __future__ import annotations

import itertools
from pathlib import Path

from qbench.errors import InputError, nearest
from qbench.quality.comparison import pairs_needed
from qbench.quality.metrics.catalogue import METRICS
from qbench.quality.statistics import paired_difference
from qbench.results.ranking import Ranking, label, rankings
from qbench.results.record import Record

FEW = 8  # pairs below which a spread is a guess


def said(
    found: list[tuple[Path, Record]], resolve: list[str], alpha: float, chance: float
) -> list[str]:
    """Lines for people: each ranking, each difference, the widest and the median pair of runs.

    A figure that the reference has too (CLIP score) is compared with the reference; one that is a
    distance to it (PSNR) is compared between variants. Raises InputError where nothing fits.
    """
    wanted = [_parsed(text) for text in resolve]
    for name, value in (("--alpha", alpha), ("--power", chance)):
        if not 0 < value < 1:
            raise InputError(f"{name}: {value} is not between 0 and 1")
    lines = []
    for ranking in rankings(found):
        rows = [
            row
            for metric, difference in wanted
            if (row := _row(ranking, metric, difference, alpha, chance))
        ]
        if rows:
            lines += [ranking.title(), *rows]
    if not lines:
        raise InputError(
            f"no two runs here share a ranking and hold {FEW} or more paired samples of "
            f"{', '.join(metric for metric, _ in wanted)}"
        )
    return lines


def _parsed(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in METRICS:
        raise InputError(f"--resolve {text}: no metric {name!r}{nearest(name, METRICS)}")
    try:
        difference = float(value)
    except ValueError:
        difference = 0.0
    if not difference > 0:
        raise InputError(f"--resolve {text}: give a difference above 0, as in {name}=0.5")
    return name, difference


def _row(
    ranking: Ranking, metric: str, difference: float, alpha: float, chance: float
) -> str | None:
    """One metric of one ranking: prompts for the median pair and for the widest."""
    spreads = []
    for a, b in _pairs(ranking, metric):
        x, y = a.quality[metric].samples or [], b.quality[metric].samples or []
        gap = paired_difference(x, y)
        spreads.append((gap.sigma or 0.0, gap.n, f"{label(a, ranking)} and {label(b, ranking)}"))
    if not spreads:
        return None
    spreads.sort()
    unit = METRICS[metric].unit
    parts = []
    for word, (sigma, n, names) in (
        ("median", spreads[len(spreads) // 2]),
        ("widest", spreads[-1]),
    ):
        count = pairs_needed(sigma, difference, alpha, chance)
        enough = "enough" if n >= count else f"{count - n} more"
        parts.append(f"{word}: {count} prompts (sigma {sigma:.3g}, {names}; {n} here, {enough})")
    pairs = f"{len(spreads)} pair{'s' if len(spreads) > 1 else ''}"
    return f"  {metric} {difference:g} {unit}, {pairs}; " + "; ".join(parts)


def _pairs(ranking: Ranking, metric: str) -> list[tuple[Record, Record]]:
    """Runs whose samples of this metric belong together, video by video; none that is broken."""
    broken = {run for run, judged in ranking.judged.items() if judged.verdict == "broken"}
    having = [
        r
        for r in ranking.records
        if r.status == "ok"
        and r.run not in broken
        and metric in r.quality
        and len(r.quality[metric].samples or []) >= FEW
    ]
    reference = ranking.reference
    if not METRICS[metric].paired and reference in having:
        pairs = [(r, reference) for r in having if r is not reference]
    else:
        pairs = list(itertools.combinations(having, 2))
    return [
        (a, b)
        for a, b in pairs
        if b and len(a.quality[metric].samples or []) == len(b.quality[metric].samples or [])
    ]
