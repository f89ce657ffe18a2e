"""What a person sees while a sweep runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from qbench.errors import one_line
from qbench.recipe.schema import Recipe
from qbench.results.record import Record
from qbench.run.events import Event, StageEntered, StepsDone, WorkPlanned

LARGE = 2**30  # bytes of raw videos from which a user is told of them
COLOURS = {"ok": "green", "skipped": "yellow"}


class Progress:
    """Follows the events of `sweep.run`. Quiet says nothing but what went wrong."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._live: Live | None = None
        self._reset()

    def _reset(self) -> None:
        self._stage, self._steps, self._total = "", 0, 0
        self._began, self._stepped = time.monotonic(), 0.0
        self._quarter = 0

    def begin(self, recipe: Recipe, position: int, total: int) -> None:
        self._reset()
        self._head = f"[{position}/{total}] {recipe.name}"
        if self._console.is_terminal and not self._quiet:
            self._live = Live(Text(self._head), console=self._console, refresh_per_second=8)
            self._live.start()
        else:
            self._line(self._head)

    def event(self, recipe: Recipe, event: Event) -> None:
        if isinstance(event, WorkPlanned):
            self._total, self._stepped = event.steps, time.monotonic()
            if event.output_bytes >= LARGE:
                self.note(f"raw videos will take {event.output_bytes / 2**30:.1f} GiB on disk")
        elif isinstance(event, StepsDone):
            self._steps += event.count
        elif isinstance(event, StageEntered):
            changed = event.stage != self._stage.split(":")[0]
            self._stage = event.stage
            if event.done is not None:
                self._stage += f": {event.unit} {event.done}/{event.total}"
            if changed:
                self._plain_line()
        if self._live:
            self._live.update(Text(self._text()))
        elif self._total and (quarter := 4 * self._steps // self._total) > self._quarter:
            self._quarter = quarter
            self._plain_line()

    def note(self, text: str) -> None:
        """A line beside the progress, on a terminal above it; said even when quiet."""
        self._console.print(Text(f"note: {text}"), soft_wrap=True, highlight=False)

    def end(self, record: Record, path: Path, fresh: bool) -> None:
        if self._live:
            self._live.stop()
            self._live = None
        spent = f"{time.monotonic() - self._began:.0f} s"
        if not fresh:
            text = f"{self._head}: complete already, not run again"
        elif record.status == "ok":
            video, step = record.video_seconds(), record.step_seconds()
            text = f"{self._head}: ok in {spent}"
            if video or step:
                text += f", {video:.3g} s a video" if video else f", {step:.3g} s a step"
        else:
            text = f"{self._head}: {record.status}: {record.reason}"
            if record.status not in ("ok", "skipped", "invalid"):
                text += f" (stage {record.stage}; log: {path / 'log.txt'})"
        wrong = record.status not in ("ok", "skipped")
        if not self._quiet or wrong:
            colour = COLOURS.get(record.status, "red")
            self._console.print(Text(one_line(text), style=colour), soft_wrap=True)

    def _text(self) -> str:
        text = f"{self._head}  {self._stage}"
        if self._total:
            text += f"  step {min(self._steps, self._total)}/{self._total}"
            if self._steps:
                rate = (time.monotonic() - self._stepped) / self._steps
                left = max(0, round(rate * (self._total - self._steps)))
                text += f"  {left // 60}:{left % 60:02d} left"
        return text

    def _plain_line(self) -> None:
        if not self._live:
            self._line(self._text())

    def _line(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(one_line(text)), soft_wrap=True)
