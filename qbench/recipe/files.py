"""From a YAML file to a recipe: bases, overrides, and errors that name file and line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from qbench import textfile
from qbench.errors import InputError, Mistakes, brief, nearest, one_line
from qbench.recipe import shipped, yaml_text
from qbench.recipe.mistakes import Places, origin, said
from qbench.recipe.schema import Recipe
from qbench.recipe.shipped import recipe_files
from qbench.recipe.yaml_text import Value

MAX_BASES = 16


@dataclass(frozen=True)
class Loaded:
    """A recipe, and where each of its values was written."""

    recipe: Recipe
    path: Path
    root: Path  # the folder below which recipes are named: that of the outermost base
    places: Places

    def where(self, *at: str | int) -> str:
        """The file and line, or the option, that this field comes from; else its section's."""
        return origin(self.places, at, self.path)


def load(path: Path, overrides: Mapping[str, str] | None = None) -> Recipe:
    """The recipe of a file, its bases merged in and `overrides` ({'variant.dtype': 'bf16'}) last.

    Raises InputError: a line for each mistake, with file, line number and the nearest valid word.
    """
    return read(path, overrides or {}).recipe


def read(
    path: Path, overrides: Mapping[str, str], options: Mapping[str, str] | None = None
) -> Loaded:
    """`load`, with the places of the values.

    options: what the user typed for an override where that was not '--set', by its field.
    """
    mistakes = Mistakes()
    try:
        values, places, outermost = _merged(path, (), mistakes)
    except InputError as error:
        raise mistakes.and_also(*error.lines) from None
    root = _root(path, outermost)
    return _overridden(values, places, overrides, options or {}, path, root, mistakes)


def revised(
    recipe: Recipe, path: Path, overrides: Mapping[str, str], options: Mapping[str, str]
) -> Loaded:
    """A recipe that `path` holds in another form, with overrides as in `read`."""
    values: dict[str, Value] = recipe.model_dump(mode="json")
    return _overridden(values, {}, overrides, options, path, path.parent, Mistakes())


def _overridden(
    values: dict[str, Value],
    places: Places,
    overrides: Mapping[str, str],
    options: Mapping[str, str],
    path: Path,
    root: Path,
    mistakes: Mistakes,
) -> Loaded:
    """Values with overrides as a recipe. Raises InputError with all that is wrong in either.

    mistakes: what is wrong with the files already.
    """
    for key, text in overrides.items():
        with mistakes.kept():
            _override(values, places, key, text, options.get(key))
    values.setdefault("name", _relative(path, root).with_suffix("").as_posix())
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise mistakes.and_also(*said(error, places, path)) from None
    mistakes.tell()
    return Loaded(recipe, path, root, places)


def overrides(pairs: list[str]) -> dict[str, str]:
    """['a.b=c'] as {'a.b': 'c'}. Raises InputError with all that are no override."""
    found, mistakes = {}, Mistakes()
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            given = one_line(pair, 80)
            mistakes.add(f"--set {given}: expected field=value, as in variant.dtype=bf16")
        found[key.strip()] = value
    mistakes.tell()
    return found


def fields(tree: dict[str, object], above: str = "") -> dict[str, object]:
    """Nested fields by their dotted names, as `--set` takes them."""
    found: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= fields(value, f"{above}{name}.")
        else:
            found[above + name] = value
    return found


def overriding(
    now: Recipe, then: Recipe, include: Mapping[str, bool | set[str]] | None = None
) -> dict[str, str]:
    """The overrides, by field, that make the first recipe what the second is.

    include: the fields that matter, as pydantic names them; all by default.
    """
    today, wanted = (fields(one.model_dump(mode="json", include=include)) for one in (now, then))
    return {
        key: quoted(value) if isinstance(value, str) else json.dumps(value)
        for key, value in wanted.items()
        if today.get(key, ...) != value
    }


def quoted(text: str) -> str:
    """The text as the value of an override: as it is where YAML reads the same, else quoted."""
    try:
        value, _ = yaml_text.parse(text, "")
    except InputError:
        value = None
    return text if value == text else json.dumps(text)


# Bases -------------------------------------------------------------------------------------------


def _merged(
    path: Path, chain: tuple[Path, ...], mistakes: Mistakes
) -> tuple[dict[str, Value], Places, Path]:
    """Values with those of all bases below them, their places, and the outermost base."""
    values, places = _read(path, mistakes)
    lineage = (*chain, textfile.resolved(path))
    base_name = values.pop("extends", None)
    if base_name is None:
        return values, places, path
    where = places.get(("extends",), str(path))
    if not isinstance(base_name, str):
        raise InputError(f"{where}: 'extends' takes a file name, not {brief(base_name)}")
    base = _base(path, base_name, where)
    if textfile.resolved(base) in lineage:
        loop = " -> ".join(item.name for item in (*lineage, textfile.resolved(base)))
        raise InputError(f"{where}: 'extends' goes round in a circle: {loop}")
    if len(lineage) > MAX_BASES:
        raise InputError(f"{where}: more than {MAX_BASES} files, each extending the next")
    below, below_places, outermost = _merged(base, lineage, mistakes)
    for own in ("name", "about"):
        below.pop(own, None)
        below_places.pop((own,), None)
    ours = not base_name.startswith(shipped.PREFIX)
    return _layered(below, values), {**below_places, **places}, outermost if ours else path


def _base(path: Path, name: str, where: str) -> Path:
    """The file that `extends` names: shipped, or beside the recipe, or beside what it links to."""
    if name.startswith(shipped.PREFIX):
        try:
            return shipped.path(name.removeprefix(shipped.PREFIX))
        except InputError as error:
            raise InputError(f"{where}: extends: {error}") from None
    beside = [path.parent, *([textfile.resolved(path).parent] if path.is_symlink() else [])]
    for folder in beside:
        base = folder / name
        if not textfile.is_file(base):
            continue
        if not textfile.resolved(base).is_relative_to(textfile.resolved(folder).parent):
            raise InputError(f"{where}: 'extends: {name}' leads out of the recipes' folder")
        return base
    if hidden := textfile.hidden(path.parent / name):
        raise InputError(f"{where}: extends: {hidden}")
    if textfile.exists(path.parent / name):
        raise InputError(f"{where}: 'extends: {brief(name)}' is no file")
    there = [n for folder in beside for n in recipe_files(folder) if folder / n != path]
    known = name.removesuffix(".yaml")
    if known in (shipped.BASE, *shipped.names()):
        there = [shipped.PREFIX + known]
    raise InputError(f"{where}: no file {brief(name)} to extend{nearest(name, there)}")


def _root(path: Path, outermost: Path) -> Path:
    """The folder of the outermost base, if the recipe lies below it; else the recipe's own."""
    root = Path(os.path.abspath(outermost.parent))
    return root if Path(os.path.abspath(path)).is_relative_to(root) else path.parent


def _relative(path: Path, root: Path) -> Path:
    return Path(os.path.relpath(path, root))


def _layered(below: dict[str, Value], above: dict[str, Value]) -> dict[str, Value]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _layered(old, value)
        else:
            merged[key] = value
    return merged


def _read(path: Path, mistakes: Mistakes) -> tuple[dict[str, Value], Places]:
    if not textfile.exists(path):
        near = nearest(path.name, recipe_files(path.parent))
        raise InputError(textfile.lacking(path, f"no such recipe{near}"))
    text = textfile.read(path, yaml_text.MAX_CHARACTERS)
    values, lines = yaml_text.parse(text, str(path), mistakes)
    if not lines:
        raise InputError(f"{path}:1: nothing in it; a recipe says at least 'extends: qbench:base'")
    if not isinstance(values, dict):
        line = lines[()]
        raise InputError(f"{path}:{line}: a recipe is a mapping of fields, as in 'name: int8'")
    return values, {at: f"{path}:{line}" for at, line in lines.items()}


# Overrides ---------------------------------------------------------------------------------------


def _override(
    values: dict[str, Value], places: Places, key: str, text: str, option: str | None
) -> None:
    said = option or f"--set {one_line(key, 80)}={one_line(text, 60)}"
    parts = yaml_text.whole(key, said).split(".")
    if parts[0] == "extends":
        raise InputError(f"{said}: 'extends' stands in a recipe's file; it cannot be set")
    if len(parts) > yaml_text.MAX_DEPTH:
        raise InputError(f"{said}: no field lies that deep")
    try:
        value, _ = yaml_text.parse(text, said)
    except InputError as error:
        raise InputError(str(error).replace(f"{said}:1: ", f"{said}: ", 1)) from None
    place = values
    for part in parts[:-1]:
        inner = place.get(part)
        below = dict(inner) if isinstance(inner, dict) else {}
        place[part] = below
        place = below
    place[parts[-1]] = value
    for depth in range(1, len(parts) + 1):
        places.setdefault(tuple(parts[:depth]), said)
    for at in [at for at in places if at[: len(parts)] == tuple(parts)]:
        places[at] = said
