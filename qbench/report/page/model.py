"""What the page shows, as plain data: `data` makes it from records, JavaScript reads it as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["speed", "memory", "quality"]
Better = Literal["higher", "lower", "zero"]


@dataclass(frozen=True)
class Measure:
    """An axis of the chart and a column of the table.

    form: how a value is written: `seconds`, `bytes`, `ratio`, `share`, `number`, or the digits and
    unit of a metric, as `fixed:1: dB`. shown: whether the table begins with it.
    """

    key: str
    label: str
    better: Better
    kind: Kind
    form: str
    what: str = ""
    shown: bool = True


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval and the number of samples, as far as they are known."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """word: one of the five. text: with its question mark where it is not settled."""

    word: str
    text: str
    because: str = ""
    distance: str = ""
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float | None  # the median; none where the machine did other things besides
    n: int
    bytes: int | None  # held at the peak


@dataclass(frozen=True)
class Growth:
    """Relative error of the latents after each step."""

    videos: int
    free: tuple[float, ...]
    forced: tuple[float, ...]


@dataclass(frozen=True)
class Clip:
    """A video of one prompt. `source`: beside the page, or the video itself as a data: URL.

    difference: mean absolute difference from the reference by frame, in levels of 255.
    """

    source: str
    frames: int
    width: int
    height: int
    difference: tuple[float, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One record."""

    id: str
    name: str
    about: str
    status: str
    reason: str
    figures: dict[str, Figure]
    verdict: Verdict | None = None
    speed_word: str = ""
    reference: bool = False
    floor: bool = False  # the reference in another guise
    stages: tuple[Stage, ...] = ()
    unit: str = "video"
    samples: tuple[float, ...] = ()  # seconds of each timed unit
    paired: tuple[float, ...] = ()  # the reference's turns beside them
    growth: Growth | None = None
    explained: tuple[str, ...] = ()
    recipe: str = ""  # as resolved, YAML
    command: str = ""
    prints: dict[str, str] = field(default_factory=dict)
    environment: int = 0  # its place in the ranking's
    started: str = ""
    clips: dict[int, Clip] = field(default_factory=dict)  # by the number of the prompt
    scores: dict[str, dict[int, float]] = field(default_factory=dict)  # metric: prompt: value


@dataclass(frozen=True)
class Prompt:
    number: int
    text: str


@dataclass(frozen=True)
class Board:
    """One ranking: records that may be compared."""

    title: str
    answer: str
    how: str
    axes: tuple[str, str]  # measures that the chart begins with
    measures: tuple[Measure, ...]
    variants: tuple[Variant, ...]
    notes: tuple[str, ...] = ()
    environments: tuple[dict[str, str], ...] = ()
    prompts: tuple[Prompt, ...] = ()  # that there are videos of
    fps: int = 8
    raw: bool = False  # whether differences by frame are of raw frames
    left_out: str = ""  # videos that are not on the page, and why


@dataclass(frozen=True)
class Page:
    boards: tuple[Board, ...]
    unreadable: tuple[str, ...] = ()
    version: str = ""
