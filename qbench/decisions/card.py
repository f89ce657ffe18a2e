"""Does a variant fit a card? From peaks, from cards that were simulated, and from real ones."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.decisions.figures import needed_bytes
from qbench.decisions.picked import Criterion
from qbench.meters.memory import CONTEXT_BYTES
from qbench.report import tables
from qbench.results.record import VIDEO_STAGES, Record

LEAST_BY = 0.3  # how far what ran out of memory is from fitting, where its peaks say less
SHAPE = ("frames", "height", "width")  # of a video, which memory depends on; steps it does not


def fits(record: Record, evidence: Sequence[Record], card: int, kept_free: int) -> Criterion:
    """Whether a card of so many bytes holds the variant, less what is to be kept free.

    What ran out of memory on a card at least as large does not fit; what ran on one that is no
    larger does, simulated or real. Else peaks decide: all that torch reserved fits for certain,
    less than what it allocated does not, and between the two only a try tells.
    """
    room = card - kept_free
    same = [r for r in evidence if alike(r, record)]
    needs = _needs(record)
    ran_out = [r for r in same if r.status == "oom" and room <= _card(r)]
    if ran_out:
        other = min(ran_out, key=_card)
        said = f"out of memory in {other.stage or 'its run'} on {_named(other)}"
        by = max(((bounds(record)[1] or 0) - room) / room, LEAST_BY)
        return Criterion(name="vram", result="missed", said=f"{needs}; {said}", by=by)
    ran = [r for r in same if r.status == "ok" and _card(r) <= room]
    if ran:
        largest = max(ran, key=_card)
        return Criterion(name="vram", result="met", said=f"{needs}; ran on {_named(largest)}")
    least, most = bounds(record)
    if least is None or most is None:
        return Criterion(name="vram", result="missed", said="its peak was never measured")
    if most <= room:
        return Criterion(name="vram", result="met", said=needs)
    if least > room:
        over = (least - room) / room if room > 0 else 1.0
        short = tables.bytes_text(least - room)
        return Criterion(name="vram", result="missed", said=f"{needs}: {short} too much", by=over)
    said = f"{needs}: only a try tells, with --set measure.memory_limit_gib={room / 2**30:g}"
    return Criterion(name="vram", result="missed", said=said, by=0.0)


def alike(one: Record, other: Record) -> bool:
    """Whether what one needs is what the other needs: the same variant of the same videos."""
    return (
        one.recipe.variant == other.recipe.variant
        and one.recipe.model == other.recipe.model
        and one.recipe.weights == other.recipe.weights
        and one.environment.device == other.environment.device
        and one.recipe.measure.unit == other.recipe.measure.unit
        and _shape(one) == _shape(other)
    )


def _shape(record: Record) -> tuple[object, ...]:
    """As generated; of a run that came to nothing, as its recipe says."""
    asked = record.recipe.generation.model_dump()
    return tuple(record.generation.get(name, asked[name]) for name in SHAPE)


def bounds(record: Record) -> tuple[int | None, int | None]:
    """Bytes of a card that are needed at least, and that are enough for certain."""
    least = needed_bytes(record)
    if record.environment.device == "cpu" or record.recipe.variant.engine:
        return least, least
    reserved = record.peak().reserved_bytes
    extra = CONTEXT_BYTES
    return (
        None if least is None else least + extra,
        None if reserved is None else reserved + extra,
    )


def _needs(record: Record) -> str:
    least, most = bounds(record)
    if least == most:
        return f"needs {tables.bytes_text(most)}"
    return f"needs {tables.bytes_text(least)} to {tables.bytes_text(most)}"


def _card(record: Record) -> float:
    limit = record.recipe.measure.memory_limit_gib
    return limit * 2**30 if limit else record.environment.device_memory_bytes


def _named(record: Record) -> str:
    if limit := record.recipe.measure.memory_limit_gib:
        return f"a card of {limit:g} GiB, simulated"
    return record.environment.device_name


def encoded(record: Record) -> bool:
    """Whether the text encoder ran, so that what it needs is in the peak."""
    return VIDEO_STAGES[0] in record.stages and record.recipe.weights != "random"
