"""Errors that are the user's to mend, or the machine's to explain; both print as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MOST_MISTAKES = 20  # lines; a file with more is no recipe


class InputError(Exception):
    """Bad input: what is wrong, where, and the nearest valid choice. Exit code 2.

    A line for each mistake.
    """

    @property
    def lines(self) -> tuple[str, ...]:
        """The mistakes, one each."""
        return tuple(map(str, self.args))

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Mistakes:
    """Keeps what is wrong until all was looked at: who mends a file mends it once."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}  # in order, each once: recipes share bases and options

    @property
    def count(self) -> int:
        return len(self._lines)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """An InputError of what stands below is kept and not raised."""
        try:
            yield
        except InputError as error:
            self.add(*error.lines)

    def add(self, *lines: str) -> None:
        self._lines |= dict.fromkeys(lines)

    def and_also(self, *lines: str) -> InputError:
        """All that was kept and what nothing can go on after, to be raised."""
        self.add(*lines)
        told = list(self._lines)
        if len(told) > MOST_MISTAKES:
            told[MOST_MISTAKES:] = [f"and {len(told) - MOST_MISTAKES} more"]
        return InputError(*told)

    def tell(self) -> None:
        """Raises InputError with all that was kept, if anything was."""
        if self._lines:
            raise self.and_also()


class LoadError(Exception):
    """A model's files cannot be loaded. Becomes a `failed` record with this reason, exit code 1."""


class Unsupported(Exception):
    """This machine cannot run the variant. Becomes a `skipped` record with this reason."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """'; did you mean X?' for the closest choice, else the choices themselves."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word[:100], choices, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not choices:
        return ""
    shown = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
    return f"; one of: {shown}"


def one_line(text: object, most: int = 2000) -> str:
    """The text on one line for a terminal: no escape sequences, and no more than `most` characters.

    Names and reasons come from files and model folders, which anybody may have written.
    """
    words = " ".join(str(text).split())
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return shortened(plain, most)


def brief(value: object, most: int = 60) -> str:
    """A value as Python writes it, cut where it is long."""
    return shortened(repr(value), most)


def shortened(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 4] + " ..."
