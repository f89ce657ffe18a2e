"""What one variant gains on another, and what it gives up for it."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.decisions import figures
from qbench.decisions.changes import changes
from qbench.decisions.compare_text import ratio_text
from qbench.decisions.compared import Pair
from qbench.decisions.differences import qualities, times
from qbench.pipelines import specs
from qbench.quality.verdict import ORDER
from qbench.results.ranking import Ranking
from qbench.results.record import Record

WORTH = 0.01  # share of a peak, a size or an energy that is worth a word


def gains_and_losses(
    best: Record, other: Record, known: Sequence[Ranking], ranking: Ranking
) -> tuple[list[str], list[str]]:
    """What `best` is better and worse at than `other`: time, sizes, verdict, metrics."""
    gains: list[str] = []
    losses: list[str] = []
    pair = Pair(other, best, (other,), (best,), changes(other, best))
    (time,) = times([pair])
    if time is not None:
        before, after = (figures.OWN[time.figure].text(x) for x in (time.before_s, time.after_s))
        said = f"{time.figure} {after} for {before}, {ratio_text(time.speed)}, {time.word}"
        (gains if time.speed.value >= 1 else losses).append(said)
    for name in figures.SIZES:
        figure = figures.OWN[name]
        ours, theirs = figure.value(best), figure.value(other)
        if ours is None or theirs is None or abs(ours - theirs) <= WORTH * abs(theirs):
            continue
        said = f"{name.replace('_', ' ')} {figure.text(ours)} for {figure.text(theirs)}"
        (gains if ours < theirs else losses).append(said)
    for won, said in _quality(best, other, [ranking, *known]):
        (gains if won else losses).append(said)
    return gains, losses


def _quality(best: Record, other: Record, known: Sequence[Ranking]) -> list[tuple[bool, str]]:
    """Verdict and metrics, of the first ranking in which both variants were judged.

    Those of a model whose denoiser is of another kind come last.
    """
    model = best.recipe.model
    for ranking in sorted(known, key=lambda r: specs.unlike(r.records[0].recipe.model, model)):
        ours, theirs = (_same_variant(record, ranking) for record in (best, other))
        if ours is None or theirs is None:
            continue
        where = "" if ours.recipe.model == best.recipe.model else f" of {ours.recipe.model}"
        found = []
        a, b = (ranking.judged.get(record.run) for record in (ours, theirs))
        if a and b and a.verdict != b.verdict:
            won = ORDER.index(a.verdict) > ORDER.index(b.verdict)
            found.append((won, f"verdict {a.text} for {b.text}{where}"))
        (measured,) = qualities([Pair(theirs, ours, (theirs,), (ours,), ())], {})
        for q in measured:
            if q.word in ("better", "worse"):
                told = f"{q.metric} {q.after:.4g} for {q.before:.4g}{where}"
                found.append((q.word == "better", told))
        return found
    return []


def _same_variant(record: Record, ranking: Ranking) -> Record | None:
    """This variant's record in the ranking, the reference among them, if it has quality."""
    for other in ranking.records:
        if other.status == "ok" and other.quality and other.recipe.variant == record.recipe.variant:
            return other
    return None
