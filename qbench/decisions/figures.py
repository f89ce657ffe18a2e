"""The figures that decisions speak of, by the names that a user types."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import median
from typing import Literal, assert_never

from qbench import units
from qbench.errors import InputError, nearest
from qbench.quality.metrics.catalogue import METRICS
from qbench.report import tables
from qbench.results.record import Record

Kind = Literal["seconds", "bytes", "joules", "ratio", "metric"]
Better = Literal["higher", "lower", "zero"]
SECONDS = {"s": 1.0, "ms": 1e-3, "min": 60.0}
# Cards are sold by powers of two under the name of GB, so both mean that here.
BYTES = {
    **{f"{letter}{tail}": 2.0**power for letter, power in zip("KMGT", (10, 20, 30, 40), strict=True)
       for tail in ("B", "iB")},
    "B": 1.0,
}  # fmt: skip
JOULES = {"J": 1.0, "kJ": 1e3, "Wh": 3600.0}
ALIASES = {"clip": "clip_score", "fvd": "fvd_reference", "kvd": "kvd_reference", "weights": "size"}


@dataclass(frozen=True)
class Figure:
    """One figure of a record. units: what each is in the unit that `samples` come in."""

    name: str
    kind: Kind
    better: Better
    units: dict[str, float]

    def samples(self, record: Record) -> list[float]:
        """One value a video, a step or a run; empty where the record has none."""
        if self.kind == "metric":
            metric = record.quality.get(self.name)
            if metric is None:
                return []
            return list(metric.samples) if metric.samples else [metric.value]
        return _SAMPLES[self.name](record)

    def value(self, record: Record) -> float | None:
        """The figure as tables show it, of this run alone."""
        if self.kind == "metric":
            metric = record.quality.get(self.name)
            return None if metric is None else metric.value
        if self.name == "step":
            return record.step_seconds()
        found = self.samples(record)
        return median(found) if found else None

    def text(self, value: float | None) -> str:
        if value is None:
            return tables.MISSING
        if self.kind == "seconds":
            return tables.time_text(value)
        if self.kind == "bytes":
            return tables.bytes_text(round(value))
        if self.kind == "ratio":
            return f"{value:.2f}x"
        if self.kind == "joules":
            return f"{units.three(value)} J"
        if self.kind == "metric":
            return f"{value:.4g}" + (" dB" if METRICS[self.name].unit == "dB" else "")
        assert_never(self.kind)


def _latency(record: Record) -> list[float]:
    return list(record.latency_s) if record.recipe.measure.timing else []


def _steps(record: Record) -> list[float]:
    if not record.recipe.measure.timing:
        return []
    return [step for video in record.step_s for step in video]


def _first_call(record: Record) -> list[float]:
    if not record.recipe.measure.timing or record.first_call_s is None:
        return []
    return [record.first_call_s]


def _energy(record: Record) -> list[float]:
    if not record.recipe.measure.timing or record.gauges is None:
        return []
    return list(record.gauges.energy_j)


def _peak(record: Record) -> list[float]:
    held = needed_bytes(record)
    return [] if held is None else [float(held)]


def _size(record: Record) -> list[float]:
    return [] if record.weights_bytes is None else [float(record.weights_bytes)]


def needed_bytes(record: Record) -> int | None:
    """The peak that tables show; None where it is not known."""
    return tables.peak(record)[0]


_SAMPLES = {
    "latency": _latency,
    "step": _steps,
    "first_call": _first_call,
    "energy": _energy,
    "peak": _peak,
    "size": _size,
    "speedup": lambda record: [],
}
SIZES = ("peak", "size", "first_call", "energy")  # of which a comparison has no interval
OWN: dict[str, Figure] = {
    "latency": Figure("latency", "seconds", "lower", SECONDS),
    "step": Figure("step", "seconds", "lower", SECONDS),
    "first_call": Figure("first_call", "seconds", "lower", SECONDS),
    "speedup": Figure("speedup", "ratio", "higher", {}),
    "energy": Figure("energy", "joules", "lower", JOULES),
    "peak": Figure("peak", "bytes", "lower", BYTES),
    "size": Figure("size", "bytes", "lower", BYTES),
}


def find(word: str, option: str) -> Figure:
    """The figure of this name. Raises InputError, which begins with `option`."""
    name = ALIASES.get(word, word)
    if name in OWN:
        return OWN[name]
    if name in METRICS:
        spec = METRICS[name]
        return Figure(name, "metric", spec.better, {"": 1.0, spec.unit: 1.0})
    known = [*OWN, *ALIASES, *METRICS]
    raise InputError(f"{option}: no figure {word[:60]!r}{nearest(word, known)}")


def number(text: str, units: dict[str, float], option: str, example: str) -> float:
    """A number with one of these units, in the base unit. Raises InputError."""
    found = re.fullmatch(r"\s*([+-]?\d+(?:\.\d+)?(?:e[+-]?\d{1,2})?)\s*(\S*)\s*", text)
    if not found:
        raise InputError(f"{option}: {text[:40]!r}: no number with a unit, as in {example}")
    word = found[2]
    if word not in units:
        if not word:
            raise InputError(f"{option}: {text[:40]!r}: give a unit: {', '.join(units)}")
        raise InputError(f"{option}: {text[:40]!r}: no unit {word[:20]!r}{nearest(word, units)}")
    value = float(found[1]) * units[word]
    if not math.isfinite(value):
        raise InputError(f"{option}: {text[:40]!r}: too large")
    return value
