"""Turn finished runs into what results/published/ holds: records, profiles, and the report.

    python -m scripts.publish RUNS... results/published/NAME [--sheets]

Runs that were interrupted are left out; videos and raw outputs stay behind, and charts as SVG, for
what is published travels with every clone. Of shards, each with a run of the reference, all are
kept: the report pairs a variant with its own. To write a report anew, name the published runs.
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from pathlib import Path

from qbench.report import writer
from qbench.results import store
from qbench.run.generate import PROFILE

UNFINISHED = ("running", "interrupted")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("target", type=Path)
    parser.add_argument("--sheets", action="store_true", help="contact sheets side by side too")
    args = parser.parse_args()
    found, unreadable = store.read_all(store.find(args.runs))
    for line in unreadable:
        print(f"left out: {line}")
    kept = [(path, record) for path, record in found if record.status not in UNFINISHED]
    times: Counter[str] = Counter()
    for path, record in kept:
        name = path.parent.name
        times[name] += 1
        folder = args.target / "runs" / (name if times[name] == 1 else f"{name}-{times[name]}")
        if path.parent.resolve() == folder.resolve():
            continue  # published already
        folder.mkdir(parents=True, exist_ok=True)
        store.write(record, folder)
        if (path.parent / PROFILE).is_file():
            shutil.copyfile(path.parent / PROFILE, folder / PROFILE)
    # The sheets are drawn from the runs' own; without them they would be missing from the report.
    shown = kept
    if not args.sheets:
        shown = store.read_all(store.find([args.target / "runs"]))[0]
    print(writer.write(shown, [], args.target / "report"))
    for drawing in (args.target / "report").glob("*.svg"):
        drawing.unlink()


if __name__ == "__main__":
    main()
