"""Prompt sets: shipped ones by name, versioned by it, a file of the user's, or VBench's.

`vbench` is all prompts of the installed package of that name, `vbench/human_action` one dimension.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench import textfile
from qbench.errors import InputError, brief, nearest
from qbench.prompts.files import read
from qbench.recipe.schema import SET_COUNT

if TYPE_CHECKING:
    from qbench.pipelines.known import Model
    from qbench.recipe.schema import Prompts

FOLDER = Path(__file__).parent
VBENCH = "vbench"


@dataclass(frozen=True)
class PromptSet:
    """Prompts in their order, and the digest that identifies them."""

    name: str
    prompts: tuple[str, ...]

    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()[:12]


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def chosen(wanted: Prompts, model: Model) -> PromptSet:
    """What a recipe's `prompts` section means: its set, or the model's own where it names none.

    Without a count: the first twelve of a set, all of a file.
    """
    name = wanted.set or model.prompts
    count = SET_COUNT if wanted.count is None and is_set(name) else wanted.count
    return load(name, count)


def is_set(name: str) -> bool:
    """Whether this names a set; a file may be called `vbench/...`, and then is meant."""
    if name in names():
        return True
    return name.partition("/")[0] == VBENCH and not textfile.is_file(Path(name))


def load(name: str, count: int | None = None) -> PromptSet:
    """The first `count` of a set or a file; see `read` for what a file may be.

    Raises InputError where there is no such set or file, and where it has too few prompts.
    """
    if name in names():
        return _first(count, name, read(FOLDER / f"{name}.txt"))
    if is_set(name):
        return _first(count, name, _vbench(name.partition("/")[2]))
    path = textfile.expanded(name) if name.startswith("~/") else Path(name)
    if not textfile.exists(path) and not textfile.is_closed(path):
        raise InputError(
            f"prompts {brief(name)}: neither a shipped set nor a file{nearest(name, names())}"
        )
    return _first(count, path.stem, read(path))


def _first(count: int | None, name: str, prompts: tuple[str, ...]) -> PromptSet:
    if count is not None and count > len(prompts):
        raise InputError(
            f"prompts.count: {count} asked for, but {name} has {len(prompts)}; "
            f"the most is {len(prompts)}"
        )
    return PromptSet(name=name, prompts=prompts[:count])


def _vbench(dimension: str) -> tuple[str, ...]:
    """Prompts of one dimension, or all; each once. The package is read and never imported."""
    found = importlib.util.find_spec(VBENCH)
    folders = list(found.submodule_search_locations or []) if found else []
    files = [Path(folder) / "VBench_full_info.json" for folder in folders]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise InputError("prompts 'vbench': not installed: pip install --no-deps vbench")
    entries = json.loads(path.read_text(encoding="utf-8"))
    known = {name for entry in entries for name in entry["dimension"]}
    if dimension and dimension not in known:
        raise InputError(
            f"prompts 'vbench/{dimension}': no such dimension{nearest(dimension, known)}"
        )
    kept = [e["prompt_en"] for e in entries if not dimension or dimension in e["dimension"]]
    return tuple(dict.fromkeys(kept))
