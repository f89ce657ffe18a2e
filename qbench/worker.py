"""The process of one run: a job comes in, events go out, a record is left.

Started by the sweep as `python -m qbench.worker JOB`. It reports on its standard output, one JSON
object a line; everything that libraries print goes to the log. Whatever happens, the record that
it leaves says what it came to; where the process dies, the sweep writes that record. With `--pace`
it is the reference of an interleaved run instead, and leaves no record; see `pacing`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from qbench.errors import InputError, Unsupported
from qbench.records import Record, write

Emit = Callable[..., None]


class Job(BaseModel):
    """What the sweep hands to the process."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    draft: Record
    folder: Path
    reference: Path | None = None  # folder of the reference's finished run
    paced: bool = False  # the sweep answers when a turn is asked for


def execute(job: Job, emit: Emit, listen: Callable[[], str] | None = None) -> Record:
    """Run the job and return the finished record, whatever it came to."""
    from qbench.runner import Run

    run = Run(job, emit, listen)
    try:
        run.all()
        run.facts["status"] = "invalid" if run.facts.get("reason") else "ok"
    except Unsupported as error:
        run.stop("skipped", str(error))
    except InputError as error:
        run.stop("failed", str(error))
    except Exception as error:
        import traceback

        traceback.print_exc()
        if out_of_memory(error):
            run.facts["facts"] |= needed_bytes(error)
            run.stop("oom", memory_reason(error, run.facts["facts"]))
        else:
            run.stop("failed", one_line(error))
    run.facts["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
    return job.draft.model_copy(update=run.facts)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def out_of_memory(error: BaseException) -> bool:
    words = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in words
        or "can't allocate memory" in words
        or "failed to allocate memory" in words
    )


def needed_bytes(error: BaseException) -> dict[str, float]:
    """What was in use and what was asked for beyond it, where a GPU's allocator said so."""
    size = r"([\d.]+) (KiB|MiB|GiB)"
    asked = re.search(f"Tried to allocate {size}", str(error))
    held = re.search(f"allocated memory {size} is allocated by PyTorch", str(error))
    if not asked or not held:
        return {}
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    return {"needed_bytes": sum(float(found[1]) * units[found[2]] for found in (asked, held))}


def memory_reason(error: BaseException, facts: dict[str, float]) -> str:
    if "needed_bytes" not in facts:
        return one_line(error)
    told = ". ".join(str(error).split(". ")[:2])  # past that torch gives advice
    return f"needed {facts['needed_bytes'] / 2**30:.2f} GiB at once: {' '.join(told.split())}"


def main() -> None:
    job = Job.model_validate_json(Path(sys.argv[1]).read_text())
    # Libraries print to standard output; only events may go there.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    steps, last = 0, 0.0

    def say(event: dict[str, Any]) -> None:
        events.write(json.dumps(event) + "\n")
        events.flush()

    def emit(event: str, **more: Any) -> None:
        """Steps are gathered: a run must not spend its time on saying how far it is."""
        nonlocal steps, last
        steps += event == "step"
        now = time.monotonic()
        if steps and (event != "step" or now - last > 0.2):
            say({"event": "step", "count": steps})
            steps, last = 0, now
        if event != "step":
            say({"event": event, **more})

    emit("stage", stage="start")
    if "--pace" in sys.argv:
        from qbench.runner import Run
        from qbench.steps import pace

        pace(Run(job, emit, sys.stdin.readline))
        return
    record = execute(job, emit, sys.stdin.readline if job.paced else None)
    write(record, job.folder)
    emit("end", status=record.status)


if __name__ == "__main__":
    main()
