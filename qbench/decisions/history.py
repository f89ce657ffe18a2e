"""`qbench history RESULTS`: a recipe's records over time, and where they change.

A series holds one recipe, one workload and one machine: what differs in any of these is another
series. Software may differ, for that is what a history is for; each change of it is marked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from qbench.decisions import figures, places
from qbench.decisions.changepoints import MOST, SMALLEST, change_points
from qbench.decisions.changes import Change, software_changes
from qbench.decisions.figures import Figure
from qbench.errors import InputError, nearest
from qbench.quality.ratios import Ratio, speed_up
from qbench.quality.statistics import median_interval
from qbench.recipe import shipped
from qbench.results import origin, store
from qbench.results.record import Record, Strict

UNITS: dict[figures.Kind, str] = {
    "seconds": "s", "bytes": "bytes", "joules": "J", "ratio": "x", "metric": "",
}  # fmt: skip


class Point(Strict):
    """One record. low, high: a 95 % interval of this run alone; null where it has none."""

    run: str
    started: str
    commit: str | None
    n: int
    value: float
    low: float | None
    high: float | None
    changed: tuple[Change, ...]  # of the software, since the point before


class Step(Strict):
    """A change point. ratio: before over after, of the medians of the runs on either side."""

    at: int  # the first point after it
    p: float
    before: float
    after: float
    ratio: Ratio | None
    software: tuple[Change, ...]  # what changed just there


class Series(Strict):
    recipe: str
    model: str
    machine: str
    figure: str
    unit: str
    points: tuple[Point, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]


class History(Strict):
    series: tuple[Series, ...]
    notes: tuple[str, ...]


def history(results: list[Path], recipe: str | None, figure: str | None) -> History:
    """All series of two records or more. Raises InputError where there is none."""
    for place in results:
        if store.absent(place) and (str(place) == place.stem or str(place) in shipped.names()):
            raise InputError(f"{place}: no such file or folder; is it a recipe? --recipe {place}")
    found, unreadable = places.read(results)
    with places.telling(unreadable):
        series = _followed(found, recipe, figure)
    return History(series=series, notes=tuple(places.left_out(unreadable)))


def _followed(found: places.Found, recipe: str | None, figure: str | None) -> tuple[Series, ...]:
    wanted = None if figure is None else figures.find(figure, "--figure")
    names = {record.recipe.name for _, record in found}
    if recipe is not None and recipe not in names:
        raise InputError(f"--recipe {recipe[:60]}: no record of it{nearest(recipe, names)}")
    groups: dict[tuple[str, ...], list[Record]] = {}
    for path, record in {record.run: (path, record) for path, record in found}.values():
        if record.status == "ok" and recipe in (None, record.recipe.name):
            groups.setdefault(_key(path, record), []).append(record)
    series = [made for group in groups.values() if (made := _series(group, wanted)) is not None]
    if not series:
        asked = wanted.name if wanted else "a time"
        raise InputError(
            f"no recipe{f' {recipe}' if recipe else ''} has two records with {asked} of equal "
            "workload and hardware here"
        )
    series.sort(key=lambda one: (-len(one.points), one.recipe))
    return tuple(series)


def _key(path: Path, record: Record) -> tuple[str, ...]:
    """All that has to be equal: recipe with settings, prompts, weights, hardware, and whose."""
    prints, imported = record.fingerprints, origin.read(path.parent)
    same = (record.recipe.name, prints.recipe, prints.prompts, prints.model, prints.hardware)
    return (*same, imported.place if imported else "")


def _series(group: list[Record], figure: Figure | None) -> Series | None:
    group.sort(key=lambda record: record.started)
    notes = []
    if len(group) > MOST:  # before more than the head of each is read
        notes.append(f"only the last {MOST} of {len(group)} records")
        group = group[-MOST:]
    if figure is None:
        timed = all(record.latency_s for record in group)
        figure = figures.OWN["latency" if timed else "step"]
    records = [record for record in group if _value(record, figure) is not None]
    if len(records) < 2:
        return None
    points = tuple(
        _point(record, before, figure)
        for before, record in zip([None, *records[:-1]], records, strict=True)
    )
    if len(points) < 2 * SMALLEST:
        notes.append(f"{len(points)} records: change points are looked for from {2 * SMALLEST} on")
    first = records[0]
    return Series(
        recipe=first.recipe.name,
        model=first.recipe.model,
        machine=first.environment.device_name,
        figure=figure.name,
        unit=UNITS[figure.kind],
        points=points,
        steps=_steps(points, figure),
        notes=tuple(notes),
    )


def _value(record: Record, figure: Figure) -> float | None:
    if figure.name == "speedup":
        return record.paired_speed_up.value if record.paired_speed_up else None
    return figure.value(record)


def _point(record: Record, before: Record | None, figure: Figure) -> Point:
    import numpy as np

    value = _value(record, figure)
    assert value is not None
    low = high = None
    samples = figure.samples(record)
    if figure.name == "speedup" and record.paired_speed_up:
        low, high = record.paired_speed_up.low, record.paired_speed_up.high
        n = record.paired_speed_up.n or 0
    elif figure.kind == "metric":
        metric = record.quality[figure.name]
        bounds = metric.summary or metric
        low, high, n = bounds.low, bounds.high, len(samples)
    else:
        n = len(samples)
        if figure.name != "step" or record.recipe.variant.cache is None:
            low, high = median_interval(np.asarray(samples, dtype=np.float64))
    return Point(
        run=record.run,
        started=record.started,
        commit=record.environment.commit,
        n=n,
        value=value,
        low=low,
        high=high,
        changed=software_changes(before, record) if before is not None else (),
    )


def _steps(points: Sequence[Point], figure: Figure) -> tuple[Step, ...]:
    """Times are looked at on a log scale, so that a share counts alike at any level."""
    values = [point.value for point in points]
    scaled = values
    if figure.kind != "metric" and min(values) > 0:
        scaled = [math.log(value) for value in values]
    found = change_points(scaled)
    ends = [0, *(point.at for point in found), len(values)]
    steps = []
    for i, point in enumerate(found):
        before, after = values[ends[i] : point.at], values[point.at : ends[i + 2]]
        ratio = speed_up(before, after) if min(*before, *after) > 0 else None
        steps.append(
            Step(
                at=point.at,
                p=point.p,
                before=median(before),
                after=median(after),
                ratio=ratio,
                software=points[point.at].changed,
            )
        )
    return tuple(steps)
