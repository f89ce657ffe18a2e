"""What compute-sanitizer is given to watch, and how its findings are read."""

from __future__ import annotations

import subprocess
import sys
import time
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


def test_reports_are_told_apart_by_what_they_say_first() -> None:
    race = """.========= Error: Race reported between Write access at attend+0x{}
=========     and Read access at attend+0xb60 [24 hazards]
========= 
"""
    said = MEMCHECK.format(1, "") + race.format("4430") + race.format("5f00") + RACECHECK
    assert sanitize.kinds(said) == {
        "Error: Race reported between Write access at attend": 2,
        "Invalid __global__ write of size 4 bytes": 1,
    }
    assert sanitize.kinds("........ 8 passed") == {}


@pytest.mark.parametrize(
    ("planted", "errors", "passed", "failed", "clean"),
    [(64, 0, 5, 0, True), (0, 0, 5, 0, False), (None, 0, 5, 0, False), (64, 1, 5, 0, False),
     (64, None, 5, 0, False), (64, 0, 0, 0, False), (64, 0, 5, 1, False)],
)  # fmt: skip
def test_clean_is_a_tool_that_sees_and_saw_nothing(
    planted: int | None, errors: int | None, passed: int, failed: int, clean: bool
) -> None:
    tests = [{"file": file, "errors": 0, "passed": 3, "failed": 0} for file in sanitize.SMALL]
    tests[1] |= {"errors": errors, "passed": passed, "failed": failed}
    assert sanitize.clean({"planted": planted, "tests": tests}) == clean
    assert not sanitize.clean({"planted": planted, "tests": tests[1:]})


def test_program_that_takes_too_long_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sh", "-c", f"sleep 60 & echo $! > {tmp_path}/other; wait"]
    monkeypatch.setattr(sanitize, "command", lambda tool: words)
    assert sanitize.run("memcheck", 1.0) is None
    other = int((tmp_path / "other").read_text())
    for _ in range(1000):
        if not _runs(other):
            return
        time.sleep(0.01)  # a process that was killed is there for a moment more
    pytest.fail("it still runs")


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _said(*words: str) -> str:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True).stdout


def test_tests_are_counted_in_what_pytest_prints_by_the_words_that_run_it(tmp_path: Path) -> None:
    words = sanitize.pytest_words(__file__, "errors_are", mark="not gpu")
    assert sanitize.counted(_said(*words), "passed") == 1
    bad = "def test_a(): assert False\ndef test_b(): pass\ndef test_c(): pass\n"
    (tmp_path / "test_bad.py").write_text(bad)
    said = _said(*sanitize.pytest_words(f"{tmp_path}/test_bad.py", "test_", mark="not gpu"))
    assert [sanitize.counted(said, outcome) for outcome in ("passed", "failed")] == [2, 1]
    assert sanitize.counted(_said(*words, "-k", "none of them"), "passed") == 0
    assert sanitize.counted("killed", "passed") == 0


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_every_file_of_kernels_has_tests_to_watch(tool: str) -> None:
    """And those of each kernel are among them, however few a slow tool is given."""
    small = sanitize.chosen(tool)
    which = " or ".join(f"({words})" for words in small.values())
    files = [f"{sanitize.HERE}/{file}" for file in small]
    found = _said("-m", "pytest", "--collect-only", "-m", "gpu", *files, "-k", which)
    assert [file for file in files if f"{file}::" not in found] == []
    kernels = ("computes_what", "rows_kernel", "convolutions_of", "norms_of", "planted_blocks")
    assert [name for name in kernels if name not in found] == []


def test_tests_that_skip_for_want_of_a_gpu_are_marked_so(request: pytest.FixtureRequest) -> None:
    """Or `-m gpu`, by which they are run on one, leaves them out without a word."""
    unmarked = {
        item.name
        for item in request.session.items
        for mark in item.iter_markers("skipif")
        if "NVIDIA" in mark.kwargs.get("reason", "") and not item.get_closest_marker("gpu")
    }
    assert unmarked == set()
