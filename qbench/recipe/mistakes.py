"""What pydantic finds wrong with a recipe, as lines that name place, field and nearest choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from qbench.errors import brief, nearest, one_line
from qbench.recipe.schema import Recipe
from qbench.recipe.yaml_text import Place

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Places = dict[Place, str]  # where each value was written: 'recipes/int8.yaml:5' or '--set a=b'

# Where a field takes one of two types, pydantic tries both and puts the type's name into the place.
SIZE, MARGIN = "constrained-float", "Margin"
BRANCHES = ("function-after", SIZE, MARGIN)


def said(error: ValidationError, places: Places, path: Path) -> list[str]:
    """All that is wrong, one line each, by file and line."""
    details = [detail for detail in error.errors() if not _other_branch(detail)]
    lines = [_said(detail, places, path) for detail in details]
    return [line for _, line in sorted(lines, key=lambda line: line[0])]


def origin(places: Places, at: Place, path: Path) -> str:
    """The file and line, or the option, that this place comes from; else its section's."""
    known = (places[at[:n]] for n in range(len(at), -1, -1) if at[:n] in places)
    return next(known, str(path))


def _other_branch(detail: ErrorDetails) -> bool:
    """Whether this is said of a value for not being of the type that it is not meant to be."""
    if MARGIN in detail["loc"]:
        return detail["type"] == "model_type"
    return SIZE in detail["loc"] and isinstance(detail["input"], dict)


def _said(detail: ErrorDetails, places: Places, path: Path) -> tuple[tuple[str, int], str]:
    """One thing that is wrong, behind what such lines are sorted by."""
    at: Place = tuple(part for part in detail["loc"] if part not in BRANCHES)
    message, kind, given = detail["msg"], detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        message = f"unknown field{_meant(at, origin(places, at, path).startswith('--'))}"
    elif kind == "literal_error":
        choices = re.findall(r"'([^']*)'|\b(\d+)\b", str(context.get("expected", "")))
        message = f"{brief(given)} is not a choice{nearest(str(given), map(''.join, choices))}"
    elif kind == "value_error":
        message = str(context["error"])
        if message.startswith("@"):  # raised for a whole section: the field at fault leads
            field, _, message = message[1:].partition(": ")
            at = (*at, *field.split("."))
    elif kind == "string_too_short":
        message = "'' names nothing; what is to have its default is left out, or null"
    elif kind == "missing":
        message = f"this field is required{_choices(at)}"
    elif kind == "model_type":
        inside = ", ".join(_fields(at))
        message = f"takes fields ({inside}), not {brief(given)}"
    else:
        message = f"{message[0].lower()}{message[1:]}, not {brief(given)}"
    place = origin(places, at, path)
    field = ".".join(map(str, at)) or ("''" if at else "recipe")
    file, _, line = place.rpartition(":")
    order = (file, int(line)) if line.isdecimal() else (place, 0)
    return order, f"{place}: {one_line(field, 120)}: {message}"


def _meant(at: Place, by_option: bool) -> str:
    """The field that an unknown one was meant to be: here, or of this name in another section."""
    word, section = str(at[-1]), at[:-1]
    here = _fields(section)
    elsewhere = [name for name in all_fields() if name.rpartition(".")[2] == word]
    if elsewhere:
        least = min(name.count(".") for name in elsewhere)  # the nearest to what most would mean
        elsewhere = [name for name in elsewhere if name.count(".") == least]
        return f"; did you mean {' or '.join(map(repr, elsewhere[:3]))}?"
    if not section and not by_option:
        here.append("extends")
        first, _, rest = word.partition(".")
        if rest and first in here:
            return f"; in a file that is {first}: {{{rest}: ...}}"
    return nearest(word, here)


def _choices(at: Place) -> str:
    """What a field of few words takes; nothing for the others."""
    inside = _section_at(at[:-1])
    field = inside.model_fields.get(str(at[-1])) if inside else None
    if field is None or get_origin(field.annotation) is not Literal:
        return ""
    return nearest("", map(str, get_args(field.annotation)))


def _fields(at: Iterable[str | int]) -> list[str]:
    """Names of the fields that the section at this place has."""
    inside = _section_at(at)
    return list(inside.model_fields) if inside else []


def _section_at(at: Iterable[str | int]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Recipe
    named: object = None  # the type of what a mapping holds by name, as it does margins
    for part in at:
        if named:
            model, named = section(named), None
        elif model and (known := model.model_fields.get(str(part))):
            named = get_args(known.annotation)[1] if get_origin(known.annotation) is dict else None
            model = None if named else section(known.annotation)
        else:
            return None
    return model


def all_fields(model: type[BaseModel] = Recipe, above: str = "") -> Iterator[str]:
    """Dotted names of all fields, as `--set` takes them."""
    for name, field in model.model_fields.items():
        yield above + name
        if inner := section(field.annotation):
            yield from all_fields(inner, f"{above}{name}.")


def section(annotation: object) -> type[BaseModel] | None:
    """The section that a field of this type holds, if it is one."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
