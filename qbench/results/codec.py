"""A record as text and numbers, from which it is made again without being checked again.

For records that were read once: see `kept`. Lists of numbers, which are most of a record, stay on
disk until somebody asks for them. What many records have in common (machine, settings, ceilings) is
apart, so that it is stored and held once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import typing
from array import array
from collections.abc import Callable
from typing import NewType

from pydantic import BaseModel

from qbench.meters.environment import Environment
from qbench.meters.flops import Work
from qbench.meters.roofline import Ceilings
from qbench.recipe.schema import Generation, Measure, Prompts, Quality, Recipe, Variant
from qbench.results.record import Record
from qbench.results.samples import Samples

# What lists and rankings are made by; the rest of a record is looked at where it is shown.
HEAD = ("run", "recipe", "status", "started", "reference", "fingerprints", "environment")
REST = tuple(name for name in Record.model_fields if name not in HEAD)
PLACES = {name: place for place, name in enumerate(REST)}
_PARTS = frozenset(
    {Environment, Ceilings, Work, Recipe, Variant, Generation, Prompts, Measure, Quality}
)
_LEFT_OUT = {"by_frame"}  # figures by frame, which no report of many runs reads
_PLAIN = frozenset({str, float, int, bool, type(None)})
MET = 2000  # parts that are recognised
UNSET: set[str] = set()
Key = NewType("Key", str)


class Encoded(typing.NamedTuple):
    """head, rest: JSON; numbers: doubles; parts: JSON by key, of which some may be known."""

    head: bytes
    rest: bytes
    numbers: bytes
    parts: dict[Key, bytes]


@functools.cache
def _classes() -> tuple[type[BaseModel], ...]:
    """All models that a record consists of, itself first, in the order of its fields."""
    found: dict[type[BaseModel], None] = {}

    def add(annotation: object) -> None:
        for inner in typing.get_args(annotation):
            add(inner)
        if not isinstance(annotation, type) or not issubclass(annotation, BaseModel):
            return
        if annotation not in found:
            found[annotation] = None
            for field in annotation.model_fields.values():
                add(field.annotation)

    add(Record)
    return tuple(found)


# Writing ------------------------------------------------------------------------------------------


class Encoder:
    """Makes text and numbers of records; parts that it has met are recognised."""

    def __init__(self) -> None:
        self._met: dict[tuple[type, str], Key] = {}
        self._fields = {kind: tuple(kind.model_fields) for kind in _classes()}
        self._marks = {kind: number for number, kind in enumerate(_classes())}
        self._numbers, self._parts = array("d"), dict[Key, bytes]()

    def encode(self, record: Record) -> Encoded:
        """Raises TypeError where a value is none that records have."""
        self._numbers, self._parts = array("d"), {}
        own = record.__dict__
        head = _text([self._plain(own[name]) for name in HEAD])
        rest = _text([self._plain(own[name]) for name in REST])
        return Encoded(head, rest, self._numbers.tobytes(), self._parts)

    def _plain(self, value: object) -> object:
        """As JSON, in which an object has one key that says what it stands for."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if isinstance(value, list):
            if value and type(value[0]) is float:  # and so are all others
                start = len(self._numbers)
                self._numbers.extend(value)
                return {"n": [start, len(value)]}
            return [self._plain(item) for item in value]
        if isinstance(value, dict):
            flat: list[object] = []
            for key, item in value.items():
                flat += (key, item if type(item) in _PLAIN else self._plain(item))
            return {"d": flat}
        if isinstance(value, tuple):
            return {"t": [self._plain(item) for item in value]}
        if not isinstance(value, BaseModel) or kind not in self._marks or value.__pydantic_extra__:
            raise TypeError(f"a {kind.__name__} in a record")
        return self._part(value) if kind in _PARTS else self._model(value)

    def _model(self, value: BaseModel) -> dict[str, object]:
        own, kind, plain = value.__dict__, type(value), self._plain
        fields: list[object] = [self._marks[kind]]
        for name in self._fields[kind]:
            field = own[name]
            if type(field) not in _PLAIN:
                field = None if name in _LEFT_OUT else plain(field)
            fields.append(field)
        return {"m": fields}

    def _part(self, value: BaseModel) -> dict[str, Key]:
        known = (type(value), value.model_dump_json())
        key = self._met.get(known)
        if key is None:
            outer, self._numbers = self._numbers, array("d")
            made = self._model(value)
            if self._numbers:
                raise TypeError("a part with numbers")
            self._numbers = outer
            text = _text(made)
            key = key_of(text)
            self._parts[key] = text
            if len(self._met) < MET:
                self._met[known] = key
        return {"p": key}


_text_of = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def _text(value: object) -> bytes:
    return _text_of(value).encode()


def key_of(part: bytes) -> Key:
    return Key(hashlib.sha256(part).hexdigest()[:32])


# Reading ------------------------------------------------------------------------------------------


Read = Callable[[int, int], bytes]


def _nothing(start: int, n: int) -> bytes:
    raise ValueError("numbers where there are none")


class Decoder:
    """Makes records again. part: the JSON of a part, which raises KeyError where it has none."""

    def __init__(self, part: Callable[[Key], bytes]) -> None:
        self._part = part
        self._parts: dict[str, object] = {}
        self._texts: dict[str, str] = {}
        self._read: Read = _nothing
        self._fields = [tuple(kind.model_fields) for kind in _classes()]
        self._json = json.JSONDecoder(object_hook=self._hook)

    def values(self, text: bytes, read: Read | None = None) -> list[object]:
        """The values in `text`. read: its numbers, when they are asked for."""
        outer, self._read = self._read, read or _nothing
        try:
            found: list[object] = self._json.decode(text.decode())
        finally:
            self._read = outer
        return found

    def _hook(self, found: dict[str, typing.Any]) -> object:
        ((word, value),) = found.items()
        if word == "m":
            return self._model(value)
        if word == "n":
            return Samples(self._read, *value)
        if word == "p":
            if value not in self._parts:
                self._parts[value] = self.values(self._part(value))
            return self._parts[value]
        if word == "d":
            known = self._texts.setdefault
            return {known(value[i], value[i]): value[i + 1] for i in range(0, len(value), 2)}
        return tuple(value)

    def _model(self, values: list[object]) -> BaseModel:
        """Fields are set in the order of the class, so that Python keeps their names once for all
        objects of it.
        """
        number = values[0]
        assert isinstance(number, int)
        kind = _classes()[number]
        made = kind.__new__(kind)
        write, known = object.__setattr__, self._texts.setdefault
        for name, value in zip(self._fields[number], values[1:], strict=True):
            write(made, name, known(value, value) if type(value) is str else value)
        write(made, "__pydantic_fields_set__", UNSET)
        write(made, "__pydantic_extra__", None)
        write(made, "__pydantic_private__", None)
        return made
