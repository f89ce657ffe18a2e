"""The commands that decide something from records. Each only parses, calls and prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qbench import textfile
from qbench.cli import shared
from qbench.cli.shared import Json, Places
from qbench.errors import InputError

Run = Annotated[Path, shared.argument(help="A run, a folder of runs, or an archive.")]


def register(app: typer.Typer) -> None:
    for command in (compare, pick, history):
        app.command()(command)
    app.command("import")(import_)


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


def pick(
    records: Annotated[
        list[Path] | None,
        shared.option(help="Answer for the machine of these, not for this one's own runs."),
    ] = None,
    evidence: Annotated[
        list[Path] | None,
        shared.option(help="Further records: cards simulated, verdicts of another model."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Where records are of several.")] = None,
    at: Annotated[
        str | None,
        typer.Option(help="Of several rankings: words of its title, 49x256x256 or '4 steps'."),
    ] = None,
    vram: Annotated[str | None, typer.Option(help="The card: 16GB.")] = None,
    keep_free: Annotated[
        str | None, typer.Option(help="Of the card, for what was not measured: 9GiB.")
    ] = None,
    max_latency: Annotated[str | None, typer.Option(help="Of a video: 60s.")] = None,
    min_speedup: Annotated[float | None, typer.Option(help="Over the reference: 1.5.")] = None,
    quality: Annotated[
        str,
        typer.Option(help="The worst that will do: indistinguishable, drift, degraded ... any."),
    ] = "drift",
    objective: Annotated[str, typer.Option(help="latency, memory or energy.")] = "latency",
    accept_unsettled: Annotated[
        bool,
        typer.Option("--accept-unsettled", help="Take verdicts with a '?', and too few samples."),
    ] = False,
    as_json: Json = False,
) -> None:
    """The recipe that meets your limits, why, and what it gives up. Exit code 1: none does."""
    from qbench.decisions import evidence as at_hand
    from qbench.decisions import pick as picking
    from qbench.decisions import pick_text
    from qbench.results import store

    question = picking.asked(
        vram, keep_free, max_latency, min_speedup, quality, objective, accept_unsettled
    )
    here = None
    if not records:
        store.find([shared.RESULTS])  # what is missing is said before the machine is asked
        here = shared.hardware()
    found = at_hand.evidence(records or [shared.RESULTS], evidence or [], model, here, at)
    shared.told_left_out(found.unreadable)
    made = picking.pick(question, found)
    if as_json:
        print(made.model_dump_json(indent=1))
    else:
        shared.tell(pick_text.lines(made))
    raise SystemExit(0 if made.pick else 1)


def history(
    results: Places = None,
    recipe: Annotated[str | None, typer.Option(help="Only this one.")] = None,
    figure: Annotated[
        str | None,
        typer.Option(help="latency, step, first_call, speedup, energy, peak, size, or a metric."),
    ] = None,
    out: Annotated[Path | None, shared.option(help="A PNG for the chart.")] = None,
    as_json: Json = False,
) -> None:
    """A recipe's records over time on one machine: where they change, and what changed there."""
    from qbench.decisions import history_text
    from qbench.decisions.history import history as followed

    if out is not None:
        if out.suffix != ".png" or textfile.is_folder(out):
            raise InputError(f"--out {out}: a file, as in {out.stem or 'x'}.png")
        shared.writable(out.parent)
    made = followed(results or [shared.RESULTS], recipe, figure)
    if as_json:
        print(made.model_dump_json(indent=1))
    else:
        shared.tell(history_text.lines(made))
    if out is not None:
        with textfile.writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            print(f"chart: {history_text.draw(made, out)}", file=sys.stderr)


def import_(
    other: Annotated[list[Path], shared.argument(help="Records of another machine.")],
    out: Annotated[Path, shared.option(help="Folder of your own runs.")] = shared.RESULTS,
    as_json: Json = False,
) -> None:
    """Check records of another machine, and copy them beside your own. Exit code 1: any refused."""
    from qbench.decisions import importing

    shared.writable(out)
    made = importing.take_in(other, out)
    if as_json:
        print(made.model_dump_json(indent=1))
    else:
        shared.tell(importing.lines(made))
    raise SystemExit(1 if made.refused else 0)
