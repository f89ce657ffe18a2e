"""The command line. `qbench.cli:main` is what the installed `qbench` calls."""

from qbench.cli.commands import app, main

__all__ = ["app", "main"]
