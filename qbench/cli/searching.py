"""`qbench search`: a scheme for every layer within a budget. Parses, calls and prints."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from qbench import textfile
from qbench.cli import shared
from qbench.cli.shared import Device, Model, Set
from qbench.errors import InputError, nearest

# From best to worst; a confirmation has to come to the one asked for, or a better one.
VERDICTS = ("indistinguishable", "drift", "unverified", "degraded", "broken")


def register(app: typer.Typer) -> None:
    app.command()(search)


def search(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe, or a file, that quantizes.")],
    budget: Annotated[
        str,
        typer.Option(
            help="bytes or latency: those of the recipe's own scheme everywhere; or an amount, "
            "bytes=9.5M, bytes=80%, latency=90%."
        ),
    ] = "bytes",
    quality: Annotated[
        str | None,
        typer.Option(
            help="Confirm by whole videos: the worst verdict that will do, such as drift."
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--every",
            help="Try every scheme at every layer; else the recipe's own, and the others by what "
            "they do to the layer's output, which tells less where channels are outliers.",
        ),
    ] = False,
    out: Annotated[Path, shared.option(help="Folder for recipe, figures and chart.")] = Path(
        "search"
    ),
    set_: Set = [],  # noqa: B006  (typer reads it as data)
    model: Model = None,
    device: Device = None,
) -> None:
    """Choose a scheme for each layer: least error within a budget. Ended, it goes on.

    Exit code 1: the videos did not come to the verdict that was asked for.
    """
    shared.quiet_libraries()
    from qbench.search import mixed

    if quality is not None and quality not in VERDICTS:
        raise InputError(f"--quality {quality}: no such verdict{nearest(quality, VERDICTS)}")
    amount = mixed.budget_of(budget)
    planned = shared.planned([recipe], set_, model, device, None)
    chosen = shared.the_one(recipe, planned, "a search").recipe
    shared.writable(out)
    console = shared.console()
    tell = functools.partial(shared.say, console)
    with textfile.writing(out):
        found = mixed.search(chosen, amount, out, tell, every)
        for item in planned:
            if item.implied:
                mixed.write_reference(item.recipe, out)
    for line in mixed.lines(found):
        shared.say(console, line)
    shared.say(console, f"recipe: {out / found.recipe}; chart: {out / found.chart}")
    if quality is not None:
        _confirm(out, found.recipe, quality, device)


def _confirm(out: Path, name: str, quality: str, device: str | None) -> None:
    """Whole videos of the mixed recipe beside its reference, and their verdict."""
    from qbench.progress import Progress
    from qbench.results import store
    from qbench.results.ranking import rankings
    from qbench.run import sweep
    from qbench.run.floors import LIMIT_S

    console = shared.console()
    planned = shared.planned([str(out / name)], [], None, device, None)
    swept = sweep.run(planned, out / "runs", Progress(console, False), floors_s=LIMIT_S)
    found = rankings([(path / store.FILE, record) for path, record in swept.finished])
    mine = [item.recipe.name for item in planned if not item.implied]
    said: str | None = None
    for ranking in found:
        shared.print_ranking(console, ranking)
        for record in ranking.records:
            if record.recipe.name in mine and record.run in ranking.judged:
                said = ranking.judged[record.run].verdict
    if said is None or VERDICTS.index(said) > VERDICTS.index(quality):
        shared.say(console, f"not confirmed: {said or 'no verdict'}, {quality} asked for")
        raise SystemExit(1)
    shared.say(console, f"confirmed by whole videos: {said}")
