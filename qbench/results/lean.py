"""Records as reports need them, in little memory: many of them are held at once."""

from __future__ import annotations

from array import array
from typing import TypeVar

from pydantic import BaseModel

from qbench.quality.statistics import Metric
from qbench.results.record import Record

M = TypeVar("M", bound=BaseModel)
_UNSET: set[str] = set()


class Shared:
    """What several records have in common (machine, settings, ceilings) is held once."""

    def __init__(self) -> None:
        self._known: dict[tuple[type, str], BaseModel] = {}

    def compact(self, record: Record) -> Record:
        """The same record for reading: numbers as arrays, figures by frame left out."""
        recipe = record.recipe
        parts = {name: self._one(getattr(recipe, name)) for name in _PARTS}
        changes: dict[str, object] = {
            "recipe": _light(recipe.model_copy(update=parts)),
            "environment": self._one(record.environment),
            "ceilings": self._one(record.ceilings) if record.ceilings else None,
            "work": self._one(record.work) if record.work else None,
            "quality": {name: _metric(metric) for name, metric in record.quality.items()},
            "step_s": [array("d", steps) for steps in record.step_s],
        }
        for name in ("latency_s", "step_host_s", "paired_reference_s"):
            changes[name] = array("d", getattr(record, name))
        for stage in record.stages.values():
            _light(stage)
            _light(stage.peak)
        for summary in (record.latency, record.step):
            if summary:
                _light(summary)
        return _light(record.model_copy(update=changes))

    def _one(self, part: M) -> M:
        key = (type(part), part.model_dump_json())
        known = self._known.setdefault(key, part)
        assert isinstance(known, type(part))
        return known


_PARTS = ("variant", "generation", "prompts", "measure", "quality")


def _metric(metric: Metric) -> Metric:
    samples = array("d", metric.samples) if metric.samples else None
    if metric.summary:
        _light(metric.summary)
    return _light(metric.model_copy(update={"samples": samples, "by_frame": None}))


def _light(model: M) -> M:
    """Without the set of the fields that were given, which is larger than most models here."""
    object.__setattr__(model, "__pydantic_fields_set__", _UNSET)
    return model
