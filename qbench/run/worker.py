"""The process of one run: a job comes in, events go out, a record is left.

Started by the sweep (see `processes`). Everything that libraries print goes to the log. Whatever
happens, the record that it leaves says what it came to; where the process dies, the sweep writes
that record. `serve` is the process of the reference of interleaved runs, which leaves no record.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time as clock
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeAlias

from qbench.results.record import Record, Status
from qbench.results.store import FILE, Unreadable, read, write
from qbench.run import failures, processes, recorder
from qbench.run.events import (
    Beat,
    Event,
    FirstCallDone,
    RankFailed,
    RunEnded,
    ServerFailed,
    StageEntered,
    StepsDone,
    TurnAsked,
)
from qbench.run.job import Job
from qbench.run.recorder import Recorder
from qbench.run.stages import Stages

# Folders in which compilers keep what they made, which decide how long a first call takes.
CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "driver",
}
BEAT_S = 1.0
STEPS_EVERY_S = 0.2  # a run must not spend its time on saying how far it is
Ends: TypeAlias = "Connection[Event, float]"  # of a pipe: answers in, events out


class SweepGone(BaseException):
    """Nobody is at the other end any more. Not an Exception: the run itself has not failed."""


class Line:
    """A link over a connection. Steps are gathered."""

    def __init__(self, connection: Ends) -> None:
        self._connection = connection
        self._steps, self._last = 0, 0.0
        self._sending = threading.Lock()

    def emit(self, event: Event) -> None:
        now = clock.monotonic()
        if isinstance(event, StepsDone):
            self._steps += event.count
            if now - self._last < STEPS_EVERY_S:
                return
        if self._steps:
            self._send(StepsDone(self._steps))
            self._steps, self._last = 0, now
        if not isinstance(event, StepsDone):
            self._send(event)

    def reference_turn(self, number: int) -> float:
        self.emit(TurnAsked(number))
        return float(self._receive())

    def next_turn(self) -> int:
        return int(self._receive())

    def _send(self, event: Event) -> None:
        try:
            with self._sending:
                self._connection.send(event)
        except OSError as error:
            raise SweepGone from error

    def beat(self, begun: Callable[[], int]) -> None:
        """Give a sign of life every second, in a thread of its own, for as long as there is one."""

        def beats() -> None:
            with contextlib.suppress(SweepGone):
                while True:
                    self._send(Beat(begun()))
                    clock.sleep(BEAT_S)

        threading.Thread(target=beats, daemon=True, name="beat").start()

    def _receive(self) -> float:
        try:
            value: float = self._connection.recv()
        except (OSError, EOFError) as error:
            raise SweepGone from error
        return value


def execute(job: Job, stages: Stages) -> Record:
    """Run the job and return the finished record, whatever it came to."""
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
    from qbench.run import generate, profiling, samples, together
    from qbench.run.evaluate import evaluate
    from qbench.run.prepare import prepare
    from qbench.run.timing import time

    results = stages.recorder
    session = prepare(job, stages)
    timings = time(session)
    results.put(**timings.fields(), stages={**results.record.stages, **timings.stages})
    if session.lead:
        ranks = session.lead.report(timings)
        results.put(ranks=ranks, gauges=together.gauges_of_all(ranks))
    profiling.profile(session)
    results.facts(session.counted())
    if not session.compared:
        session.record_computed()
        session.end_ranks()
        return "ok", ""
    outputs = generate.generate(session)
    session.record_computed()
    results.put(error_growth=generate.error_by_step(session))
    results.facts(session.counted())
    samples.save_samples(session, outputs)
    evaluation = evaluate(session, outputs)
    results.put(videos=evaluation.videos, quality=evaluation.quality)
    results.put(outputs_sha256=outputs.digest())
    results.note(*evaluation.notes)
    if evaluation.faults:
        return "invalid", "; ".join(evaluation.faults)
    return "ok", ""


class _Leaving:
    """Writes the run's record, once, and only where the folder still waits for this run's."""

    def __init__(self, job: Job, stages: Stages) -> None:
        self._job, self._stages = job, stages
        self._lock = threading.Lock()

    def leave(self, record: Record) -> None:
        with self._lock:
            try:
                there = read(self._job.folder / FILE)
            except Unreadable:
                return
            if there.run == record.run and there.status == "running":
                write(record, self._job.folder)

    def interrupted(self) -> None:
        stages = self._stages
        reason = "the sweep that it belongs to ended"
        self.leave(recorder.ended(stages.recorder.record, "interrupted", reason, stages.name))


def run(job: str, connection: Ends) -> None:
    """Execute the job, given as JSON, and leave its record."""
    parsed, line = _begun(job, connection)
    stages = Stages(Recorder(parsed.draft), line)
    leaving = _Leaving(parsed, stages)
    processes.end_with_parent(leaving.interrupted)
    if parsed.ranks > 1:
        line.beat(lambda: stages.traffic.begun if stages.traffic else 0)
    line.emit(StageEntered("start"))
    try:
        record = execute(parsed, stages)
        leaving.leave(record)
        line.emit(RunEnded(record.status))
    except SweepGone:
        leaving.interrupted()


def follow(job: str, connection: Ends) -> None:
    """Be a rank beside the first, which tells it what to do; see `together`. Leaves no record."""
    from qbench.run import together
    from qbench.run.prepare import prepare_beside

    parsed, line = _begun(job, connection)
    stages = Stages(Recorder(parsed.draft), line)
    processes.end_with_parent()
    line.beat(lambda: stages.traffic.begun if stages.traffic else 0)
    try:
        session, ranks = prepare_beside(parsed, stages)
        together.follow(session, ranks)
        ranks.leave()
        line.emit(RunEnded("ok"))
    except SweepGone:
        return
    except Exception as error:
        failure = failures.understood(error)
        line.emit(RankFailed(failure.status, failure.reason))
        raise


def serve(job: str, connection: Ends) -> None:
    """Be the reference of interleaved runs; see `reference_server`."""
    from qbench.run import timing
    from qbench.run.prepare import prepare

    parsed, line = _begun(job, connection)
    processes.end_with_parent()
    try:
        timing.serve(prepare(parsed, Stages(Recorder(parsed.draft), line)))
    except SweepGone:
        return
    except Exception as error:
        failure = failures.understood(error)
        line.emit(ServerFailed(failure.reason, failure.status == "oom"))
        raise


def make_part(job: str, connection: Ends) -> None:
    """Make a part of a run's videos, and leave nothing else."""
    from qbench.run import generate
    from qbench.run.prepare import prepare

    parsed, line = _begun(job, connection)
    processes.end_with_parent()
    line.emit(StageEntered("start"))
    try:
        generate.part(prepare(parsed, Stages(Recorder(parsed.draft), line)))
        line.emit(RunEnded("ok"))
    except SweepGone:
        return


def first_call(job: str, connection: Ends) -> None:
    """Make the first call alone, with what compilers keep in the job's cache folder."""
    from qbench.run import timing
    from qbench.run.prepare import prepare

    parsed, line = _begun(job, connection)
    processes.end_with_parent()
    session = prepare(parsed, Stages(Recorder(parsed.draft), line))
    line.emit(FirstCallDone(timing.first_call(session)))


def _begun(job: str, connection: Ends) -> tuple[Job, Line]:
    """The job, with compilers told where to keep what they make before any of them is asked."""
    parsed = Job.model_validate_json(job)
    if parsed.devices:
        # Each rank sees its own GPU alone, which is then the one that all code takes.
        os.environ["CUDA_VISIBLE_DEVICES"] = parsed.devices[parsed.rank]
    if parsed.cache is not None:
        for name, part in CACHES.items():
            os.environ[name] = str(parsed.cache / part)
    return parsed, Line(connection)
