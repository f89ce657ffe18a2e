"""The process of one run: a job comes in, events go out, a record is left.

Started by the sweep (see `processes`). Everything that libraries print goes to the log. Whatever
happens, the record that it leaves says what it came to; where the process dies, the sweep writes
that record. `serve` is the process of the reference of interleaved runs, which leaves no record.
"""

from __future__ import annotations

import time as clock
from multiprocessing.connection import Connection

from qbench.results.record import Record, Status
from qbench.results.store import write
from qbench.run import failures, recorder
from qbench.run.events import Event, Link, RunEnded, ServerFailed, StageEntered, StepsDone
from qbench.run.job import Job
from qbench.run.recorder import Recorder
from qbench.run.stages import Stages

STEPS_EVERY_S = 0.2  # a run must not spend its time on saying how far it is


class Line:
    """A link over a connection. Steps are gathered."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._steps, self._last = 0, 0.0

    def emit(self, event: Event) -> None:
        now = clock.monotonic()
        if isinstance(event, StepsDone):
            self._steps += event.count
            if now - self._last < STEPS_EVERY_S:
                return
        if self._steps:
            self._connection.send(StepsDone(self._steps))
            self._steps, self._last = 0, now
        if not isinstance(event, StepsDone):
            self._connection.send(event)

    def reference_turn(self, number: int) -> float:
        from qbench.run.events import TurnAsked

        self.emit(TurnAsked(number))
        return float(self._connection.recv())

    def next_turn(self) -> int:
        return int(self._connection.recv())


def execute(job: Job, link: Link) -> Record:
    """Run the job and return the finished record, whatever it came to."""
    stages = Stages(Recorder(job.draft), link)
    try:
        status, reason = _all(job, stages)
        return recorder.ended(stages.recorder.record, status, reason)
    except Exception as error:
        failure = failures.understood(error)
        if not failure.expected:
            import traceback

            traceback.print_exc()
        stages.recorder.facts(failure.facts)
        record = stages.recorder.record
        return recorder.ended(record, failure.status, failure.reason, stages.name)


def _all(job: Job, stages: Stages) -> tuple[Status, str]:
    """A run from start to end: status, and reason where its videos are none."""
    from qbench.run import generate
    from qbench.run.evaluate import evaluate
    from qbench.run.session import prepare
    from qbench.run.timing import time

    results = stages.recorder
    session = prepare(job, stages)
    timings = time(session)
    results.put(**timings.fields(), stages={**results.record.stages, **timings.stages})
    generate.profile(session)
    if not session.compared:
        return "ok", ""
    outputs = generate.generate(session)
    results.put(error_growth=generate.error_by_step(session))
    generate.save_samples(session, outputs)
    evaluation = evaluate(session, outputs)
    results.put(videos=evaluation.videos, quality=evaluation.quality)
    results.put(outputs_sha256=outputs.digest())
    results.note(*evaluation.notes)
    if evaluation.faults:
        return "invalid", "; ".join(evaluation.faults)
    return "ok", ""


def run(job: str, connection: Connection) -> None:
    """Execute the job, given as JSON, and leave its record."""
    parsed, line = Job.model_validate_json(job), Line(connection)
    line.emit(StageEntered("start"))
    record = execute(parsed, line)
    write(record, parsed.folder)
    line.emit(RunEnded(record.status))


def serve(job: str, connection: Connection) -> None:
    """Be the reference of interleaved runs; see `reference_server`."""
    from qbench.run import timing
    from qbench.run.session import prepare

    parsed, line = Job.model_validate_json(job), Line(connection)
    try:
        timing.serve(prepare(parsed, Stages(Recorder(parsed.draft), line)))
    except Exception as error:
        failure = failures.understood(error)
        line.emit(ServerFailed(failure.reason, failure.status == "oom"))
        raise
