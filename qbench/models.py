"""The known models beside each other: what was believed of them, and what was found.

`models.json` ships with the package. `python -m scripts.figures --write` makes it, and
docs/models.md, from published records, configurations and the installed diffusers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from qbench.errors import InputError, nearest

FILE = Path(__file__).with_suffix(".json")
WIDTH = 80
Basis = Literal["measured", "computed", "sourced", "checked", "not measured"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Found(Strict):
    """One finding.

    basis: how it is known; `checked` is by looking into the installed libraries.
    source: a folder below results/published, or an address.
    command: what measures it, where it was not.
    """

    text: str
    basis: Basis
    source: str = ""
    command: str = ""


class Cell(Strict):
    """Of one model: the answer in a few words, and what it rests on."""

    short: str
    found: tuple[Found, ...] = ()


class Row(Strict):
    """One question. `believed` is what was held before anything was measured."""

    name: str
    believed: str = ""
    cells: dict[str, Cell]
    note: str = ""


class Comparison(Strict):
    """The whole table; `models` has the title of each by its known name."""

    models: dict[str, str]
    basis: str
    rows: tuple[Row, ...]


def load() -> Comparison:
    return Comparison.model_validate_json(FILE.read_text(encoding="utf-8"))


def chosen(whole: Comparison, models: Sequence[str] = (), rows: Sequence[str] = ()) -> Comparison:
    """Of these models and of rows in whose name one of the words is. Raises InputError."""
    for name in models:
        if name not in whole.models:
            raise InputError(f"model {name}: not compared{nearest(name, whole.models)}")
    names = [row.name for row in whole.rows]
    for word in rows:
        if not any(word.lower() in name.lower() for name in names):
            raise InputError(f"--row {word}: no such row; there are {', '.join(names)}")
    kept = [name for name in whole.models if not models or name in models]
    return Comparison(
        models={name: whole.models[name] for name in kept},
        basis=whole.basis,
        rows=tuple(
            row.model_copy(update={"cells": {n: row.cells[n] for n in kept if n in row.cells}})
            for row in whole.rows
            if not rows or any(word.lower() in row.name.lower() for word in rows)
        ),
    )


def lines(table: Comparison, width: int = WIDTH) -> Iterator[str]:
    """For a terminal of so many columns."""

    def wrapped(text: str, indent: str, later: str) -> list[str]:
        return textwrap.wrap(
            text, width, initial_indent=indent, subsequent_indent=later,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip

    yield from wrapped(table.basis, "", "")
    for row in table.rows:
        yield ""
        yield row.name.upper()
        if row.believed:
            yield from wrapped(f"believed: {row.believed}", "  ", "    ")
        for name, cell in row.cells.items():
            yield from wrapped(f"{table.models[name]}: {cell.short}", "  ", "    ")
            for one in cell.found:
                yield from wrapped(f"- {said(one)}", "    ", "      ")
                if one.command:
                    yield from _command(one.command, width, " " * 8)
        if row.note:
            yield from wrapped(row.note, "  ", "  ")


def _command(command: str, width: int, indent: str) -> Iterator[str]:
    """A command on lines that a shell takes as one."""
    parts = textwrap.wrap(
        command, width - len(indent) - 4, break_long_words=False, break_on_hyphens=False
    )
    for number, part in enumerate(parts):
        end = "" if part is parts[-1] else " \\"
        yield f"{indent}{'' if number == 0 else '  '}{part}{end}"


def said(one: Found) -> str:
    """A finding with how it is known, in one line."""
    known = ", ".join(filter(None, [one.basis, one.source]))
    return f"{one.text} ({known})"
