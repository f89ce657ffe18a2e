"""Which card does a variant fit? From the memory peaks of its stages."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.meters.memory import CONTEXT_BYTES
from qbench.records import Record
from qbench.report import Ranking, label, tables

CARDS_GIB = (6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 80, 96, 141)  # as they are sold
STAGES = ("text_encode", "denoise", "decode")


def smallest(record: Record) -> int | None:
    """The smallest card, in GiB, that holds the largest peak and CUDA's own share.

    From what torch allocated, so a card on which the allocator loses more to fragments than is left
    may still be too small: `measure.memory_limit_gib` simulates one.
    """
    held = record.held_bytes(record.peak())
    if held is None:
        return None
    needed = (held + CONTEXT_BYTES) / 2**30
    return next((size for size in CARDS_GIB if needed <= size), None)


def ladder(ranking: Ranking) -> str:
    """Every variant's peaks by stage and the smallest card for it, the smallest first.

    Empty where no videos were made on a GPU, and where the card was a simulated one already.
    """
    shown = [r for r in ranking.records if r.status == "ok" and r.latency]
    first = ranking.records[0]
    if not shown or first.environment.device != "cuda" or first.recipe.measure.memory_limit_gib:
        return ""
    shown.sort(key=lambda r: r.held_bytes(r.peak()) or 0)
    encoded = first.recipe.weights != "random"
    stages = STAGES if encoded else STAGES[1:]
    rows: list[Sequence[str]] = []
    for record in shown:
        peaks = [record.held_bytes(record.stages[stage].peak) for stage in stages]
        card = smallest(record)
        cells = [tables.bytes_text(peak) for peak in peaks]
        rows.append((label(record, ranking), *cells, f"{card} GB" if card else tables.MISSING))
    context = f"{CONTEXT_BYTES / 2**30:.1f} GiB"
    note = f"Peaks as allocated; a card holds the largest and {context} of CUDA's own."
    if not encoded:
        note += " No text encoder was run: what it needs comes on top where it stays on the card."
    return f"{note}\n\n" + tables.grid(("variant", *stages, "smallest card"), rows)
