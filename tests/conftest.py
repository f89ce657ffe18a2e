"""What several tests need: tiny runs of the real program, and the bundled model."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
# Two videos of two steps: everything runs, nothing takes long.
SMALL = [
    "--set=generation.steps=2",
    "--set=prompts.count=2",
    "--set=measure.repeats=1",
    "--set=measure.warmup=0",
    "--set=measure.interleave=false",
]


# The programs that tests start wait for others that time something on this machine. These keep
# their locks apart, for no figure of a test rests on an idle machine.
tempfile.gettempdir()  # pytest's own folders stay where they are
os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="qb-")
atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)


def qbench(*words: str, cwd: Path = ROOT, prefix: str = "") -> subprocess.CompletedProcess[str]:
    """The program as a user calls it. `prefix` is shell text before it, such as 'ulimit ...;'."""
    command = [sys.executable, "-m", "qbench", *words]
    if prefix:
        command = ["bash", "-c", f'{prefix} exec "$0" "$@"', *command]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished sweep: reference, INT8 weights, and one that cannot run on a CPU."""
    out = tmp_path_factory.mktemp("runs")
    names = [str(RECIPES / f"{name}.yaml") for name in ("int8", "tensorrt")]
    done = qbench("run", *names, *SMALL, "--device=cpu", f"--out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    (out / "stdout.txt").write_text(done.stdout)
    return out
