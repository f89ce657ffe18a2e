"""Records as reports need them, in little memory: many of them are held at once."""

from __future__ import annotations

from array import array
from typing import TypeVar

from pydantic import BaseModel

from qbench.results.record import Record
from qbench.results.samples import Spool

M = TypeVar("M", bound=BaseModel)
MET = 2000  # parts that are recognised
FEW = 8  # numbers that are no fewer bytes elsewhere
_UNSET: set[str] = set()
_NONE: dict[str, BaseModel] = {}
# What many records have in common is held once; of the recipe its parts, for names differ.
_COMMON = ("environment", "ceilings", "work")
_PARTS = ("variant", "generation", "prompts", "measure", "quality")
_PLAIN = frozenset({float, int, bool, type(None)})
_LEFT_OUT = {"by_frame"}  # figures by frame, which no report of many runs reads


class Shared:
    """What several records have in common (machine, settings, ceilings) is held once.

    spool: where lists of numbers go; None for those that stay in memory.
    """

    def __init__(self, spool: Spool | None = None) -> None:
        self._known: dict[tuple[type, str], BaseModel] = {}
        self._texts: dict[str, str] = {}
        self._spool = spool

    def compact(self, record: Record) -> Record:
        """The same record for reading: numbers as arrays, figures by frame left out."""
        recipe = record.recipe
        known = {name: self._one(part) for name in _COMMON if (part := getattr(record, name))}
        parts = {name: self._one(getattr(recipe, name)) for name in _PARTS}
        own = self._light(record, {**known, "recipe": self._light(recipe, parts)})
        if self._spool is not None:
            self._spool.write()
        return own

    def _light(self, model: M, known: dict[str, BaseModel]) -> M:
        """A copy whose fields are in the order of the class, so that Python keeps their names once
        for all objects of it, and without the set of the fields that were given.
        """
        kind = type(model)
        copied = kind.__new__(kind)
        write = object.__setattr__
        for name, value in model.__dict__.items():
            if type(value) in _PLAIN:
                write(copied, name, value)
            elif name in known:
                write(copied, name, known[name])
            elif name in _LEFT_OUT:
                write(copied, name, None)
            else:
                write(copied, name, self._small(value))
        write(copied, "__pydantic_fields_set__", _UNSET)
        write(copied, "__pydantic_extra__", None)
        write(copied, "__pydantic_private__", None)
        return copied

    def _small(self, value: object) -> object:
        if isinstance(value, str):
            return self._texts.setdefault(value, value)
        if isinstance(value, list):
            if value and type(value[0]) is float:  # the schema has no list of floats and others
                numbers = array("d", value)
                spooled = self._spool is not None and len(numbers) >= FEW
                return self._spool.add(numbers) if spooled and self._spool else numbers
            return [self._small(item) for item in value]
        if isinstance(value, dict):
            texts = self._texts
            return {
                texts.setdefault(key, key): item if type(item) in _PLAIN else self._small(item)
                for key, item in value.items()
            }
        return self._light(value, _NONE) if isinstance(value, BaseModel) else value

    def _one(self, part: M) -> M:
        key = (type(part), part.model_dump_json())
        known = self._known.get(key)
        if known is None:
            known = self._light(part, _NONE)
            if len(self._known) < MET:
                self._known[key] = known
        assert isinstance(known, type(part))
        return known
