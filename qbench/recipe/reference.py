"""The reference of all fields of a recipe, as Markdown: `python -m qbench.recipe.reference`.

It stands between two marks in docs/recipes.md; a test holds the document to the schema.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from qbench.recipe.mistakes import section
from qbench.recipe.schema import SCHEMES, Recipe

BEGIN, END = "<!-- fields: made from the schema -->", "<!-- end of fields -->"
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "recipes.md"
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def markdown() -> str:
    """A table for the recipe itself and one for every section, in the schema's order."""
    return "\n".join(_tables(Recipe, "")).rstrip() + "\n"


def inserted(text: str) -> str:
    """The document with its reference made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{markdown()}\n{END}{after}"


def _tables(model: type[BaseModel], at: str) -> Iterator[str]:
    yield f"### `{at}`" if at else "### The recipe itself"
    yield ""
    yield _first_paragraph(model)
    yield ""
    yield "| field | takes | default | |"
    yield "| --- | --- | --- | --- |"
    below: list[tuple[type[BaseModel], str]] = []
    for name, field in model.model_fields.items():
        inner = section(field.annotation)
        path = f"{at}.{name}" if at else name
        if inner is not None:
            below.append((inner, path))
        cells = (f"`{name}`", _takes(field, path), _default(field), _line(field.description))
        yield f"| {' | '.join(cells)} |"
    yield ""
    if model.__name__ == "Quantize":
        for backend, schemes in SCHEMES.items():
            yield f"Schemes of `{backend}`: {', '.join(f'`{name}`' for name in schemes)}."
            yield ""
    for inner, path in below:
        yield from _tables(inner, path)


def _first_paragraph(model: type[BaseModel]) -> str:
    return _line((model.__doc__ or "").split("\n\n")[0])


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _takes(field: FieldInfo, path: str) -> str:
    return _type(field.annotation, [m for m in field.metadata if not isinstance(m, str)], path)


def _type(annotation: object, limits: list[object], path: str) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        more = [m for item in inside[1:] for m in (getattr(item, "metadata", None) or [item])]
        return _type(inside[0], [*limits, *more], path)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inside)
    if origin in (Union, UnionType):
        parts = ["`null`" if i is NoneType else _type(i, limits, path) for i in inside]
        return " or ".join(dict.fromkeys(parts))
    if origin is list:
        return f"a list of {_type(inside[0], [], path)}s".replace("texts", "words")
    if origin is dict:
        return f"name: {_type(inside[1], [], path)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a section: `{path}`"
    if isinstance(annotation, type) and annotation in WORDS:
        return WORDS[annotation] + _limited(limits)
    raise TypeError(f"{path}: no words for {annotation}")


def _limited(limits: list[object]) -> str:
    said = []
    for limit in limits:
        if isinstance(limit, Ge):
            said.append(f"from {limit.ge}")
        elif isinstance(limit, Gt):
            said.append(f"above {limit.gt}")
        elif isinstance(limit, Le):
            said.append(f"to {limit.le:,}")
        elif isinstance(limit, Lt):
            said.append(f"below {limit.lt:,}")
        elif isinstance(limit, MultipleOf):
            said.append(f"in steps of {limit.multiple_of}")
        elif isinstance(limit, MinLen):
            said.append("that is not empty")
        elif not hasattr(limit, "pattern"):  # what a text may be is said beside it
            raise TypeError(f"no words for {limit}")
    return f" {' '.join(said)}" if said else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return "its own defaults"
    if value in ([], {}, ""):
        return "empty"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        DOCUMENT.write_text(inserted(DOCUMENT.read_text()))
    else:
        print(markdown(), end="")
