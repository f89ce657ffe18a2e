"""The records that a pick rests on: one ranking that answers, and all that says more about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from qbench import textfile
from qbench.decisions import places
from qbench.errors import InputError, nearest
from qbench.results import origin
from qbench.results.ranking import Ranking, rankings
from qbench.results.record import Record

NAMED = 3  # rankings that an error names


@dataclass(frozen=True)
class Evidence:
    """All records at hand, and those of the ranking in which the question is asked."""

    ranking: Ranking
    records: tuple[Record, ...]
    rankings: tuple[Ranking, ...]
    unreadable: tuple[str, ...] = ()  # a line for each record that is not among them


def evidence(
    records: list[Path],
    besides: list[Path],
    model: str | None,
    here: dict[str, object] | None,
    at: str | None = None,
) -> Evidence:
    """The ranking in which the question is asked, and all that may say something about it.

    here: the hardware to which answers are promised; None for that of the records. at: words of
    the ranking's title, such as a size. Raises InputError where no ranking fits, or several do.
    """
    found, unreadable = places.read(records)
    more, others = places.read(besides) if besides else ([], [])
    with places.telling([*unreadable, *others]):
        made = _answering(found, records, model, here, at)
    everything = list({record.run: (path, record) for path, record in [*found, *more]}.values())
    return Evidence(
        made,
        tuple(record for _, record in everything),
        tuple(rankings(everything)),
        (*unreadable, *others),
    )


def _answering(
    found: places.Found,
    records: list[Path],
    model: str | None,
    here: dict[str, object] | None,
    at: str | None,
) -> Ranking:
    if here is not None:  # a card of this name elsewhere is another card
        found = [(path, record) for path, record in found if origin.read(path.parent) is None]
    made = [r for r in rankings(found) if any(_timed(record) for record in r.records)]
    if here is not None:
        made = [r for r in made if r.records[0].environment.hardware() == here]
        if not made:
            raise InputError(
                f"{records[0]}: nothing was measured on this machine ({_machine(here)}); "
                "--records PLACE answers for the machine of those records"
            )
    if model is not None:
        names = {r.records[0].recipe.model for r in made}
        # Records know a folder by its whole path.
        named = {model, str(textfile.resolved(textfile.expanded(model)))}
        made = [r for r in made if r.records[0].recipe.model in named]
        if not made:
            raise InputError(f"--model {model}: no timed records of it{nearest(model, names)}")
    whole = [r for r in made if r.records[0].recipe.measure.memory_limit_gib is None]
    made = _newest(whole or made)
    if not made:
        raise InputError(f"{records[0]}: no timed run is there")
    if at is not None:
        words = re.compile(rf"(?<!\w){re.escape(at)}(?!\w)", re.IGNORECASE)
        fitting = [r for r in made if at and words.search(r.title())]
        if not fitting:
            raise InputError(f"--at {at or repr(at)}: in no ranking's title: {_named(made)}")
        made = fitting
    if len(made) > 1:
        raise InputError(
            f"{len(made)} rankings, name one with --records, --model or --at: {_named(made)}"
        )
    return made[0]


def _named(made: list[Ranking]) -> str:
    told = [f"{r.title()} ({r.folders[0].parent})" for r in made[:NAMED]]
    rest = len(made) - len(told)
    return "; ".join(told) + (f"; and {rest} more" if rest else "")


def _machine(here: dict[str, object]) -> str:
    return f"{here['name']}, {here['threads']} threads" if "threads" in here else str(here["name"])


def _timed(record: Record) -> bool:
    timed = record.latency_s or record.step_s
    return record.status == "ok" and record.recipe.measure.timing and bool(timed)


def _newest(made: list[Ranking]) -> list[Ranking]:
    """Of those that only the software tells apart, the one measured last."""
    kept: dict[tuple[str, ...], Ranking] = {}
    for ranking in made:
        prints = ranking.records[0].fingerprints
        key = (prints.settings, prints.prompts, prints.model, prints.hardware)
        if key not in kept or _last(kept[key]) < _last(ranking):
            kept[key] = ranking
    return list(kept.values())


def _last(ranking: Ranking) -> str:
    return max(record.started for record in ranking.records)
