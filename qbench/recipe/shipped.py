"""The recipes that come with the package, by name: the path below the folder, without '.yaml'.

`qbench/shipped_recipes` is a link to `recipes/` in a source tree and a folder in a wheel.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from qbench import textfile
from qbench.errors import InputError, brief, nearest, shortened

FOLDER = Path(__file__).parent.parent / "shipped_recipes"
PREFIX = "qbench:"  # 'extends: qbench:int8' is the shipped recipe wherever the file lies
EXPORTED = "manifest.json"  # makes a folder one that 'qbench export' wrote
BASE = "base"  # what recipes of a folder extend; by itself none to run


def files(folder: Path = FOLDER) -> list[Path]:
    """All recipes at or below a folder, its bases left out; links are not followed.

    Folders that cannot be looked into are among them, for there may be some below: reading one
    says why.
    """
    closed: list[OSError] = []
    walk = os.walk(folder, onerror=closed.append)
    inside = (Path(place, name) for place, inner, names in walk for name in (*inner, *names))
    found = [path for path in inside if path.suffix == ".yaml" and path.stem != BASE]
    return sorted([*found, *(Path(error.filename) for error in closed)])


def recipe_files(folder: Path) -> list[str]:
    """Names of the YAML files in a folder; none where there is no such folder."""
    found = folder.glob("[!.]*.y*ml") if textfile.is_folder(folder) else ()
    return [item.name for item in found if textfile.is_file(item)]


def names() -> list[str]:
    return [_name(path) for path in files()]


def path(name: str) -> Path:
    """The file of a shipped recipe, or its base. Raises InputError with the nearest name."""
    found = FOLDER / f"{name}.yaml"
    if name in (BASE, *names()):
        return found
    raise InputError(f"no recipe {brief(name)} is shipped{nearest(name, names())}")


def find(word: str) -> tuple[list[Path], list[str]]:
    """The recipe or the recipes that a word on the command line stands for.

    And a line for each place where nobody may look, so that this was found elsewhere.

    A file, a folder that `qbench export` wrote, a folder of either (its base left out), or the name
    of a shipped recipe or folder: `int8`, `attention/fp8`, `cache`, or `recipes` for those at the
    top. What exists wins over what is shipped, a recipe over a folder of its name. Raises
    InputError with the nearest name.
    """
    given = textfile.expanded(word)
    if textfile.is_file(given) or is_exported(given):
        return [given], []
    is_folder = textfile.is_folder(given)
    inside, passed_over = _inside(given) if is_folder else ([], [])
    if inside:
        return inside, passed_over
    if hidden := textfile.hidden(given):
        passed_over = [hidden]
    name = word.strip("/")
    if name in names() and not word.endswith("/"):
        return [path(name)], passed_over
    folder = FOLDER if name == "recipes" else FOLDER / name
    if name in _folders() and (recipes := _inside(folder)[0]):
        return recipes, passed_over
    if is_folder:
        left_out = (f"left out: {line}" for line in passed_over)
        raise InputError(f"{word}: no recipes (*.yaml) in this folder", *left_out)
    if passed_over:
        raise InputError(*passed_over)
    raise InputError(f"{shortened(word)}: no such recipe{_near(given, name)}")


def is_exported(folder: Path) -> bool:
    """Whether `qbench export` wrote this folder."""
    return textfile.is_file(folder / EXPORTED)


def copy(target: Path) -> list[Path]:
    """Copy the shipped recipes to a new folder, to be changed there; the files that it holds."""
    if textfile.exists(target) and not (textfile.is_folder(target) and not any(target.iterdir())):
        raise InputError(f"{target}: is there already; name a new folder")
    partial = target.absolute().with_name(f".{target.absolute().name}.{os.getpid()}.partial")
    try:
        for path in FOLDER.rglob("*.yaml"):
            copied = partial / path.relative_to(FOLDER)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copied)
        target.mkdir(parents=True, exist_ok=True)  # it may be there, and empty
        for copied in partial.iterdir():
            os.rename(copied, target / copied.name)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return files(target)


def _name(file: Path) -> str:
    return file.relative_to(FOLDER).with_suffix("").as_posix()


def _inside(folder: Path) -> tuple[list[Path], list[str]]:
    """The recipes in a folder, and a line for each folder in it that may be one and is closed."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None
    recipes = [path for path in entries if path.suffix == ".yaml" or is_exported(path)]
    others = [path for path in entries if path.suffix != ".yaml"]
    closed = [textfile.closed(path) for path in others if textfile.is_closed(path / EXPORTED)]
    return [path for path in recipes if path.stem != BASE], closed


def _folders() -> set[str]:
    return {"recipes", *(name.rpartition("/")[0] for name in names() if "/" in name)}


def _near(given: Path, name: str) -> str:
    """The nearest word: a file where one was named, else a shipped recipe."""
    if given.suffix in (".yaml", ".yml") and (there := recipe_files(given.parent)):
        return nearest(given.name, there)
    return nearest(name.removesuffix(".yaml").removeprefix("recipes/"), [*names(), *_folders()])
