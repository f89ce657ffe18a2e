"""`qbench export` and `qbench verify`: the winner as files, with proof."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qbench import textfile, units
from qbench.cli import shared
from qbench.cli.shared import Device, Json, Model, Set
from qbench.errors import InputError, one_line


def register(app: typer.Typer) -> None:
    app.command()(export)
    app.command()(verify)


def export(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe, or a file.")],
    out: Annotated[Path, shared.option(help="A new folder.")],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="diffusers, onnx, tensorrt, aoti or qbench; the recipe's own."
        ),
    ] = None,
    set_: Set = [],  # noqa: B006  (typer reads it as data)
    model: Model = None,
    device: Device = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at --out.")] = False,
    denoiser_only: Annotated[
        bool,
        typer.Option("--denoiser-only", help="A diffusers checkpoint without the other parts."),
    ] = False,
    videos: Annotated[
        int, typer.Option(min=0, help="Whole videos, compared with those of the variant in Python.")
    ] = 4,
) -> None:
    """Write a variant for a deployment, with proof that it computes the same."""
    shared.quiet_libraries()
    from qbench import proof
    from qbench.engines import export as engines
    from qbench.engines import formats

    console = shared.console()
    planned = shared.planned([recipe], set_, model, device, None)
    chosen = shared.the_one(recipe, planned, "an export").recipe
    form = formats.implied(chosen.variant) if format_ is None else formats.named(format_)
    try:
        made = engines.export(
            chosen,
            out,
            form,
            force,
            tell=lambda line: shared.say(console, line),
            check=lambda: proof.check_machine(chosen, form),
            suits=lambda video, run: proof.check_model(chosen, form, video, run),
            prove=lambda folder: proof.prove(folder, chosen, videos),
            denoiser_only=denoiser_only,
        )
    except engines.Differs as error:
        print(f"qbench: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    written = made.manifest
    size = units.bytes_text(written.size_bytes)
    shared.say(console, f"engine: {made.folder} ({written.format}, {size})")
    shared.say(console, f"manifest SHA-256, for 'qbench verify --expect': {made.sha256}")


def verify(
    folder: Annotated[Path, shared.argument(help="A folder that 'qbench export' wrote.")],
    expect: Annotated[
        str | None, typer.Option(help="SHA-256 of the manifest, as the export printed it.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run machine code that came from elsewhere.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check an exported engine where it will run. Exit code 1: wrong; 2: cannot be checked here."""
    if not textfile.is_folder(folder):
        raise InputError(textfile.lacking(folder, "no such folder"))
    shared.quiet_libraries()
    from qbench.engines.verify import verify as verified

    found = verified(folder, trust, expect)
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        for check in found.checks:
            print(f"{check.result:<10} {check.name:<10} {one_line(check.said)}")
    raise SystemExit(found.exit_code)
