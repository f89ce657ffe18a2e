"""What a person sees while a sweep runs: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from qbench import units
from qbench.errors import one_line
from qbench.recipe.schema import Recipe
from qbench.results.record import Record
from qbench.run import folders
from qbench.run.events import Event, Placed, StageEntered, StepsDone, WorkPlanned

LARGE = 2**30  # bytes of raw videos from which a user is told of them
COLOURS = {"ok": "green", "skipped": "yellow"}


class _Line:
    """How far one run is."""

    def __init__(self, head: str) -> None:
        self.head, self.where = head, ""
        self.stage, self.steps, self.total = "", 0, 0
        self.began, self._stepped = time.monotonic(), 0.0
        self._quarter = 0

    def hear(self, event: Event) -> bool:
        """Whether it is worth a line where lines stay."""
        if isinstance(event, Placed):
            self.where = event.where
        elif isinstance(event, WorkPlanned):
            self.total, self._stepped = event.steps, time.monotonic()
        elif isinstance(event, StepsDone):
            self.steps += event.count
        elif isinstance(event, StageEntered):
            changed = event.stage != self.stage.split(":")[0]
            self.stage = event.stage
            if event.done is not None:
                self.stage += f": {event.unit} {event.done}/{event.total}"
            return changed
        if self.total and (quarter := 4 * self.steps // self.total) > self._quarter:
            self._quarter = quarter
            return True
        return False

    def text(self) -> str:
        text = f"{self.head}  {self.stage}"
        if self.total:
            text += f"  step {min(self.steps, self.total)}/{self.total}"
            if self.steps:
                rate = (time.monotonic() - self._stepped) / self.steps
                left = max(0, round(rate * (self.total - self.steps)))
                text += f"  {left // 60}:{left % 60:02d} left"
        return f"{text}  on {self.where}" if self.where else text


def _key(recipe: Recipe) -> tuple[str, str]:
    """Recipes of several models may each have a reference of one name."""
    return recipe.name, recipe.settings_fingerprint()


class Progress:
    """Follows the events of a sweep's runs, one at a time or many. Quiet says only what went wrong.

    On a terminal every run that goes on has a line of its own, below what stays.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._live: Live | None = None
        self._lines: dict[tuple[str, str], _Line] = {}
        self._lock = threading.RLock()  # runs on a cluster are heard in threads of their own

    def begin(self, recipe: Recipe, position: int, total: int) -> None:
        with self._lock:
            head = f"[{position}/{total}] {recipe.name}" if position else recipe.name
            self._lines[_key(recipe)] = _Line(head)
            if not self._console.is_terminal or self._quiet:
                self._line(head)
                return
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=8)
                self._live.start()
            self._show()

    def event(self, recipe: Recipe, event: Event) -> None:
        with self._lock:
            line = self._lines[_key(recipe)]
            tell = line.hear(event)
            if isinstance(event, WorkPlanned) and event.output_bytes >= LARGE:
                self.note(f"raw videos will take {units.bytes_text(event.output_bytes)} on disk")
            if self._live:
                self._show()
            elif tell:
                self._line(line.text())

    def note(self, text: str) -> None:
        """A line beside the progress, on a terminal above it; said even when quiet."""
        self._console.print(Text(f"note: {text}"), soft_wrap=True, highlight=False)

    def dropped(self, recipe: Recipe) -> None:
        with self._lock:
            self._lines.pop(_key(recipe), None)
            self._show()

    def end(self, record: Record, path: Path, fresh: bool) -> None:
        with self._lock:
            line = self._lines.pop(_key(record.recipe))
            self._show()
        spent = f"{time.monotonic() - line.began:.0f} s"
        if not fresh:
            text = f"{line.head}: complete already, not run again"
        elif record.status == "ok":
            video, step = record.video_seconds(), record.step_seconds()
            text = f"{line.head}: ok in {spent}"
            if video or step:
                text += f", {video:.3g} s a video" if video else f", {step:.3g} s a step"
                if record.paired_reference_s:  # the machine may be slower than it was for others
                    beside = statistics.median(record.paired_reference_s)
                    text += f" (the reference beside it: {beside:.3g} s)"
        else:
            text = f"{line.head}: {record.status}: {record.reason}"
            if record.status not in ("ok", "skipped", "invalid"):
                log = folders.log_of(record, path)
                text += f" (stage {record.stage}" + (f"; log: {log})" if log else ")")
        wrong = record.status not in ("ok", "skipped")
        if not self._quiet or wrong:
            colour = COLOURS.get(record.status, "red")
            self._console.print(Text(one_line(text), style=colour), soft_wrap=True)

    def _show(self) -> None:
        """On a terminal, the lines of what goes on; none once nothing does."""
        if self._live is None:
            return
        if self._lines:
            shown = list(self._lines.values())
            most = max(1, self._console.height - 2)
            texts = [one_line(line.text()) for line in shown[:most]]
            if len(shown) > most:
                texts.append(f"and {len(shown) - most} more")
            self._live.update(Text("\n".join(texts), no_wrap=True, overflow="ellipsis"))
        else:
            self._live.update(Text(""))
            self._live.stop()
            self._live = None

    def _line(self, text: str) -> None:
        if not self._quiet:
            self._console.print(Text(one_line(text)), soft_wrap=True)
