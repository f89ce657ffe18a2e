"""Whether a record from elsewhere can be one: consistent with itself, and with the physical world.

Nothing here proves that a figure was measured. A record that contradicts itself was not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from qbench.meters import environment
from qbench.quality.metrics.catalogue import METRICS
from qbench.recipe.schema import digest
from qbench.results.derive import ANEW
from qbench.results.record import SIZES, Record

SLACK = 1.05  # of clocks that are read by host and device, and of ends rounded to seconds
RANGE = re.compile(r"[\[(](-?\d+(?:\.\d+)?), (-?\d+(?:\.\d+)?|inf)[\])]")


def fingerprints(record: Record, stored: Record) -> list[str]:
    """What the record says of hardware, software and recipe, against the digests beside it.

    stored: as it is on file, before the recipe's digest was taken anew. A recipe's digest changes
    with the fields that recipes have, so it is held against today's only where the code is today's.
    """
    found = []
    facts = {"hardware": record.environment.hardware(), "software": record.environment.software()}
    for name, said in facts.items():
        if getattr(stored.fingerprints, name) != digest(said):
            found.append(f"the fingerprint of its {name} is not that of its environment")
    ours = record.environment.code is not None and record.environment.code == environment.code()
    if ours and stored.fingerprints.recipe != record.recipe.fingerprint():
        found.append("the fingerprint of its recipe is not that of its recipe")
    return found


def whole(record: Record) -> list[str]:
    """What every run that came to its end has."""
    found: list[str] = []
    if record.status != "ok":
        return found
    if not (record.latency_s or record.step_s):
        found.append("it is said to have run, and has no times")
    if not record.generation.keys() >= SIZES:
        found.append("it is said to have run, and does not say what it generated")
    if record.recipe.measure.unit == "video" and "denoise" not in record.stages:
        found.append("it is said to have made videos, and has no stages")
    return found


def samples(record: Record, stored: Record) -> list[str]:
    """Summaries that are not of their samples, and figures that are no numbers."""
    said = [note for note in record.notes if ANEW in note or note.startswith("left out, for they")]
    repeats = record.recipe.measure.repeats
    if len(record.latency_s) > repeats:
        said.append(f"{len(record.latency_s)} timed videos, where {repeats} were asked for")
    told, ratio = stored.paired_speed_up, record.paired_speed_up
    if told is not None and (ratio is None or not math.isclose(told.value, ratio.value)):
        said.append("its speed-up is not that of its pairs")
    return said


def times(record: Record) -> list[str]:
    found = []
    try:
        start, end = (datetime.fromisoformat(text) for text in (record.started, record.ended))
        start, end = (t if t.tzinfo else t.replace(tzinfo=UTC) for t in (start, end))
    except ValueError:
        return ["its start or its end is no time"]
    if end < start:
        found.append("it ended before it started")
    if end > datetime.now(UTC) + timedelta(days=1):
        found.append("it ended in the future")
    took = (end - start).total_seconds() + 2
    if math.fsum(record.latency_s) > took * SLACK:
        found.append(f"its videos took longer than the {took:.0f} s from its start to its end")
    if record.recipe.measure.unit == "video":
        pairs = list(zip(record.latency_s, record.step_s, strict=False))
        if any(math.fsum(steps) > latency * SLACK for latency, steps in pairs):
            found.append("the steps of a video took longer than the video")
        steps = record.generation.get("steps")
        if steps is not None and any(len(video) != steps for video in record.step_s):
            found.append(f"a video has another number of steps than {steps}")
    return found


def memory(record: Record) -> list[str]:
    found = []
    card = record.environment.device_memory_bytes
    for name, stage in record.stages.items():
        allocated, reserved = stage.peak.allocated_bytes, stage.peak.reserved_bytes
        if allocated is not None and reserved is not None and allocated > reserved:
            found.append(f"{name}: more memory allocated than reserved")
        if record.environment.device == "cuda" and max(allocated or 0, reserved or 0) > card:
            found.append(f"{name}: more memory than the card has")
        resident = stage.peak.resident_bytes
        if resident is not None and resident > record.environment.memory_bytes:
            found.append(f"{name}: more memory than the machine has")
    return found


def quality(record: Record) -> list[str]:
    found = []
    for name, metric in record.quality.items():
        if metric.samples and len(metric.samples) != record.videos:
            found.append(f"{name} has {len(metric.samples)} values of {record.videos} videos")
        if name not in METRICS:
            continue
        spec = METRICS[name]
        if (metric.unit, metric.better) != (spec.unit, spec.better):
            found.append(f"{name} is in {metric.unit[:20]!r}, {metric.better} is better")
        bounds = RANGE.search(spec.range)
        values = [metric.value, *(metric.samples or [])] if not metric.scale else []
        if bounds and values:
            low, high = float(bounds[1]), float(bounds[2])
            edge = 1e-3 * max(abs(low), 1.0)
            if min(values) < low - edge or max(values) > high + edge:
                found.append(f"{name} is outside of {bounds[0]}")
    return found


def videos(folder: Path, record: Record) -> list[str]:
    """Raw videos that lie beside the record, against the digest in it."""
    from qbench.quality.outputs import FOLDER
    from qbench.run.folders import damage

    if not (folder / FOLDER).is_dir():
        return []
    if any(path.is_symlink() for path in [folder / FOLDER, *(folder / FOLDER).iterdir()]):
        return ["a link among its videos"]
    wrong = damage(folder, record)
    return [wrong] if wrong else []


CHECKS: dict[str, Callable[[Record], list[str]]] = {
    "whole": whole,
    "times": times,
    "memory": memory,
    "quality": quality,
}
