"""Prompt sets: shipped ones by name, versioned by that name, or a text file of the user's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.errors import InputError, nearest

if TYPE_CHECKING:
    from qbench.models import Model
    from qbench.recipe import Prompts

FOLDER = Path(__file__).parent


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
    path = FOLDER / f"{name}.txt" if name in names() else Path(name).expanduser()
    if not path.is_file():
        raise InputError(
            f"prompts {name!r}: neither a shipped set nor a file{nearest(name, names())}"
        )
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise InputError(f"prompts {path}: no prompt in it")
    if count is not None and count > len(prompts):
        raise InputError(
            f"prompts.count: {count} asked for, but {path.name} has {len(prompts)}; "
            f"the most is {len(prompts)}"
        )
    return PromptSet(name=path.stem, prompts=prompts[:count])
