"""Lists of numbers that stay on disk: they are most of a record, and few are looked at twice."""

from __future__ import annotations

import contextlib
import os
import tempfile
import typing
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class Samples(Sequence[float]):
    """A list of numbers that is read when it is used. read: so many doubles from a place on."""

    __slots__ = ("_n", "_read", "_start")

    def __init__(self, read: Callable[[int, int], bytes], start: int, n: int) -> None:
        self._read, self._start, self._n = read, start, n

    def _all(self) -> array[float]:
        found = array("d")
        found.frombytes(self._read(self._start, self._n))
        return found

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[float]:
        return iter(self._all())

    @typing.overload
    def __getitem__(self, place: int) -> float: ...

    @typing.overload
    def __getitem__(self, place: slice) -> array[float]: ...

    def __getitem__(self, place: int | slice) -> float | array[float]:
        return self._all()[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __array__(
        self, dtype: np.dtype[np.float64] | None = None, copy: bool | None = None
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        import numpy as np

        return np.array(self._all(), dtype=dtype)


class Spool:
    """The numbers of many records, in a file that has no name and goes with this process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._waiting = array("d")
        self._end = 0  # numbers that are in the file

    def add(self, numbers: array[float]) -> Samples:
        """These, as they can be read from now on."""
        start = self._end + len(self._waiting)
        self._waiting.extend(numbers)
        return Samples(self._read, start, len(numbers))

    def write(self) -> None:
        """Put what was added into the file; where that has no room it stays in memory."""
        text, place = memoryview(self._waiting.tobytes()), 8 * self._end
        with contextlib.suppress(OSError):
            while text:
                written = os.pwrite(self._file.fileno(), text, place)
                text, place = text[written:], place + written
            self._end += len(self._waiting)
            self._waiting = array("d")

    def _read(self, start: int, n: int) -> bytes:
        if start >= self._end:
            return self._waiting[start - self._end : start - self._end + n].tobytes()
        return os.pread(self._file.fileno(), 8 * n, 8 * start)
