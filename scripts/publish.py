"""Turn finished runs into what results/published/ holds: records, profiles, and the report.

    python -m scripts.publish RUNS results/published/NAME [--sheets]

Runs that were interrupted are left out; videos and raw outputs stay behind.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from qbench import records, report

KEPT = (records.FILE, "profile.json")
UNFINISHED = ("running", "interrupted")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--sheets", action="store_true", help="contact sheets side by side too")
    args = parser.parse_args()
    found, unreadable = records.read_all(records.find([args.runs]))
    for line in unreadable:
        print(f"left out: {line}")
    kept = [(path, record) for path, record in found if record.status not in UNFINISHED]
    for path, _ in kept:
        folder = args.target / "runs" / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (path.parent / name).is_file():
                shutil.copyfile(path.parent / name, folder / name)
    # The sheets are drawn from the runs' own; without them they would be missing from the report.
    shown = kept
    if not args.sheets:
        shown = records.read_all(records.find([args.target / "runs"]))[0]
    print(report.write(shown, [], args.target / "report"))


if __name__ == "__main__":
    main()
