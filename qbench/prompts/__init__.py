"""Prompt sets: shipped ones by name, versioned by it, a text file of the user's, or VBench's.

`vbench` is all prompts of the installed package of that name, `vbench/human_action` one dimension.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.errors import InputError, nearest

if TYPE_CHECKING:
    from qbench.pipelines.specs import Model
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
    """What a recipe's `prompts` section means: its set, or the model's own where it names none."""
    return load(wanted.set or model.prompts, wanted.count)


def load(name: str, count: int | None = None) -> PromptSet:
    """The first `count` of a set or a file. One prompt a line; '#' starts a comment."""
    if name.partition("/")[0] == VBENCH and not Path(name).is_file():
        return _first(count, name, _vbench(name.partition("/")[2]))
    path = FOLDER / f"{name}.txt" if name in names() else Path(name).expanduser()
    if not path.is_file():
        raise InputError(
            f"prompts {name!r}: neither a shipped set nor a file{nearest(name, names())}"
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise InputError(f"prompts {path}: no prompt in it")
    return _first(count, path.stem, prompts)


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
