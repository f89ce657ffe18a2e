"""Names, paths and reasons reach the terminal as they are: never as markup, never as escapes."""

from __future__ import annotations

import io
from pathlib import Path

from conftest import RECIPES, ROOT, qbench
from rich.console import Console

from qbench import listing
from qbench.errors import one_line
from qbench.progress import Progress
from qbench.recipe.files import load
from qbench.results import store
from qbench.results.record import Record
from qbench.run import folders

HOSTILE = "x[/y] [red] \x1b[31m $\\frac$ \u202e"


def test_one_line_keeps_letters_and_shows_controls() -> None:
    assert one_line("a\n b\t[/c]") == "a b [/c]"
    assert one_line("Bär 熊 مرحبا") == "Bär 熊 مرحبا"
    assert one_line("a\x1b[31m\x07\u202e") == "a\\x1b[31m\\x07\\u202e"
    assert len(one_line("x" * 10_000)) == 2000


def test_progress_shows_hostile_reasons_as_they_are(tmp_path: Path) -> None:
    published = ROOT / "results" / "published" / "amd-epyc-2t"
    found, _ = store.read_all(store.find([published]))
    record = found[0][1].model_copy(update={"status": "failed", "reason": HOSTILE})
    for terminal in (False, True):
        file = io.StringIO()
        progress = Progress(Console(file=file, force_terminal=terminal, width=300, no_color=True))
        progress.begin(record.recipe, 1, 1)
        progress.end(record, _left(record, tmp_path / "x[/y]"), fresh=True)
        text = file.getvalue()
        assert "x[/y] [red] \\x1b[31m $\\frac$ \\u202e" in text
        assert "x[/y]/log.txt" in text
        assert "\x1b[31m" not in text


def _left(record: Record, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    store.write(record, folder)
    (folder / folders.LOG).touch()
    return folder


def test_the_log_that_progress_names_is_there_and_that_runs_own(tmp_path: Path) -> None:
    found, _ = store.read_all(store.find([ROOT / "results" / "published" / "amd-epyc-2t"]))
    complete = found[0][1]
    later = complete.model_copy(update={"run": "later", "status": "crashed", "reason": "why"})
    stopped = later.model_copy(update={"status": "interrupted"})

    def said(record: Record, folder: Path) -> str:
        file = io.StringIO()
        progress = Progress(Console(file=file, width=300))
        progress.begin(record.recipe, 1, 1)
        progress.end(record, folder, fresh=True)
        return file.getvalue().splitlines()[-1]

    folder = _left(later, tmp_path / "first")
    assert said(later, folder).endswith(f"log: {folder / 'log.txt'})")
    (folder / folders.LOG).unlink()  # lost with its node
    assert said(later, folder).endswith(f"(stage {later.stage})")
    folder = _left(complete, tmp_path / "complete")
    assert said(later, folder).endswith(f"(stage {later.stage})")
    (folder / folders.FAILED_LOG).touch()
    assert said(later, folder).endswith(f"log: {folder / 'failed-log.txt'})")
    assert said(stopped, folder).endswith(f"(stage {later.stage})")  # that one is an older run's
    pairs = complete.model_copy(update={"paired_reference_s": [9.0, 9.5, 11.0]})
    assert said(pairs, folder).endswith(" s a video (the reference beside it: 9.5 s)")


def test_listing_shows_recipes_with_brackets_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "x[/y]"
    folder.mkdir(parents=True)
    (folder / "a [bold].yaml").write_text("extends: qbench:int8\n")
    (folder / "good.yaml").write_text("extends: qbench:int8\nabout: '[red]INT8[/]'\n")
    file = io.StringIO()
    listing.show(Console(file=file, width=200), folder)
    text = file.getvalue()
    assert f"recipes in {folder}" in text
    assert "a [bold]" in text
    assert "[red]INT8[/]" in text


def test_bracketed_words_of_the_command_line_are_told_as_they_are() -> None:
    for words in (
        ["validate", "x[/y]"],
        ["validate", str(RECIPES / "int8.yaml"), "--model=x[/y]"],
        ["run", str(RECIPES / "int8.yaml"), "--prompts=x[/y]"],
        ["run", str(RECIPES / "int8.yaml"), "--set=x[/y]=1"],
        ["ls", "x[/y]"],
    ):
        done = qbench(*words)
        assert done.returncode == 2
        assert done.stderr.startswith("qbench: ")
        assert "x[/y]" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert load(RECIPES / "int8.yaml", {"about": "'[red]'"}).about == "[red]"
