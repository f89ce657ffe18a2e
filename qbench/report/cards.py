"""Which card does a variant fit? From the memory peaks of its stages."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.meters.memory import CONTEXT_BYTES
from qbench.report import tables
from qbench.results.ranking import Ranking
from qbench.results.record import VIDEO_STAGES

CARDS_GIB = (6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141)  # as they are sold


def smallest(size: int | None) -> int | None:
    """The smallest card, in GiB, that holds so many bytes of torch's and CUDA's own besides."""
    if size is None:
        return None
    needed = (size + CONTEXT_BYTES) / 2**30
    return next((card for card in CARDS_GIB if needed <= card), None)


def ladder(ranking: Ranking) -> str:
    """Every variant's peaks by stage and which card it fits, the smallest first.

    Empty where no videos were made on a GPU, where the card was a simulated one already, and where
    the smallest card surely holds every variant.
    """
    shown = [r for r in ranking.records if r.status == "ok" and r.latency]
    first = ranking.records[0]
    if not shown or first.environment.device != "cuda" or first.recipe.measure.memory_limit_gib:
        return ""
    if all(smallest(r.peak().reserved_bytes) == CARDS_GIB[0] for r in shown):
        return ""
    shown.sort(key=lambda r: r.held_bytes(r.peak()) or 0)
    encoded = first.recipe.weights != "random"
    stages = VIDEO_STAGES if encoded else VIDEO_STAGES[1:]
    rows: list[Sequence[str]] = []
    for record in shown:
        peaks = [
            record.held_bytes(record.stages[stage].peak) if stage in record.stages else None
            for stage in stages
        ]
        whole = record.peak()
        cards = [smallest(size) for size in (record.held_bytes(whole), whole.reserved_bytes)]
        rows.append(
            (
                tables.named(record, ranking),
                *(tables.bytes_text(peak) for peak in peaks),
                *(f"{card} GB" if card else tables.MISSING for card in cards),
            )
        )
    note = (
        "Peaks as allocated. No card below *at least* holds the largest beside the "
        f"{CONTEXT_BYTES / 2**30:.1f} GiB of CUDA's own; *surely* holds all that torch reserved "
        "here, fragments included. Between the two only a try tells, or a card simulated by "
        "`measure.memory_limit_gib`."
    )
    if not encoded:
        note += " No text encoder was run: what it needs comes on top where it stays on the card."
    return f"{note}\n\n" + tables.grid(("variant", *stages, "at least", "surely"), rows)
