"""What a cache leaves to compute of the videos of a run, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from qbench.meters.flops import Work
    from qbench.optimizations.caching import Cached
    from qbench.optimizations.caching.computed import Computed, Share


class Computing:
    """Collects what the cache's counter saw, from the last `clear` on."""

    def __init__(self, cached: Cached, work: Work | None) -> None:
        self._cached, self._work = cached, work
        self._seen: list[tuple[int, list[Share]]] = []  # videos of each batch, and its steps

    def follow(self, said: Callable[[int], None], videos: int) -> Callable[[int], None]:
        """Of a batch of videos that begins now: a step's callback that notes its share, too."""
        counter = self._cached.counter
        steps: list[Share] = []
        counter.mark()
        self._seen.append((videos, steps))

        def on_step(step: int) -> None:
            steps.append(counter.mark())
            said(step)

        return on_step

    def clear(self) -> None:
        """What came before is not to be counted."""
        self._seen.clear()

    def summed(self) -> Computed | None:
        """As the record has it; None where there was no video."""
        from qbench.optimizations.caching import computed

        attention = computed.attention_share(self._work, self._cached.counter.attention_names)
        return computed.summed(self._seen, attention, self._cached.library, self._cached.ratios)
