"""Running a module of qbench's own as a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# The current folder is no place to import from (-P): a user's statistics.py is not Python's. Where
# qbench is not installed but run from its sources, they come last.
_START = (
    "import runpy, sys; sys.path.append({root!r}); "
    "sys.argv[:] = sys.argv[1:]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
)


def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run this module, of qbench's, in a process of its own with these arguments, to its end."""
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-P", "-c", _START.format(root=root), module, *words]
    return subprocess.run(command, capture_output=True, text=True)
