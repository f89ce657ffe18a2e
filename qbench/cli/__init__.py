"""The command line. `qbench.__main__` is what starts it."""

from qbench.cli import comparing, decisions, exporting, searching
from qbench.cli.commands import app, main

decisions.register(app)
comparing.register(app)
exporting.register(app)
searching.register(app)

__all__ = ["app", "main"]
