"""The reference takes its turn between the timed units of a variant, so that drift cancels.

Both run in processes of their own on one device. The variant's process asks for a turn and waits;
the sweep hands the turn to the reference's process and the time that it took back to the variant's.
Neither ever works while the other is timed.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from qbench.records import Record
from qbench.worker import Job


class Pacer:
    """The reference's process, started at the first turn and kept until `close`."""

    def __init__(self, reference: Record, folder: Path) -> None:
        self._job = Job(draft=reference, folder=folder.resolve())
        self._process: subprocess.Popen[str] | None = None
        self._dead = False

    def turn(self, number: int) -> float:
        """Seconds that the reference takes for the unit of this number; NaN once it has died."""
        if self._dead:
            return math.nan
        try:
            process = self._process or self._start()
            assert process.stdin
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            return self._await("paced")
        except (OSError, ValueError, EOFError):
            self.close()
            return math.nan

    def _start(self) -> subprocess.Popen[str]:
        path = self._job.folder / "pacer.json"
        path.write_text(self._job.model_dump_json())
        with (self._job.folder / "pacer.txt").open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qbench.worker", str(path), "--pace"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._await("ready")
        path.unlink()
        return self._process

    def _await(self, wanted: str) -> float:
        """The figure that comes with the next event of this name. Raises EOFError at the end."""
        stream = self._process.stdout if self._process else None
        for line in stream or ():
            event = json.loads(line)
            if event["event"] == wanted:
                return float(event.get("seconds", 0.0))
        raise EOFError(wanted)

    def close(self) -> None:
        """End the process. A turn after this is NaN."""
        self._dead = True
        if self._process is not None:
            from qbench.sweep import end

            end(self._process)
            for stream in (self._process.stdin, self._process.stdout):
                if stream:
                    stream.close()
            self._process = None
        for name in ("pacer.json", "pacer.txt"):
            (self._job.folder / name).unlink(missing_ok=True)
