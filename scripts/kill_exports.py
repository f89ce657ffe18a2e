"""Kill `qbench export` at random moments and count what it leaves at its place and beside it.

    python -m scripts.kill_exports [--times 20] [--recipe onnx]

After each kill the place must be empty. What lies beside it, the half-written folder, must be gone
once the next export to that place has begun.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--recipe", default="onnx")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "engine"
        command = [
            sys.executable, "-m", "qbench", "export", asked.recipe, "--out", str(out),
            "--set", "generation.steps=4",
        ]  # fmt: skip
        began = time.monotonic()
        subprocess.run([*command, "--force"], check=True, capture_output=True)
        whole = time.monotonic() - began
        shutil.rmtree(out)
        bad = 0
        for number in range(asked.times):
            after = random.Random(number).uniform(0, whole)
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                process.wait(after)
                ended = True
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                ended = False
            beside = [path.name for path in out.parent.iterdir() if path != out]
            whole_one = out.exists() and (out / "manifest.json").is_file()
            if out.exists() and not whole_one:
                bad += 1
            said = "ended before" if ended else "a whole one" if whole_one else "nothing"
            where = f"{said} at the place; beside it: {beside}"
            print(f"killed after {after:5.1f} s: {where}", flush=True)
            if out.exists():
                shutil.rmtree(out)
        subprocess.run(command, check=True, capture_output=True)
        left = [path.name for path in out.parent.iterdir() if path != out]
    print(f"{bad} of {asked.times} left a half; after one more export lies beside it: {left}")
    sys.exit(1 if bad or left else 0)


if __name__ == "__main__":
    main()
