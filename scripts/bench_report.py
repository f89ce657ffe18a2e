"""How long a report of many records takes: copies of real records, varied, written and reported."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qbench.results import store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, help="folder with at least one finished run")
    parser.add_argument("--n", type=int, default=1000)
    arguments = parser.parse_args()
    found, _ = store.read_all(store.find([arguments.records]))
    sound = [record for _, record in found if record.status == "ok"]
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i in range(arguments.n):
            base = sound[i % len(sound)]
            scale = rng.uniform(0.5, 2.0)
            changes = {
                "recipe": base.recipe.model_copy(update={"name": f"{base.recipe.name}-{i}"}),
                "fingerprints": base.fingerprints.model_copy(update={"recipe": str(i)}),
                "latency_s": [scale * value for value in base.latency_s],
            }
            store.write(base.model_copy(update=changes), folder / str(i))
        start = time.perf_counter()
        command = [sys.executable, "-m", "qbench", "report", str(folder), f"--out={folder / 'out'}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"{arguments.n} records: {time.perf_counter() - start:.2f} s, the process included")


if __name__ == "__main__":
    main()
