"""Records that a decision is about, from the places that a user named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qbench import textfile
from qbench.errors import MOST_MISTAKES, InputError
from qbench.results import archive, store
from qbench.results.ranking import Ranking, rankings
from qbench.results.record import Record

Found = list[tuple[Path, Record]]


@dataclass(frozen=True)
class Side:
    """What one place holds. rankings: of all that lies there, and beside a run that was named."""

    place: str
    records: tuple[Record, ...]  # those that were named, the latest last
    rankings: tuple[Ranking, ...]
    unreadable: tuple[str, ...]

    def ranking(self, record: Record) -> Ranking | None:
        own = record.fingerprints.ranking()
        return next((r for r in self.rankings if r.records[0].fingerprints.ranking() == own), None)

    def verdict(self, record: Record) -> str | None:
        """As reports show it, "reference" of the reference itself; None where there is none."""
        ranking = self.ranking(record)
        if ranking is None:
            return None
        if ranking.reference is not None and ranking.reference.run == record.run:
            return "reference"
        judged = ranking.judged.get(record.run)
        return judged.text if judged else None


def side(place: Path) -> Side:
    """A run, a folder of runs, a record or an archive. Raises InputError where there is nothing."""
    found, unreadable = read([place])
    beside = found
    if _one(place) and len(found) == 1:
        ((path, named),) = found
        beside = store.read_all(store.siblings(path), compact=True)[0]
        beside = [item for item in beside if item[1].run != named.run] + found
    ordered = sorted((record for _, record in found), key=lambda record: record.started)
    return Side(str(place), tuple(ordered), tuple(rankings(beside)), tuple(unreadable))


def _one(place: Path) -> bool:
    return (
        archive.is_run(place)
        or not textfile.is_folder(place)
        or textfile.is_file(place / store.FILE)
    )


def left_out(unreadable: Sequence[str]) -> list[str]:
    """A line for each record that could not be read; of many, the first ones."""
    lines = [f"left out: {line}" for line in unreadable[:MOST_MISTAKES]]
    more = len(unreadable) - len(lines)
    return [*lines, f"left out: {more} more"] if more else lines


@contextmanager
def telling(unreadable: Sequence[str]) -> Iterator[None]:
    """Where the block finds too little, say what could not be read as well: it may be that."""
    try:
        yield
    except InputError as error:
        raise InputError(*error.lines, *left_out(unreadable)) from None


def read(places: list[Path]) -> tuple[Found, list[str]]:
    """All records at or below the places, and a line for each that cannot be read.

    Raises InputError where a place is not there, or no record can be read.
    """
    found, unreadable = store.read_all(store.find(places), compact=True)
    if not found:
        raise InputError(unreadable[0] if unreadable else f"{places[0]}: no records in it")
    return found, unreadable
