"""The workflow of docs/ci.md: its commands are run as far as a test can run them."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from made_records import made, of_software, placed
from typer.testing import CliRunner

from qbench.cli import app


@pytest.fixture(scope="module")
def steps() -> dict[str, str]:
    """Name -> shell text, of the steps that run something."""
    text = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    workflow = yaml.safe_load(block)
    assert workflow[True] == "pull_request"  # YAML 1.1 reads `on` as true
    return {
        step["name"]: step["run"] for step in workflow["jobs"]["compare"]["steps"] if "run" in step
    }


def _words(text: str, command: str) -> list[str]:
    """The words after `qbench COMMAND` in a shell script, up to what leads its output elsewhere."""
    (line,) = [
        x
        for x in text.replace("\\\n", " ").splitlines()
        if f'qbench" {command} ' in x or f"qbench {command} " in x
    ]
    words = shlex.split(line)
    words = words[words.index(command) :]
    return words[: words.index(">")] if ">" in words else words


def test_what_is_measured_there_can_be_measured(steps: dict[str, str]) -> None:
    words = _words(steps["Measure both"], "run")
    recipes = words[1 : words.index("--out")]
    done = CliRunner().invoke(app, ["validate", *recipes])
    assert done.exit_code == 0, done.exception
    assert "int8: ok" in done.stdout


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.3, 1)])
def test_its_comparison_passes_noise_and_stops_a_slow_down(
    steps: dict[str, str], tmp_path: Path, factor: float, code: int
) -> None:
    rng = np.random.default_rng(0)

    def record(run: str, times: float) -> object:
        latency = [float(x) for x in times * np.exp(rng.normal(0, 0.01, 12))]
        turns = [float(x) for x in 1.5 * np.exp(rng.normal(0, 0.01, 12))]
        return made(run=run, latency=latency, turns=turns)

    placed(record("base", 1.0), tmp_path / "results-base")  # type: ignore[arg-type]
    head = of_software(record("head", factor), "2.12.0", "fedcba987654")  # type: ignore[arg-type]
    placed(head, tmp_path / "results-head")
    words = _words(steps["Compare"], "compare")
    assert words.count("--fail-if") == 4
    with contextlib.chdir(tmp_path):
        done = CliRunner().invoke(app, words)
    assert done.exit_code == code, done.stdout
    assert done.stdout.startswith("### qbench: " + ("regression" if code else "passes"))
    assert "| int8 |" in done.stdout
