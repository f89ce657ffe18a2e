"""What several commands have in common: options, places to read and write, printing."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench import textfile
from qbench.errors import InputError, Mistakes, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from qbench.results.ranking import Ranking
    from qbench.results.record import Record
    from qbench.run.plan import Planned, Vouched

RESULTS = Path("results/runs")

# Of paths. A closed one would be told by typer, in five lines; what opens it needs one.
argument = functools.partial(typer.Argument, readable=False)
option = functools.partial(typer.Option, readable=False)

Places = Annotated[list[Path] | None, argument(help="Records, or folders of them.")]
Set = Annotated[list[str], typer.Option("--set", help="Override a field: variant.dtype=bf16.")]
Model = Annotated[str | None, typer.Option(help="Known name, hub id or folder.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


def writable(folder: Path) -> int:
    """Refuse a folder that cannot be made or written to; else the bytes that are free there."""
    import shutil

    return shutil.disk_usage(textfile.makeable(folder, f"--out {folder}")).free


def planned(
    words: list[str],
    set_: list[str],
    model: str | None,
    device: str | None,
    prompts: str | None,
    trust_torchscript: bool = False,
    vouched: Vouched | None = None,
) -> list[Planned]:
    """The recipes that these words stand for, changed as the options say, and checked."""
    from qbench.recipe import files, shipped
    from qbench.run.plan import NOBODY, plan

    shortcuts = {"model": model, "device": device, "prompts.set": prompts}
    given = {key: value for key, value in shortcuts.items() if value is not None}
    changes = files.overrides(set_) | {key: files.quoted(value) for key, value in given.items()}
    options = {
        key: f"--{key.partition('.')[0]} {one_line(value, 80) or repr(value)}"
        for key, value in given.items()
    }
    mistakes = Mistakes()
    found: list[Path] = []
    left_out: list[str] = []
    for word in words:
        with mistakes.kept():
            recipes, passed_over = shipped.find(word)
            found += recipes
            left_out += passed_over
    mistakes.tell()
    if left_out:
        told_left_out(left_out)  # which loads what reads records
    paths = [path for path in found if path.stem != shipped.BASE]
    if not paths:
        raise InputError(f"{found[0]}: is what other recipes extend, and none to run by itself")
    made = plan(paths, changes, options, trust_torchscript, vouched or NOBODY)
    for item in made:
        for note in item.notes:
            print(f"qbench: note: {one_line(note)}", file=sys.stderr)
    return made


def the_one(recipe: str, planned: list[Planned], use: str) -> Planned:
    """The single recipe that a command is of; references that come with it do not count."""
    asked = [item for item in planned if not item.implied]
    if len(asked) != 1:
        raise InputError(f"{recipe}: {len(asked)} recipes; {use} is of one")
    return asked[0]


def quiet_libraries() -> None:
    """Have libraries tell of errors alone, in a command that calls them in its own process.

    Before any of them is loaded: their warnings and bars would stand among the command's lines.
    """
    import logging
    import os
    import warnings

    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore", FutureWarning)  # for whoever calls what is to change
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def records(results: list[Path] | None) -> tuple[list[tuple[Path, Record]], list[str]]:
    """All records at or below the places named, and a line for each that cannot be read.

    Raises InputError where there is none, or none that can be read.
    """
    from qbench.decisions.places import read

    found = read(results or [RESULTS])
    gc.freeze()  # records are read once and held to the end: nothing of them is garbage
    gc.set_threshold(100_000, 20, 20)  # nor is most of what is made of them
    return found


def told_left_out(unreadable: Sequence[str]) -> None:
    """Records or recipes that could not be read: what follows is without them."""
    from qbench.decisions.places import left_out

    for line in left_out(unreadable):
        print(f"qbench: {one_line(line)}", file=sys.stderr)


def console() -> Console:
    """A terminal as it is; elsewhere (a file, a pipe) wide enough for the whole table."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=160)


def say(console: Console, text: str, style: str = "") -> None:
    """One line as it is: neither wrapped, nor highlighted, nor taken for markup."""
    from rich.text import Text

    console.print(Text(one_line(text), style=style), soft_wrap=True)


def hardware() -> dict[str, object]:
    """This machine's, with its GPU where it has one."""
    from qbench.run.machines import read_environment

    return read_environment("auto").hardware()


def tell(lines: list[str]) -> None:
    """Plain lines, whose indentation stays; what comes from records is made harmless."""
    for line in lines:
        print(" " * (len(line) - len(line.lstrip())) + one_line(line))


def print_ranking(console: Console, ranking: Ranking) -> None:
    """The ranking's table on the terminal, remarks below."""
    from rich.table import Table
    from rich.text import Text

    from qbench.report import tables

    rows = tables.rows(ranking, 60)
    columns = tables.columns(rows, console.width)
    table = Table(box=None, padding=(0, 1, 0, 0))
    for i in columns:
        table.add_column(tables.HEADERS[i], no_wrap=True)
    for row in rows:
        style = {"ok": "", "invalid": "strike red", "skipped": "dim"}.get(row.status, "red")
        table.add_row(*(Text(one_line(cell), style=style) for cell in row.shown(columns)))
    say(console, ranking.title(), "italic")  # the table's own would wrap to the table's width
    # A line longer than the terminal is the terminal's to wrap: no cell is broken into words.
    shown, endless = console.width, console.options.update(width=10_000)
    console.width = max(shown, console.measure(table, options=endless).maximum)
    console.print(table)
    console.width = shown
    for row in rows:
        if row.remark:
            say(console, f"  {row.cells[0]} {row.status}: {row.remark}")
    for note in tables.remarks(ranking):
        say(console, f"  {note}")
