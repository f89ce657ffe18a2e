from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import RECIPES, ROOT, qbench

from qbench.recipe.choices import Attention

HEAVY = {"torch", "diffusers", "transformers", "torchao", "scipy", "pandas", "matplotlib"}


def _imported(*words: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """The command in a new Python, and what that had imported when it ended."""
    code = (
        "import sys\n"
        "from qbench.__main__ import main\n"
        "try:\n    main()\n"
        "finally:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    return done, set(done.stderr.splitlines()[-1].split())


def test_help_loads_nothing_heavy() -> None:
    """What makes `qbench --help` slow is an import of torch or its like, so none may happen."""
    done, imported = _imported("--help")
    assert done.returncode == 0, done.stderr
    assert "validate" in done.stdout
    assert not imported & (HEAVY | {"numpy", "pydantic"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("validate", "recipes"), ""),
        (("validate", "int8", "--model=cogvideox-2b"), ""),
        (("validate", "int8", "--model=zeroscope-v2-xl"), ""),
        (("validate", "int8", "--model=wan2.1-1.3b"), ""),
        (("run", "int8", "--set=generation.height=65"), "the nearest is 64"),
        (("search", "int8", "--set=generation.height=65"), "the nearest is 64"),
        (("export", "int8", "--out=x", "--set=generation.frames=18"), "to ask for is 17"),
    ],
)
def test_a_recipe_is_checked_without_torch(words: tuple[str, ...], said: str) -> None:
    """Whether its model can make the size included: torch alone would take longer than all else."""
    done, imported = _imported(*words)
    assert done.returncode == (2 if said else 0), done.stderr
    assert said in done.stderr
    assert not imported & HEAVY


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch describes the GPU of this machine")
@pytest.mark.parametrize("words", [("ls",), ("ls", "--why"), ("ls", "recipes/parallel")])
def test_a_machine_without_a_gpu_says_what_it_has_without_torch(words: tuple[str, ...]) -> None:
    done, imported = _imported(*words)
    assert done.returncode == 0, done.stderr
    assert not imported & HEAVY


def test_validate_names_every_recipe() -> None:
    done = qbench("validate", "recipes")
    assert done.returncode == 0, done.stderr
    assert "int8-dynamic: ok" in done.stdout
    assert "base" not in done.stdout


def test_a_folder_that_is_not_there_is_no_wrong_engine() -> None:
    done = qbench("verify", "engines/nowhere")
    assert (done.returncode, done.stderr) == (2, "qbench: engines/nowhere: no such folder\n")


def test_ls_says_what_is_not_here_and_why() -> None:
    done = qbench("ls")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert lines["fp32"].split()[0] == "+"
    assert "GPU" in lines["tensorrt"]
    for name in ("tiny-cogvideox", "tiny-zeroscope"):
        assert "ships with the package" in lines[name]
    assert "dB" in lines["psnr"]
    assert "256 prompts" in lines["world-v1"]


def test_doctor_shows_machine_versions_and_reasons() -> None:
    done = qbench("doctor", "--device=cpu")
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout
    assert "TensorRT needs an NVIDIA GPU" in done.stdout
    assert "threads" in done.stdout
    _, _, here = done.stdout.partition("what can run on this machine")
    assert "CUDA graphs and caches" not in here  # no machine has what that lacks
    assert "heads of 64 or 128" not in here
    attention = here.partition("\n  attention\n")[2].partition("\n  cache\n")[0]
    runs, *lacking = attention.splitlines()
    assert runs == "    + math, flash, fp8-reference"
    assert "    - efficient, cudnn: this attention kernel needs an NVIDIA GPU" in attention
    told = {name for line in lacking for name in line[6:].partition(":")[0].split(", ")}
    assert told == {*get_args(Attention)} - {"auto", "math", "flash", "fp8-reference"}
    # In FP32; of BF16 it has no GEMMs on a CPU.
    assert "    + compile, engine onnxruntime, engine aoti\n" in here


def test_ls_why_tells_what_is_missing_here_from_what_no_machine_can() -> None:
    done = qbench("ls", "--why")
    assert done.returncode == 0, done.stderr
    _, here, rest = done.stdout.partition("what recipes need of this machine")
    here, _, rest = rest.partition("choices that exclude each other")
    clashes, _, rest = rest.partition("what some models")
    by_model, _, _ = rest.partition("\nmodels")
    for lines, marks, one in (
        (here, "+-", "torchao"),
        (clashes, "x", "x CUDA graphs and caches: a cache decides on the host"),
        (by_model, "?", "? FP8 attention's heads: qbench's FP8 attention takes heads of 64"),
    ):
        assert one in lines
        assert {line[2] for line in lines.splitlines()[1:]} == set(marks)
    recipes = [line for line in done.stdout.splitlines() if "/sparse-0.1" in line]
    assert len({line.index(" BF16 ") for line in recipes if " BF16 " in line}) == 1


def test_a_narrow_table_breaks_no_cell_and_names_are_no_markup() -> None:
    import io

    from rich.console import Console

    from qbench.cli import shared
    from qbench.report import tables
    from qbench.results import store
    from qbench.results.ranking import rankings

    published = ROOT / "results" / "published" / "amd-epyc-2t"
    found, _ = store.read_all(store.find([published]))
    hostile = [
        (path, record.model_copy(update={"recipe": record.recipe.model_copy(update=odd)}))
        for path, record in found
        for odd in [{"model": "/models/x[/y]/" + "deep/" * 40, "about": "[red]"}]
    ]
    for width in (30, 80):
        file = io.StringIO()
        shared.print_ranking(Console(file=file, width=width), rankings(hostile)[0])
        title, heads, *rows = file.getvalue().splitlines()
        assert "/models/x[/y]/deep" in title
        assert heads.split()[0] == "variant"
        for cells in (row.cells for row in tables.rows(rankings(hostile)[0])):
            # The name and the verdict whole, on one line.
            verdict = cells[tables.HEADERS.index("verdict")]
            assert any(row.startswith(cells[0]) and row.rstrip().endswith(verdict) for row in rows)


def test_version_and_devices() -> None:
    from qbench import __version__

    assert qbench("--version").stdout == f"qbench {__version__}\n"
    for words in (("doctor", "--device=tpu"), ("validate", "int8", "--device=tpu")):
        done = qbench(*words)
        assert done.returncode == 2
        assert done.stderr.startswith("qbench: --device tpu: ")
        assert "did you mean 'cpu'?" in done.stderr


def test_recipes_go_by_name_from_anywhere(tmp_path: Path) -> None:
    done = qbench("validate", "int8", "attention/fp8", "--prompts=world-v1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["int8", "attention/fp8"]
    named = [str(path) for path in sorted(RECIPES.glob("*.yaml"))]
    assert "base" not in qbench("validate", *named).stdout
    assert qbench("validate", str(RECIPES / "base.yaml")).returncode == 2


def test_folders_that_cannot_be_written_are_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words in (["run", "int8"], ["report", "results/published/amd-epyc-2t"]):
        done = qbench(*words, f"--out={tmp_path / 'file' / 'runs'}")
        assert done.returncode == 2
        assert "is a file, not a folder" in done.stderr


@pytest.mark.parametrize("place", ["nowhere", "nowhere/runs", "x" * 256, f"new/{'x' * 256}"])
def test_a_folder_that_cannot_be_made_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """What such a link names may be a disk that is not mounted: nothing is written elsewhere."""
    monkeypatch.chdir(tmp_path)
    Path("nowhere").symlink_to("unmounted")
    archive = str(ROOT / "results/published/amd-epyc-2t/records.jsonl.xz")
    for words in (
        ["run", "int8"], ["export", "int8"], ["search", "int8"], ["import", archive],
        ["report", archive], ["explain", f"{archive}/fp32-3c5f39da"],
    ):  # fmt: skip
        done = qbench(*words, f"--out={place}", cwd=tmp_path)
        assert done.returncode == 2, (words, done.stderr)
        (line,) = done.stderr.splitlines()
        assert line.endswith(
            ("a link that leads nowhere", "is not a folder", "a name of more than 255 bytes")
        )
    assert [path.name for path in tmp_path.iterdir()] == ["nowhere"]


def test_no_path_is_refused_by_the_parser() -> None:
    """Whose five lines would come before the one that a closed place is told in."""
    import typing

    from qbench.cli import app

    commands = [*app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        commands += group.typer_instance.registered_commands
    found = 0
    for command in commands:
        assert command.callback is not None
        hints = typing.get_type_hints(command.callback, include_extras=True)
        for name, hint in hints.items():
            if "Path" in str(typing.get_args(hint)[:1]):
                (info,) = hint.__metadata__
                assert not info.readable, (command.callback.__name__, name)
                found += 1
    assert found > 10


def test_an_empty_option_is_shown_as_what_it_is() -> None:
    done = qbench("validate", "int8", "--prompts=")
    assert done.returncode == 2
    assert done.stderr.startswith("qbench: --prompts '': prompts.set: '' names nothing")
    assert len(done.stderr.splitlines()) == 1
