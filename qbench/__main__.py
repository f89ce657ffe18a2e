"""Where the program starts, by `qbench` and by `python -m qbench`: first of all it hears Ctrl-C."""

import os
import sys


def main() -> None:
    """The commands. Ctrl-C ends the program as it does later, while they are still imported too."""
    try:
        from qbench import signals

        signals.wait_for_imports()
        from qbench.cli import main as commands

        commands()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":  # not where a process of a run imports its parent's main module
    # `python -m` searches the current folder first: a user's statistics.py in it is not Python's.
    if sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
        del sys.path[0]
    main()
