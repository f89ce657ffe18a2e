"""A record as text and numbers, from which it is made again without being checked again.

For records that were read once: see `kept`. Values lie in the order of the fields of their class,
so nothing but the class tells what they are. Lists of numbers, which are most of a record, stay on
disk until somebody asks for them. What many records have in common (machine, settings, ceilings) is
apart, so that it is stored and held once.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import types
import typing
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, NewType

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from qbench.meters.environment import Environment
from qbench.meters.flops import Work
from qbench.meters.roofline import Ceilings
from qbench.recipe.schema import Generation, Measure, Prompts, Quality, Recipe, Variant
from qbench.results.record import Record

if TYPE_CHECKING:
    import numpy as np

# What lists and rankings are made by; the rest of a record is looked at where it is shown.
HEAD = ("run", "recipe", "status", "started", "reference", "fingerprints", "environment")
REST = tuple(name for name in Record.model_fields if name not in HEAD)
PLACES = {name: place for place, name in enumerate(REST)}
_PARTS = frozenset(
    {Environment, Ceilings, Work, Recipe, Variant, Generation, Prompts, Measure, Quality}
)
_LEFT_OUT = {"by_frame"}  # figures by frame, which no report of many runs reads
MET = 4000  # parts that are recognised, and held
UNSET: set[str] = set()
Key = NewType("Key", str)
Read = Callable[[int, int], bytes]  # so many doubles from a place on
Plain = typing.Any  # what JSON gives
Make = Callable[[Plain, Read], Plain]


class Encoded(typing.NamedTuple):
    """head, rest: JSON; numbers: doubles; parts: JSON by key, of which some may be known."""

    head: bytes
    rest: bytes
    numbers: bytes
    parts: dict[Key, bytes]


class Samples(Sequence[float]):
    """A list of numbers that is read when it is used."""

    __slots__ = ("_n", "_read", "_start")

    def __init__(self, read: Read, start: int, n: int) -> None:
        self._read, self._start, self._n = read, start, n

    def _all(self) -> array[float]:
        found = array("d")
        found.frombytes(self._read(self._start, self._n))
        return found

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[float]:
        return iter(self._all())

    @typing.overload
    def __getitem__(self, place: int) -> float: ...

    @typing.overload
    def __getitem__(self, place: slice) -> array[float]: ...

    def __getitem__(self, place: int | slice) -> float | array[float]:
        return self._all()[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __array__(
        self, dtype: np.dtype[np.float64] | None = None, copy: bool | None = None
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        import numpy as np

        return np.array(self._all(), dtype=dtype)


# What fields hold ---------------------------------------------------------------------------------


class _Shape(typing.NamedTuple):
    """What is not written as it is: a model, numbers, or a list or dict of such.

    videos: a list of numbers for each.
    """

    what: typing.Literal["model", "numbers", "videos", "list", "dict"]
    kind: type[BaseModel] = BaseModel
    inner: _Shape | None = None


def _shape(annotation: object) -> _Shape | None:
    """None: JSON gives the value back as it was."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _Shape("model", annotation)
    if origin is Annotated:
        return _shape(inside[0])
    if origin in (typing.Union, types.UnionType):
        found = [shape for one in inside if (shape := _shape(one))]
        if len(found) > 1:
            raise TypeError(f"{annotation}: two kinds that JSON does not tell apart")
        return found[0] if found else None
    if origin is list and _bare(inside[0]) is float:
        return _Shape("numbers")
    if origin is list and (inner := _shape(inside[0])) and inner.what == "numbers":
        return _Shape("videos")
    if origin in (list, dict) and (inner := _shape(inside[-1])):
        return _Shape("list" if origin is list else "dict", inner=inner)
    if origin in (tuple, set, frozenset):
        raise TypeError(f"{annotation}: JSON would make a list of it")
    return None


def _bare(annotation: object) -> object:
    annotated = typing.get_origin(annotation) is Annotated
    return typing.get_args(annotation)[0] if annotated else annotation


def _inner(kind: type[BaseModel], names: Sequence[str]) -> list[tuple[int, _Shape]]:
    """The places of those fields that are not written as they are."""
    found = ((i, _shape(kind.model_fields[name].annotation)) for i, name in enumerate(names))
    return [(i, shape) for i, shape in found if shape]


MADE = frozenset(REST[i] for i, _ in _inner(Record, REST))  # fields that JSON alone does not make


# Writing ------------------------------------------------------------------------------------------

Code = Callable[[object], object]
_json = functools.partial(to_json, inf_nan_mode="constants")


class Encoder:
    """Makes text and numbers of records; parts that it has met are recognised."""

    def __init__(self) -> None:
        self._met: dict[bytes, Key] = {}
        self._numbers, self._parts = array("d"), dict[Key, bytes]()
        self._models: dict[type[BaseModel], Code] = {}
        self._head, self._rest = self._fields(Record, HEAD), self._fields(Record, REST)

    def encode(self, record: Record) -> Encoded:
        self._numbers, self._parts = array("d"), {}
        head, rest = self._head(record), self._rest(record)
        return Encoded(_json(head), _json(rest), self._numbers.tobytes(), self._parts)

    def _of(self, shape: _Shape) -> Code:
        if shape.what == "numbers":
            return self._list_of_numbers
        if shape.what == "videos":
            return self._lists_of_numbers
        if shape.what == "model":
            if shape.kind not in self._models:
                made = self._fields(shape.kind, tuple(shape.kind.model_fields))
                self._models[shape.kind] = self._part(made) if shape.kind in _PARTS else made
            return self._models[shape.kind]
        assert shape.inner is not None
        inner = self._of(shape.inner)
        if shape.what == "list":
            return lambda value: [inner(item) for item in _list(value)]
        return lambda value: {key: inner(item) for key, item in _dict(value).items()}

    def _list_of_numbers(self, value: object) -> object:
        start, numbers = len(self._numbers), _list(value)
        self._numbers.extend(numbers)  # type: ignore[arg-type]
        return start, len(numbers)

    def _lists_of_numbers(self, value: object) -> object:
        start, lists = len(self._numbers), [*map(_list, _list(value))]
        for numbers in lists:
            self._numbers.extend(numbers)  # type: ignore[arg-type]
        return start, *map(len, lists)

    def _fields(self, kind: type[BaseModel], names: Sequence[str]) -> Code:
        all_of = operator.itemgetter(*names, names[0])  # of one name it would be no tuple
        inner = [(i, self._of(shape)) for i, shape in _inner(kind, names)]
        empty = [i for i, name in enumerate(names) if name in _LEFT_OUT]

        def encode(value: object) -> object:
            if not isinstance(value, BaseModel):  # of a union, and written as it is
                return value
            values = list(all_of(value.__dict__))
            for i in empty:
                values[i] = None
            for i, one in inner:
                if values[i] is not None:
                    values[i] = one(values[i])
            del values[-1]
            return values

        return encode

    def _part(self, made: Code) -> Code:
        def encode(value: object) -> object:
            text = _json(made(value))
            key = self._met.get(text)
            if key is None:
                key = key_of(text)
                self._parts[key] = text
                if len(self._met) < MET:
                    self._met[text] = key
            return key

        return encode


def _list(value: object) -> Sequence[object]:
    assert isinstance(value, (list, Samples))
    return value


def _dict(value: object) -> dict[str, object]:
    assert isinstance(value, dict)
    return value


def key_of(part: bytes) -> Key:
    return Key(hashlib.sha256(part).hexdigest()[:32])


# Reading ------------------------------------------------------------------------------------------


class Decoder:
    """Makes records again. part: the JSON of a part, which raises KeyError where it has none."""

    def __init__(self, part: Callable[[Key], bytes]) -> None:
        self._part = functools.lru_cache(maxsize=MET)(self._made_part)
        self._text_of = part
        self._models: dict[type[BaseModel], Make] = {}
        self._kinds: dict[type[BaseModel], Make] = {}
        shapes = dict(_inner(Record, HEAD)), dict(_inner(Record, REST))
        self._head, self._rest = (
            [self._of(found[i]) if i in found else None for i in range(len(names))]
            for found, names in zip(shapes, (HEAD, REST), strict=True)
        )

    def head(self, text: bytes) -> list[object]:
        """The values of HEAD."""
        values = _values(text, len(HEAD))
        return [
            make(value, _nothing) if make and value is not None else value
            for make, value in zip(self._head, values, strict=True)
        ]

    def rest(self, text: bytes) -> list[object]:
        """What `value` makes the values of REST of."""
        return _values(text, len(REST))

    def value(self, rest: list[object], place: int, read: Read) -> object:
        """One of REST; those of MADE are taken out of `rest`."""
        make = self._rest[place]
        if make is None:
            return rest[place]
        value, rest[place] = rest[place], None
        return value if value is None else make(value, read)

    def _of(self, shape: _Shape) -> Make:
        if shape.what == "numbers":
            return lambda value, read: Samples(read, *value) if value[1] else []
        if shape.what == "videos":
            return _videos
        if shape.what == "model":
            if shape.kind not in self._models:
                self._kinds[shape.kind] = self._model(shape.kind)
                found = self._shared(shape.kind) if shape.kind in _PARTS else None
                self._models[shape.kind] = found or self._kinds[shape.kind]
            return self._models[shape.kind]
        assert shape.inner is not None
        inner = self._of(shape.inner)
        if shape.what == "list":
            return lambda value, read: [inner(item, read) for item in value]
        return lambda value, read: {key: inner(item, read) for key, item in value.items()}

    def _model(self, kind: type[BaseModel]) -> Make:
        names = tuple(kind.model_fields)
        inner = [(i, self._of(shape)) for i, shape in _inner(kind, names)]
        new, write = kind.__new__, object.__setattr__

        def make(values: Plain, read: Read) -> BaseModel:
            if not isinstance(values, list):
                return values
            for i, one in inner:
                if values[i] is not None:
                    values[i] = one(values[i], read)
            made = new(kind)
            # In the order of the class, so that Python keeps the names once for all of its objects.
            for name, value in zip(names, values, strict=True):
                write(made, name, value)
            write(made, "__pydantic_fields_set__", UNSET)
            write(made, "__pydantic_extra__", None)
            write(made, "__pydantic_private__", None)
            return made

        return make

    def _shared(self, kind: type[BaseModel]) -> Make:
        return lambda key, read: self._part(kind, key)

    def _made_part(self, kind: type[BaseModel], key: Key) -> object:
        return self._kinds[kind](from_json(self._text_of(key), allow_inf_nan=True), _nothing)


def _videos(value: list[int], read: Read) -> list[Samples]:
    found, (start, *lengths) = [], value
    for n in lengths:
        found.append(Samples(read, start, n))
        start += n
    return found


def _values(text: bytes, n: int) -> list[object]:
    values = from_json(text, allow_inf_nan=True)
    if not isinstance(values, list) or len(values) != n:
        raise ValueError("not the fields of a record")
    return values


def _nothing(start: int, n: int) -> bytes:
    raise ValueError("numbers where there are none")
