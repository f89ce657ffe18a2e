"""How fast each kind of device works and how long runs take to start there, from what was seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median_low


@dataclass
class _Kind:
    prior: float  # work a second beside other kinds, by what its hardware can do at most
    work: float = 0.0
    seconds: float = 0.0
    starts: list[float] = field(default_factory=list)  # seconds for one that is thought to take 1
    start: float | None = None  # of those the lower middle one: a first finds nothing in any cache


class Speeds:
    """Of all kinds of devices. A kind of which nothing is known yet goes by the others."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def expect(self, kind: str, prior: float) -> None:
        """prior: its speed beside other kinds, as far as is known before anything has run."""
        self._kinds.setdefault(kind, _Kind(prior))

    def kinds(self) -> list[str]:
        return list(self._kinds)

    def saw_work(self, kind: str, work: float, seconds: float) -> None:
        found = self._kinds[kind]
        found.work += work
        found.seconds += seconds

    def saw_start(self, kind: str, thought: float, seconds: float) -> None:
        """thought: the work that a device was believed to do in that time."""
        found = self._kinds[kind]
        found.starts.append(seconds / thought)
        found.start = median_low(found.starts)

    def rate(self, kind: str) -> float:
        """Work that a device does in a second; by its prior before anything has ended there."""
        found = self._kinds[kind]
        if found.seconds:
            return found.work / found.seconds
        known = [other for other in self._kinds.values() if other.seconds]
        if not known:
            return found.prior
        done = sum(other.work for other in known)
        return found.prior * done / sum(other.prior * other.seconds for other in known)

    def starting(self, kind: str, thought: float) -> float:
        """Work that a device does while a run starts that was `thought` to take as much.

        A start is a time and no work: it depends on disks and libraries, hardly on devices.
        """
        known = self._kinds[kind].start
        if known is None:
            others = [other.start for other in self._kinds.values() if other.start is not None]
            if not others:
                return thought
            known = median_low(others)
        return thought * known * self.rate(kind)
