"""A run on two ranks: one record of both, and one that says which of them ended it."""

from __future__ import annotations

import math
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import psutil
import pytest
from conftest import RECIPES, SMALL

from qbench.meters.memory import Peak
from qbench.meters.nvml import Gauges
from qbench.recipe.schema import Recipe
from qbench.results.record import RankFigures, Record
from qbench.run import crew, plan, sweep, timing, together
from qbench.run.events import Beat, Event, RunEnded, StageEntered
from qbench.run.processes import Child

pytestmark = pytest.mark.slow
UNNAMED = signal.SIGRTMIN + 6  # of which Python knows no name
CFG = RECIPES / "parallel" / "cfg.yaml"
OWN = dict(word.removeprefix("--set=").split("=", 1) for word in SMALL) | {"device": "cpu"}


class _Striking(sweep.Silent):
    """Sends a signal to a rank once the run has come to a stage."""

    def __init__(self, stage: str, rank: int, number: int | None) -> None:
        self._stage, self._rank, self._number = stage, rank, number
        self.struck: set[int] = set()

    def event(self, recipe: Recipe, event: Event) -> None:
        if not isinstance(event, StageEntered) or event.stage != self._stage or self.struck:
            return
        ranks = {rank: pid for pid in _children() for rank in (0, 1) if _logs_as(pid, rank)}
        self.struck = set(ranks.values())
        if self._number is not None:
            os.kill(ranks[self._rank], self._number)


def _children() -> list[int]:
    return [child.pid for child in psutil.Process().children(recursive=True)]


def _logs_as(pid: int, rank: int) -> bool:
    try:
        return Path(os.readlink(f"/proc/{pid}/fd/1")).name == crew.log_of(rank)
    except OSError:
        return False


def _run(out: Path, watcher: sweep.Silent, more: dict[str, str]) -> Record:
    planned = plan.plan([CFG], OWN | {"reference": "parallel/cfg"} | more)
    swept = sweep.run(planned, out, watcher)
    ((_, record),) = swept.finished
    return record


def test_record_has_the_figures_of_both_ranks(tmp_path: Path) -> None:
    record = _run(tmp_path, sweep.Silent(), {"measure.repeats": "2", "quality.trajectories": "1"})
    assert record.status == "ok", record.reason
    first, second = record.ranks
    assert (first.rank, second.rank) == (0, 1)
    steps = record.generation["steps"]
    for rank in record.ranks:
        assert [len(video) for video in rank.step_s] == [steps] * 2
        assert len(rank.exchange_s) == 2
        assert (rank.peaks["denoise"].resident_bytes or 0) > 2**20
    assert first.step_s == record.step_s
    assert "decode" not in second.peaks  # it is not shared
    assert not list(tmp_path.rglob(together.MEETING))


def test_single_steps_are_timed_on_both_ranks(tmp_path: Path) -> None:
    more = {"measure.unit": "step", "measure.repeats": "3", "weights": "random"}
    record = _run(tmp_path, sweep.Silent(), more)
    assert record.status == "ok", record.reason
    for rank in record.ranks:
        assert [len(steps) for steps in rank.step_s] == [3]
        assert len(rank.exchange_s) == 1
        assert rank.exchange_s[0] < sum(rank.step_s[0])


def test_waiting_for_ranks_between_steps_is_in_no_step() -> None:
    """What another rank does there, such as reading its gauges, takes 0.3 s."""
    session: Any = MagicMock(device="cpu", lead=SimpleNamespace(stepped=lambda *_: time.sleep(0.3)))
    session.recipe.measure = SimpleNamespace(warmup=0, repeats=2)
    session.recipe.variant.cache, session.job.interleaved = None, False
    session.recorder.record = SimpleNamespace(stages={}, facts={}, interleaved="")
    session.stages.peak_since = Peak

    def denoise(_: object, __: object, on_step: Any, steps: int, steady: int) -> None:
        for step in range(steps):
            on_step(step)

    session.denoise = denoise
    found = timing._steps(session)
    assert len(found.step_host_s) == 2
    assert max(found.step_host_s) < 0.3


@pytest.mark.parametrize(
    ("rank", "number", "why"),
    [
        (1, signal.SIGKILL, "rank 1 of 2: the process died of SIGKILL"),
        (0, signal.SIGKILL, "rank 0 of 2: the process died of SIGKILL"),
        (0, UNNAMED, f"rank 0 of 2: the process died of signal {UNNAMED}"),
        (1, UNNAMED, f"rank 1 of 2: the process died of signal {UNNAMED}"),
        (1, signal.SIGSTOP, "rank 1 of 2: no sign of life for 2 s"),
    ],
)
def test_rank_that_dies_or_stops_ends_the_run_and_is_named(
    rank: int, number: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if number == signal.SIGSTOP:
        monkeypatch.setattr(crew, "SILENT_S", 2.0)
    striking = _Striking("steady", rank, number)
    record = _run(tmp_path, striking, {"measure.repeats": "500", "generation.steps": "20"})
    assert record.status == "crashed"
    assert record.reason.startswith(why)
    assert record.stage == "steady"
    assert len(striking.struck) == 2
    assert not list(tmp_path.rglob(together.MEETING))
    assert not [pid for pid in striking.struck if psutil.pid_exists(pid) and not _zombie(pid)]
    if number == signal.SIGSTOP:  # the other one's log tells where it waited
        (log,) = tmp_path.rglob(crew.log_of(0))
        assert "most recent call first" in log.read_text()


def _beating(seconds: str, connection: Connection) -> None:
    """A rank that is alive for so long."""
    connection.send(StageEntered("steady"))
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        connection.send(Beat(0))
        time.sleep(0.1)
    connection.send(RunEnded("ok"))


def test_ranks_are_not_silent_while_the_reference_takes_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep hears nobody then, for as long as that takes."""
    monkeypatch.setattr(crew, "SILENT_S", 1.0)
    both = crew.Crew.__new__(crew.Crew)
    both.lost, both._stage, both._compiles, both._meeting = None, "start", False, tmp_path / "none"
    both._ranks = [crew._Rank(Child(_beating, "4", tmp_path / f"{n}.txt")) for n in (0, 1)]
    heard = []
    for event in both.events(lambda: math.inf):
        heard.append(type(event))
        if isinstance(event, StageEntered):
            time.sleep(2)
    both.end()
    assert both.lost is None
    assert heard == [StageEntered, RunEnded]


def _zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_energy_is_that_of_all_gpus_and_clocks_are_the_slowest_ones() -> None:
    def rank(number: int, energy: list[float], power: float, clock: float) -> RankFigures:
        gauges = Gauges(energy_j=energy, power_w=power, sm_clock_mhz=clock, temperature_c=clock)
        return RankFigures(rank=number, gauges=gauges)

    ranks = [rank(0, [10.0, 20.0], 300.0, 1900.0), rank(1, [1.0, 2.0], 400.0, 1500.0)]
    whole = together.gauges_of_all(ranks)
    assert whole is not None
    assert whole.energy_j == [11.0, 22.0]
    assert (whole.power_w, whole.sm_clock_mhz, whole.temperature_c) == (700.0, 1500.0, 1900.0)
    assert together.gauges_of_all([]) is None
