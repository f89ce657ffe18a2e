"""The process of one run: a job comes in, events go out, a record is left.

Started by the sweep (see `processes`). Everything that libraries print goes to the log. Whatever
happens, the record that it leaves says what it came to; where the process dies, the sweep writes
that record. `pace` is the process of the reference of interleaved runs, which leaves no record.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from qbench.errors import InputError, Unsupported
from qbench.results.record import Record
from qbench.results.store import write

Emit = Callable[..., None]


class Job(BaseModel):
    """What the sweep hands to the process."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    draft: Record
    folder: Path
    reference: Path | None = None  # folder of the reference's finished run
    paced: bool = False  # the sweep answers when a turn is asked for


def execute(job: Job, emit: Emit, listen: Callable[[], Any] | None = None) -> Record:
    """Run the job and return the finished record, whatever it came to."""
    from qbench.run.session import Run

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
    """What was in use and what was asked for beyond it, where a GPU's allocator said so.

    And what lay free in pieces, none of which was large enough.
    """
    size, units = r"([\d.]+) (KiB|MiB|GiB)", {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

    def said(where: str) -> float | None:
        found = re.search(where, str(error))
        return float(found[1]) * units[found[2]] if found else None

    asked = said(f"Tried to allocate {size}")
    held = said(f"allocated memory {size} is allocated by PyTorch")
    if asked is None or held is None:
        return {}
    fragments = said(f"{size} is reserved by PyTorch but unallocated") or 0.0
    return {"needed_bytes": asked + held, "fragments_bytes": fragments}


def memory_reason(error: BaseException, facts: dict[str, float]) -> str:
    if "needed_bytes" not in facts:
        return one_line(error)
    told = ". ".join(str(error).split(". ")[:2])  # past that torch gives advice
    needed, lost = (facts[name] / 2**30 for name in ("needed_bytes", "fragments_bytes"))
    text = f"needed {needed:.2f} GiB at once"
    if lost >= 0.1:
        text += f", with {lost:.2f} GiB more lost to fragments"
    return f"{text}: {' '.join(told.split())}"


def run(job: str, connection: Connection) -> None:
    """Execute the job, given as JSON, and leave its record."""
    parsed, emit = Job.model_validate_json(job), _emitter(connection)
    emit("stage", stage="start")
    record = execute(parsed, emit, connection.recv if parsed.paced else None)
    write(record, parsed.folder)
    emit("end", status=record.status)


def pace(job: str, connection: Connection) -> None:
    """Be the reference of interleaved runs; see `pacing`."""
    from qbench.run import timing
    from qbench.run.session import Run

    timing.pace(Run(Job.model_validate_json(job), _emitter(connection), connection.recv))


def _emitter(connection: Connection) -> Emit:
    steps, last = 0, 0.0

    def emit(event: str, **more: Any) -> None:
        """Steps are gathered: a run must not spend its time on saying how far it is."""
        nonlocal steps, last
        steps += event == "step"
        now = time.monotonic()
        if steps and (event != "step" or now - last > 0.2):
            connection.send({"event": "step", "count": steps})
            steps, last = 0, now
        if event != "step":
            connection.send({"event": event, **more})

    return emit
