"""What compute-sanitizer is given to watch, and how its findings are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scripts import sanitize

MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
========= ERROR SUMMARY: {} error{}
"""
RACECHECK = "========= RACECHECK SUMMARY: 3 hazards displayed (2 errors, 1 warning)\n"


def test_errors_are_those_of_all_processes() -> None:
    assert sanitize.errors(MEMCHECK.format(0, "s")) == 0
    assert sanitize.errors(MEMCHECK.format(1, "") + MEMCHECK.format(12, "s")) == 13
    assert sanitize.errors(RACECHECK) == 3
    assert sanitize.errors("killed") is None


@pytest.mark.parametrize(
    ("planted", "errors", "passed", "clean"),
    [(64, 0, 5, True), (0, 0, 5, False), (None, 0, 5, False), (64, 1, 5, False),
     (64, None, 5, False), (64, 0, 0, False)],
)  # fmt: skip
def test_clean_is_a_tool_that_sees_and_saw_nothing(
    planted: int | None, errors: int | None, passed: int, clean: bool
) -> None:
    tests = [{"file": file, "errors": 0, "passed": 3} for file in sanitize.SMALL]
    tests[1] |= {"errors": errors, "passed": passed}
    assert sanitize.clean({"planted": planted, "tests": tests}) == clean
    assert not sanitize.clean({"planted": planted, "tests": tests[1:]})


def test_program_that_takes_too_long_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/other; wait"]
    monkeypatch.setattr(sanitize, "command", lambda tool: words)
    assert sanitize.run("memcheck", 1.0) is None
    other = int((tmp_path / "other").read_text())
    assert not psutil.pid_exists(other) or psutil.Process(other).status() == psutil.STATUS_ZOMBIE


def test_every_file_of_kernels_has_tests_to_watch() -> None:
    which = " or ".join(f"({words})" for words in sanitize.SMALL.values())
    files = [f"{sanitize.HERE}/{file}" for file in sanitize.SMALL]
    words = ["-m", "pytest", "-q", "--collect-only", "-m", "gpu", *files, "-k", which]
    found = subprocess.run([sys.executable, *words], capture_output=True, text=True).stdout
    assert [file for file in files if f"{file}: " not in found] == []


def test_tests_that_skip_for_want_of_a_gpu_are_marked_so(request: pytest.FixtureRequest) -> None:
    """Or `-m gpu`, by which they are run on one, leaves them out without a word."""
    unmarked = {
        item.name
        for item in request.session.items
        for mark in item.iter_markers("skipif")
        if "NVIDIA" in mark.kwargs.get("reason", "") and not item.get_closest_marker("gpu")
    }
    assert unmarked == set()
