"""The commands that decide something from records. Each only parses, calls and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qbench.cli import shared
from qbench.cli.shared import Json

Run = Annotated[Path, typer.Argument(help="A run, a folder of runs, or an archive.")]


def register(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    before: Run,
    after: Run,
    across: Annotated[
        bool, typer.Option("--across", help="Compare other hardware, prompts or workload too.")
    ] = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help='Exit code 1 where it is beyond: "latency +5% and +0.05s", "psnr -0.5".'),
    ] = None,
    margin: Annotated[
        list[str] | None, typer.Option(help="A difference that does not matter: psnr=0.5.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As Markdown, for a pull request.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What changed between two runs, and whether it is noise. Exit code 1: a regression."""
    from qbench.decisions import compare_text
    from qbench.decisions.compare import compare as compared

    made = compared(before, after, across, fail_if or (), margin or ())
    if as_json:
        print(made.model_dump_json(indent=1))
    elif markdown:
        print(compare_text.markdown(made), end="")
    else:
        shared.tell(compare_text.lines(made))
    raise SystemExit(made.exit_code)
