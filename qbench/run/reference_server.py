"""The reference takes its turn beside the timed units of a variant, so that drift cancels.

Both run in processes of their own on one device. The variant's process asks for a turn and waits;
the sweep hands the turn to the reference's process and the time that it took back to the variant's.
Neither ever works while the other is timed.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from qbench.run import folders, worker
from qbench.run.events import Event, ServerFailed, ServerReady, TurnTaken
from qbench.run.job import Job
from qbench.run.processes import Child

Awaited = TypeVar("Awaited", bound=Event)


class ReferenceServer:
    """The reference's process, started at the first turn and kept until `close`.

    It works in a folder of its own: that of the reference's run is complete, and not its to touch.
    """

    def __init__(self, job: Job, scratch: Path | None = None) -> None:
        """scratch: where to make that folder; null is the system's own place."""
        self._job, self._scratch = job, scratch
        self._child: Child | None = None
        self._folder: Path | None = None
        self.failure: ServerFailed | None = None  # why it gives no more turns

    def turn(self, number: int, deadline: Callable[[], float]) -> float:
        """Seconds that the reference takes for the unit of this number; NaN once it has died.

        Raises TimeoutError where the deadline (of time.monotonic) passes first.
        """
        if self.failure:
            return math.nan
        try:
            child = self._child or self._start(deadline)
            child.answer(number)
            return self._next(TurnTaken, deadline).seconds
        except TimeoutError:
            raise
        except (OSError, EOFError):
            self._failed(ServerFailed("its process died", out_of_memory=False))
            return math.nan

    def _start(self, deadline: Callable[[], float]) -> Child:
        self._folder = Path(tempfile.mkdtemp(prefix="qbench-reference-", dir=self._scratch))
        job = self._job.model_copy(update={"folder": self._folder})
        self._child = Child(worker.serve, job.model_dump_json(), self._folder / folders.LOG)
        self._next(ServerReady, deadline)
        return self._child

    def _next(self, awaited: type[Awaited], deadline: Callable[[], float]) -> Awaited:
        """The next event of this type. Raises EOFError where the process ends before it."""
        for event in self._child.events(deadline) if self._child else ():
            if isinstance(event, awaited):
                return event
            if isinstance(event, ServerFailed):
                self._failed(event)
        raise EOFError

    def _failed(self, failure: ServerFailed) -> None:
        self.failure = self.failure or failure
        self.close()

    def close(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """End the process. A turn after this is NaN."""
        self.failure = self.failure or ServerFailed("it was ended", out_of_memory=False)
        if self._child is not None:
            self._child.end(hurry)
            self._child = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
