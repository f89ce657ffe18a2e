"""`qbench pick`: the variant that meets what was asked and is best at the objective.

Bounds decide, not medians: a latency counts with the upper end of its interval, a speed-up with the
lower, a verdict without its question mark. What only the middle of a figure says is *unsettled*,
and is taken for an answer with --accept-unsettled alone. What was not measured is never met.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from qbench.decisions import figures
from qbench.decisions.card import encoded, fits
from qbench.decisions.evidence import Evidence
from qbench.decisions.exporting import export_command
from qbench.decisions.figures import needed_bytes
from qbench.decisions.picked import Asked, Candidate, Criterion, Objective, Picked
from qbench.decisions.tradeoff import gains_and_losses
from qbench.errors import InputError, nearest
from qbench.pipelines import specs
from qbench.quality.means import LEAST
from qbench.quality.statistics import median_interval
from qbench.quality.verdict import ORDER
from qbench.results.ranking import Ranking, label
from qbench.results.record import Record

ANY = "any"
UNKNOWN = 0.2  # how far a demand is missed about which nothing was measured: it may yet be met
OBJECTIVES: tuple[Objective, ...] = ("latency", "memory", "energy")


def asked(
    vram: str | None,
    keep_free: str | None,
    max_latency: str | None,
    min_speed_up: float | None,
    quality: str,
    objective: str,
    accept_unsettled: bool,
) -> Asked:
    """The question as it was typed. Raises InputError."""
    words = [*ORDER, ANY]
    if quality not in words:
        raise InputError(f"--quality: no verdict {quality[:40]!r}{nearest(quality, words)}")
    chosen = next((known for known in OBJECTIVES if known == objective), None)
    if chosen is None:
        raise InputError(f"--objective: no {objective[:40]!r}{nearest(objective, OBJECTIVES)}")
    if min_speed_up is not None and not 0 < min_speed_up < 1e6:
        raise InputError(f"--min-speedup: {min_speed_up} is no speed-up")
    sizes = [
        None if text is None else round(_above(text, figures.BYTES, option, "16GB"))
        for text, option in ((vram, "--vram"), (keep_free, "--keep-free"))
    ]
    seconds = None
    if max_latency is not None:
        seconds = _above(max_latency, figures.SECONDS, "--max-latency", "60s")
    if sizes[1] and not sizes[0]:
        raise InputError("--keep-free: of which card? Give --vram too")
    if sizes[0] and sizes[1] and sizes[1] >= sizes[0]:
        raise InputError(f"--keep-free: {keep_free} leaves nothing of {vram}")
    return Asked(
        vram_bytes=sizes[0],
        kept_free_bytes=sizes[1] or 0,
        max_latency_s=seconds,
        min_speed_up=min_speed_up,
        quality=quality,
        objective=chosen,
        accept_unsettled=accept_unsettled,
    )


def _above(text: str, units: dict[str, float], option: str, example: str) -> float:
    value = figures.number(text, units, option, example)
    if not 0 < value < 1e18:
        raise InputError(f"{option} {text[:40]}: give a size above 0, as in {example}")
    return value


def pick(question: Asked, evidence: Evidence) -> Picked:
    """The answer, with the reasons for it and against the others."""
    ranking = evidence.ranking
    offered = [record for record in ranking.records if not _planted(record)]
    found = [(_candidate(record, question, evidence), record) for record in offered]

    def order(item: tuple[Candidate, Record]) -> tuple[float, str]:
        goal = item[0].goal
        return (goal if goal is not None else float("inf"), item[0].variant)

    taken = [item for item in found if _qualifies(item[0], question)]
    taken.sort(key=order)
    rest = [item for item in found if not _qualifies(item[0], question)]
    rest.sort(key=lambda item: (_distance(item[0]), order(item)))
    gains: list[str] = []
    gives_up: list[str] = []
    if len(taken) > 1:
        gains, gives_up = gains_and_losses(taken[0][1], taken[1][1], evidence.rankings, ranking)
    return Picked(
        asked=question,
        measured=ranking.title(),
        machine=ranking.machine,
        pick=taken[0][0] if taken else None,
        gains=tuple(gains),
        gives_up=tuple(gives_up),
        next=taken[1][0] if len(taken) > 1 else None,
        export=export_command(taken[0][1]) if taken else "",
        nearest=None if taken or not rest else rest[0][0],
        qualify=tuple(candidate for candidate, _ in taken),
        others=tuple(candidate for candidate, _ in rest),
        notes=tuple(_notes(question, evidence)),
    )


def _planted(record: Record) -> bool:
    """Whether it was made to be found out: a fault, or other noise."""
    variant = record.recipe.variant
    return variant.fault is not None or variant.seed_offset > 0


def _qualifies(candidate: Candidate, question: Asked) -> bool:
    if candidate.missed or candidate.goal is None:
        return False
    return question.accept_unsettled or not candidate.unsettled


def _distance(candidate: Candidate) -> tuple[int, float, int]:
    """Nearest first: what misses fewest demands, then by least, then what is only unsettled."""
    missed = candidate.missed
    return len(missed), sum(criterion.by for criterion in missed), len(candidate.unsettled)


# Demands ------------------------------------------------------------------------------------------


def _candidate(record: Record, question: Asked, evidence: Evidence) -> Candidate:
    name = label(record, evidence.ranking)
    if record.status != "ok":
        said = f"{record.status}: {record.reason}"
        ran = Criterion(name="ran", result="missed", said=said, by=10.0)
        return Candidate(variant=name, run=record.run, criteria=(ran,), goal=None)
    goal = _goal(record, question, evidence.ranking)
    criteria = [
        *_latency(record, question, evidence.ranking),
        *_speed_up(record, question, evidence.ranking),
    ]
    if question.vram_bytes:
        free = question.kept_free_bytes
        criteria.append(fits(record, evidence.records, question.vram_bytes, free))
    if question.quality != ANY:
        criteria.append(_quality(record, question.quality, evidence))
    if goal is None:
        said = f"its {question.objective} was never measured"
        criteria.append(Criterion(name="objective", result="missed", said=said))
    elif few := _few(record, question):
        said = f"ordered by its {question.objective}, n = {few}: no interval"
        criteria.append(Criterion(name="objective", result="unsettled", said=said))
    return Candidate(variant=name, run=record.run, criteria=tuple(criteria), goal=goal)


def seconds(record: Record, ranking: Ranking) -> tuple[float | None, float | None, float | None]:
    """A video's low, shown and high seconds; low and high None where samples are too few.

    Where it took turns with the reference both the run's own samples and the seconds of its pairs
    count, whichever reach further.
    """
    shown = ranking.timing(record)
    value = shown.video_s
    if value is None:
        return None, None, None
    import numpy as np

    samples = record.latency_s
    low, high = median_interval(np.asarray(samples, dtype=np.float64))
    ratio = shown.speed_up
    if low is None or high is None:
        return None, max(value, *samples), None
    if ratio is not None and ratio.interleaved and ratio.low > 0:
        whole = value * ratio.value  # the reference's median
        low, high = min(low, whole / ratio.high), max(high, whole / ratio.low)
    return max(low, 0.0), value, high


def _latency(record: Record, question: Asked, ranking: Ranking) -> list[Criterion]:
    most = question.max_latency_s
    if most is None:
        return []
    low, value, high = seconds(record, ranking)
    if value is None:
        return [Criterion(name="latency", result="missed", said="no whole video was timed")]
    text, wanted = f"{value:.3g} s", f"{most:.3g} s"
    if low is None or high is None:
        n = len(record.latency_s)
        text = f"{text}, the slowest of {n}" if n > 1 else f"{text}, n = 1"
        if value <= most:
            said = f"{text}, of {wanted}: no interval"
            return [Criterion(name="latency", result="unsettled", said=said)]
        said = f"{text}, not {wanted}"
        return [Criterion(name="latency", result="missed", said=said, by=value / most - 1)]
    text += f" [{low:.3g}, {high:.3g}]"
    if high <= most:
        return [Criterion(name="latency", result="met", said=f"{text}, of {wanted}")]
    if value <= most:
        said = f"{text}: may be above {wanted}"
        return [Criterion(name="latency", result="unsettled", said=said)]
    said = f"{text}, not {wanted}"
    return [Criterion(name="latency", result="missed", said=said, by=value / most - 1)]


def _speed_up(record: Record, question: Asked, ranking: Ranking) -> list[Criterion]:
    least = question.min_speed_up
    if least is None:
        return []
    reference = record is ranking.reference
    ratio = ranking.timing(record).speed_up
    if ratio is None and not reference:
        return [Criterion(name="speed-up", result="missed", said="none was measured")]
    value = 1.0 if ratio is None else ratio.value
    few = ratio is None or (ratio.n is not None and ratio.n < LEAST) or ratio.correlated
    text = f"{value:.2f}x"
    if ratio is not None and not few:
        text += f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    if value < least:
        said = f"{text}, not {least:g}x"
        return [Criterion(name="speed-up", result="missed", said=said, by=1 - value / least)]
    if ratio is not None and not few and ratio.low >= least and ratio.interleaved is not False:
        return [Criterion(name="speed-up", result="met", said=f"{text}, of {least:g}x")]
    why = "no interval"
    if ratio is not None and not few:
        why = "did not take turns" if ratio.interleaved is False else f"may be below {least:g}x"
    said = f"{text}, of {least:g}x: {why}"
    return [Criterion(name="speed-up", result="unsettled", said=said)]


def _quality(record: Record, wanted: str, evidence: Evidence) -> Criterion:
    """The verdict of this ranking; else, unsettled, one that the variant got elsewhere."""
    if record is evidence.ranking.reference:
        return Criterion(name="quality", result="met", said="is what the others are compared with")
    text = _judged(record, evidence.ranking)
    where = ""
    if text is None:
        elsewhere = _elsewhere(record, evidence.rankings)
        if elsewhere is None:
            return Criterion(
                name="quality", result="missed", said="no verdict was measured", by=UNKNOWN
            )
        text, where = elsewhere
    verdict = text.rstrip("?")
    said = f"{text}{where}"
    if ORDER.index(verdict) < ORDER.index(wanted):
        by = (ORDER.index(wanted) - ORDER.index(verdict)) / len(ORDER)
        return Criterion(name="quality", result="missed", said=f"{said}, not {wanted}", by=by)
    if text.endswith("?") or where:
        return Criterion(name="quality", result="unsettled", said=said)
    return Criterion(name="quality", result="met", said=said)


def _judged(record: Record, ranking: Ranking) -> str | None:
    judged = ranking.judged.get(record.run)
    return None if judged is None else judged.text


def _elsewhere(record: Record, known: Sequence[Ranking]) -> tuple[str, str] | None:
    """The same variant's verdict in another ranking, the worst of the nearest model.

    Nearest is this model, then one whose denoiser is of its kind: what a scheme leaves alone, and
    so what it costs, is not the same in a UNet.
    """
    found: list[tuple[bool, bool, int, str, str]] = []
    for ranking in known:
        for other in ranking.records:
            text = _judged(other, ranking)
            if text is None or other.recipe.variant != record.recipe.variant:
                continue
            same = other.recipe.model == record.recipe.model
            where = f" of {other.recipe.model}"
            if same:
                where += " in another measurement"
            rank = ORDER.index(text.rstrip("?"))
            unlike = specs.unlike(other.recipe.model, record.recipe.model)
            found.append((not same, unlike, rank, text, where))
    return None if not found else min(found)[3:]


def _goal(record: Record, question: Asked, ranking: Ranking) -> float | None:
    """What the objective orders by: the upper bound, or the figure where there is none."""
    if question.objective == "memory":
        held = needed_bytes(record)
        return None if held is None else float(held)
    if question.objective == "energy":
        return record.gauges.mean_energy_j() if record.gauges else None
    if question.objective != "latency":
        assert_never(question.objective)
    shown = ranking.timing(record)
    if shown.video_s is None:
        return shown.step_s
    _, value, high = seconds(record, ranking)
    return value if high is None else high


def _few(record: Record, question: Asked) -> int:
    """The samples that the objective orders by, where they are too few for an interval; else 0."""
    if question.objective == "memory" or (
        question.objective == "latency" and question.max_latency_s is not None
    ):
        return 0  # a peak has no samples; of a latency that was asked for it is said already
    name = "energy" if question.objective == "energy" else "latency"
    n = len(figures.OWN[name].samples(record) or figures.OWN["step"].samples(record))
    return n if n < LEAST else 0


def _notes(question: Asked, evidence: Evidence) -> list[str]:
    ranking = evidence.ranking
    first = ranking.records[0]
    said = []
    if question.vram_bytes and not any(encoded(r) for r in ranking.records if r.status == "ok"):
        said.append(
            "no text encoder ran here: what it needs on the card comes on top, --keep-free SIZE"
        )
    if question.vram_bytes and first.environment.device == "cpu":
        said.append("on a CPU memory is that of the whole process, its libraries included")
    if first.recipe.measure.unit == "step":
        said.append("only denoise steps were timed here, and no whole video")
    if not question.accept_unsettled:
        said.append("bounds decided; --accept-unsettled takes what only the figures say")
    return said
