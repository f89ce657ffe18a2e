import os
import sys

if __name__ == "__main__":  # not where a process of a run imports its parent's main module
    # `python -m` searches the current folder first: a user's statistics.py in it is not Python's.
    if sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
        del sys.path[0]

    from qbench.cli import main

    main()
