"""What an error means for a run: its status, and its reason in one line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from qbench.errors import InputError, LoadError, Unsupported
from qbench.results.record import Status
from qbench.units import bytes_text

LITTLE_BYTES = 0.1 * 2**30  # in fragments, of which nothing is said


@dataclass(frozen=True)
class Failure:
    """How a run ended. `facts` are figures for the record, such as the memory it needed."""

    status: Status
    reason: str
    facts: dict[str, float] = field(default_factory=dict)
    expected: bool = False  # the reason says all; a traceback would tell nothing more


def understood(error: Exception) -> Failure:
    """Only what this machine cannot do is skipped; input that is wrong has failed."""
    if isinstance(error, Unsupported):
        return Failure("skipped", one_line(str(error)), expected=True)
    if isinstance(error, (InputError, LoadError)):
        return Failure("failed", one_line(", and ".join(str(error).splitlines())), expected=True)
    if out_of_memory(error):
        facts = needed_bytes(error)
        return Failure("oom", memory_reason(error, facts), facts)
    return Failure("failed", named(error))


def one_line(text: str, length: int = 500) -> str:
    return " ".join(text.split())[:length]


def named(error: BaseException) -> str:
    """The error's type and message in one line."""
    return one_line(f"{type(error).__name__}: {error}")


def out_of_memory(error: BaseException) -> bool:
    words = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in words
        or "can't allocate memory" in words
        or "failed to allocate memory" in words
    )


def needed_bytes(error: BaseException) -> dict[str, float]:
    """What was in use and what was asked for beyond it, where a GPU's allocator said so.

    And what lay free in pieces, none of which was large enough.
    """
    size, units = r"([\d.]+) (KiB|MiB|GiB)", {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

    def stated(pattern: str) -> float | None:
        match = re.search(pattern, str(error))
        return float(match[1]) * units[match[2]] if match else None

    asked = stated(f"Tried to allocate {size}")
    held = stated(f"allocated memory {size} is allocated by PyTorch")
    if asked is None or held is None:
        return {}
    fragments = stated(f"{size} is reserved by PyTorch but unallocated") or 0.0
    return {"needed_bytes": asked + held, "fragments_bytes": fragments}


def memory_reason(error: BaseException, facts: dict[str, float]) -> str:
    if "needed_bytes" not in facts:
        return named(error)
    message = ". ".join(str(error).split(". ")[:2])  # past that torch gives advice
    text = f"needed {bytes_text(facts['needed_bytes'])} at once"
    if (lost := facts["fragments_bytes"]) >= LITTLE_BYTES:
        text += f", with {bytes_text(lost)} more lost to fragments"
    return f"{text}: {one_line(message)}"
