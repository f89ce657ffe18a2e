"""From a YAML file to a recipe: bases, overrides, and errors that name file and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from qbench.errors import InputError, nearest
from qbench.recipe.schema import Recipe

MAX_BYTES = 65536  # a recipe is a page; anything larger is not one

Path_ = tuple[str | int, ...]
Places = dict[Path_, str]  # where each value was written: 'recipes/int8.yaml:5' or '--set'


def load(path: Path, overrides: dict[str, str] | None = None) -> Recipe:
    """The recipe of a file, its bases merged in and `overrides` ({'variant.dtype': 'bf16'}) last.

    Raises InputError: one line with file, line number and the nearest valid word.
    """
    values, places = _merged(path, ())
    for key, text in (overrides or {}).items():
        _override(values, places, key, text)
    values.setdefault("name", path.stem)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(_first(error, places, path)) from None


def overrides(pairs: list[str]) -> dict[str, str]:
    """['a.b=c'] as {'a.b': 'c'}."""
    found = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {pair}: expected field=value, as in variant.dtype=bf16")
        found[key.strip()] = value
    return found


def _merged(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], Places]:
    resolved = path.resolve()
    values, places = _read(path)
    base_name = values.pop("extends", None)
    if base_name is None:
        return values, places
    where = places.get(("extends",), str(path))
    if not isinstance(base_name, str):
        raise InputError(f"{where}: 'extends' takes a file name, not {base_name!r}")
    base = path.parent / base_name
    if not base.resolve().is_relative_to(resolved.parent.parent):
        raise InputError(f"{where}: 'extends: {base_name}' leads out of the recipes' folder")
    if not base.is_file():
        there = [item.name for item in path.parent.glob("*.y*ml")]
        raise InputError(f"{where}: no file {base_name!r} to extend{nearest(base_name, there)}")
    lineage = (*chain, resolved)
    if base.resolve() in lineage:
        loop = " -> ".join(item.name for item in (*lineage, base.resolve()))
        raise InputError(f"{where}: 'extends' goes round in a circle: {loop}")
    below, below_places = _merged(base, lineage)
    below.pop("name", None)
    below.pop("about", None)
    return _layered(below, values), {**below_places, **places}


def _layered(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _layered(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _read(path: Path) -> tuple[dict[str, Any], Places]:
    import yaml

    if not path.is_file():
        there = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such recipe{nearest(path.name, there)}")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES} bytes, which no recipe is")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        for token in yaml.scan(text):
            kind = {
                yaml.TagToken: "YAML tags are",
                yaml.AliasToken: "YAML aliases are",
                yaml.AnchorToken: "YAML anchors are",
            }.get(type(token))
            if kind:
                line = token.start_mark.line + 1
                raise InputError(f"{path}:{line}: {kind} not accepted; write the value plainly")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    places: Places = {}
    values = {} if node is None else _plain(node, (), path, places)
    if not isinstance(values, dict):
        raise InputError(f"{path}:1: a recipe is a mapping of fields, as in 'name: int8'")
    return values, places


def _plain(node: Any, at: Path_, path: Path, places: Places) -> Any:
    """A YAML node as plain data, with the line of each value noted."""
    import yaml

    places.setdefault(at, f"{path}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*at, i), path, places) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in found:
                raise InputError(f"{path}:{line}: {key!r} stands twice")
            places[(*at, key)] = f"{path}:{line}"
            found[key] = _plain(value_node, (*at, key), path, places)
        return found
    if node.tag == "tag:yaml.org,2002:timestamp":
        return node.value
    return yaml.SafeLoader("").construct_object(node)


def _override(values: dict[str, Any], places: Places, key: str, text: str) -> None:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {key}={text}: the value is not YAML") from None
    parts = key.split(".")
    place: dict[str, Any] = values
    for part in parts[:-1]:
        inner = place.get(part)
        place[part] = dict(inner) if isinstance(inner, dict) else {}
        place = place[part]
    place[parts[-1]] = value
    for depth in range(1, len(parts) + 1):
        places.setdefault(tuple(parts[:depth]), f"--set {key}={text}")
    places[tuple(parts)] = f"--set {key}={text}"


def _first(error: ValidationError, places: Places, path: Path) -> str:
    """The first thing that is wrong, as one line."""
    detail = error.errors()[0]
    at: Path_ = tuple(part for part in detail["loc"] if part != "function-after")
    message, kind = detail["msg"], detail["type"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        message = f"unknown field{nearest(str(at[-1]), _fields(at[:-1]))}"
    elif kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        message = f"{detail['input']!r} is not a choice{nearest(str(detail['input']), choices)}"
    elif kind == "value_error":
        message = str(context["error"])
        if message.startswith("@"):  # raised for a whole section: the field at fault leads
            field, _, message = message[1:].partition(": ")
            at = (*at, field)
    elif kind == "missing":
        message = "this field is required"
    elif kind.endswith(("_type", "_parsing")):
        message = f"{message[0].lower()}{message[1:]}, not {detail['input']!r}"
    where = next((places[at[:n]] for n in range(len(at), -1, -1) if at[:n] in places), str(path))
    return f"{where}: {'.'.join(map(str, at)) or 'recipe'}: {message}"


def _fields(at: Path_) -> list[str]:
    """Names of the fields that the section at this place has."""
    model: Any = Recipe
    for part in at:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        inner = [annotation, *get_args(annotation)]
        found = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        if not found:
            return []
        model = found[0]
    return [*model.model_fields, "extends"] if model is Recipe else list(model.model_fields)
