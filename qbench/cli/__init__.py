"""The command line. `qbench.cli:main` is what the installed `qbench` calls."""

from qbench.cli import comparing, decisions, exporting, searching
from qbench.cli.commands import app, main

decisions.register(app)
comparing.register(app)
exporting.register(app)
searching.register(app)

__all__ = ["app", "main"]
