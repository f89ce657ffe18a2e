"""The reference takes its turn between the timed units of a variant, so that drift cancels.

Both run in processes of their own on one device. The variant's process asks for a turn and waits;
the sweep hands the turn to the reference's process and the time that it took back to the variant's.
Neither ever works while the other is timed.
"""

from __future__ import annotations

import math
from pathlib import Path

from qbench.results.record import Record
from qbench.run import worker
from qbench.run.processes import Child


class Pacer:
    """The reference's process, started at the first turn and kept until `close`."""

    def __init__(self, reference: Record, folder: Path) -> None:
        self._job = worker.Job(draft=reference, folder=folder.resolve())
        self._child: Child | None = None
        self._dead = False

    def turn(self, number: int) -> float:
        """Seconds that the reference takes for the unit of this number; NaN once it has died."""
        if self._dead:
            return math.nan
        try:
            child = self._child or self._start()
            child.answer(number)
            return self._await("paced")
        except (OSError, EOFError):
            self.close()
            return math.nan

    def _start(self) -> Child:
        log = self._job.folder / "pacer.txt"
        self._child = Child(worker.pace, self._job.model_dump_json(), log)
        self._await("ready")
        return self._child

    def _await(self, wanted: str) -> float:
        """The figure that comes with the next event of this name. Raises EOFError at the end."""
        for event in self._child.events() if self._child else ():
            if event["event"] == wanted:
                return float(event.get("seconds", 0.0))
        raise EOFError(wanted)

    def close(self) -> None:
        """End the process. A turn after this is NaN."""
        self._dead = True
        if self._child is not None:
            self._child.end()
            self._child = None
        (self._job.folder / "pacer.txt").unlink(missing_ok=True)
