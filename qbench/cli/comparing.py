"""`qbench models`: the known models beside each other. Parses, calls and prints."""

from __future__ import annotations

from typing import Annotated

import typer

from qbench.cli import shared


def register(app: typer.Typer) -> None:
    app.command("models")(models_)


def models_(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Instead of all of them.")
    ] = None,
    row: Annotated[
        list[str] | None, typer.Option(help="Only rows with this in their name; may be repeated.")
    ] = None,
    json: shared.Json = False,
) -> None:
    """CogVideoX-2B, Zeroscope v2 XL and Wan 2.1 compared: what was believed, what was found."""
    from qbench import models

    table = models.chosen(models.load(), names or (), row or ())
    if json:
        print(table.model_dump_json(indent=1))
        return
    for line in models.lines(table, min(shared.console().width, models.WIDTH)):
        print(line)
