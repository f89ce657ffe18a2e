"""What a pick holds, as `--json` writes it."""

from __future__ import annotations

from typing import Literal

from qbench.results.record import Strict

Result = Literal["met", "unsettled", "missed"]
Objective = Literal["latency", "memory", "energy"]


class Asked(Strict):
    """The question. Bytes and seconds; null where it was left out."""

    vram_bytes: int | None
    kept_free_bytes: int
    max_latency_s: float | None
    min_speed_up: float | None
    quality: str
    objective: Objective
    accept_unsettled: bool


class Criterion(Strict):
    """One demand and one variant. by: how far it is missed, as a share of what was asked."""

    name: Literal["ran", "latency", "speed-up", "vram", "quality", "objective"]
    result: Result
    said: str
    by: float = 1.0


class Candidate(Strict):
    """A variant held against all demands. goal: what the objective orders by; smaller is better."""

    variant: str
    run: str
    criteria: tuple[Criterion, ...]
    goal: float | None

    @property
    def missed(self) -> tuple[Criterion, ...]:
        return tuple(c for c in self.criteria if c.result == "missed")

    @property
    def unsettled(self) -> tuple[Criterion, ...]:
        return tuple(c for c in self.criteria if c.result == "unsettled")


class Picked(Strict):
    """The answer. `pick` is null where nothing qualifies; `nearest` then misses the least."""

    asked: Asked
    measured: str  # the ranking's title
    machine: str
    pick: Candidate | None
    gains: tuple[str, ...]  # against the next
    gives_up: tuple[str, ...]
    next: Candidate | None
    export: str
    nearest: Candidate | None
    qualify: tuple[Candidate, ...]
    others: tuple[Candidate, ...]
    notes: tuple[str, ...]
