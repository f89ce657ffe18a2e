"""The command: check, or draw anew."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import scripts.figures
from scripts.figures import chart, models
from scripts.figures.documents import documents, drawn, name_of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=scripts.figures.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", type=Path, nargs="*")
    parser.add_argument("--write", action="store_true", help="draw what differs anew")
    args = parser.parse_args()
    wrong = []
    for document in [path.resolve() for path in args.documents] or documents():
        new, faults = drawn(document)
        old = document.read_text(encoding="utf-8")
        if new != old and args.write:
            document.write_text(new, encoding="utf-8")
        elif new != old:
            pairs = zip(old.splitlines(), new.splitlines(), strict=False)
            changed = [(n, b) for n, (a, b) in enumerate(pairs, 1) if a != b]
            faults += [
                f"{name_of(document)}:{n}: the records say: {line}" for n, line in changed[:20]
            ]
        wrong += faults
    if not args.documents:
        if args.write:
            chart.draw()
            models.draw()
        wrong += [*chart.faults(), *models.faults()]
    for line in wrong:
        print(line, file=sys.stderr)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
