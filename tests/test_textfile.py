"""What is written is written whole, and a file system that refuses is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import qbench

from qbench import textfile
from qbench.cli import shared
from qbench.engines import folder
from qbench.errors import InputError


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    textfile.replace(path, "a: 1\n")
    with pytest.raises(UnicodeEncodeError):  # half-way through
        textfile.replace(path, "b: 2\n" * 10_000 + "\ud800")
    assert path.read_text() == "a: 1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_the_users_to_mend_and_a_missing_file_is_not() -> None:
    with (
        pytest.raises(InputError, match="there: cannot be written: No space left"),
        textfile.writing(Path("there")),
    ):
        Path("/dev/full").write_text("x")
    with pytest.raises(FileNotFoundError), textfile.writing(Path("there")):
        Path("/nowhere/at/all").read_text()


def test_recipes_are_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    done = qbench("recipes", "copy", str(tmp_path / "mine"), limits={"RLIMIT_FSIZE": 64})
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.endswith("mine: cannot be written: File too large")
    assert list(tmp_path.iterdir()) == []


def test_output_that_goes_to_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qbench", "ls"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "qbench: No space left on device"


def test_places_that_no_record_could_name_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of a name that are not UTF-8 would end the sweep where its record is written."""
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/out\xff"))
    for refuse in (shared.writable, lambda out: folder.check_place(out, force=False)):
        with pytest.raises(InputError, match="not UTF-8 throughout"):
            refuse(odd)
        odd.mkdir(exist_ok=True)
        monkeypatch.chdir(odd)
        with pytest.raises(InputError, match="not UTF-8 throughout"):
            refuse(Path("runs"))
        monkeypatch.chdir(tmp_path)
    shared.writable(tmp_path / "[red]\n\x1b[31m é")
