"""Which frame counts and resolutions a pipeline makes, asked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.errors import InputError

if TYPE_CHECKING:
    from qbench.recipe.schema import Generation

LARGEST_SIDE = 2048  # of a size that nobody asked for; CogVideoX1.5's configuration says 2400
SEARCHED = 64  # frame counts looked at on either side for one that works


@dataclass(frozen=True)
class Grid:
    """What a pipeline's patches and VAE allow.

    own: frames, height and width where neither recipe nor model says any. side: height and width
    are multiples of it. made: how many frames a video has of which so many were asked; a count
    works where it comes out as it went in. fixed: position tables hold for `own` alone.
    """

    own: tuple[int, int, int]
    side: int
    made: Callable[[int], int]
    fixed: bool = False
    moving: int = 1  # of one more than its multiples no frame stands still

    def check(self, wanted: Generation) -> None:
        """Refuse what cannot be made. Raises InputError with all that cannot, and the nearest."""
        asked = (wanted.frames, wanted.height, wanted.width)
        if self.fixed and any(a not in (None, b) for a, b in zip(asked, self.own, strict=True)):
            raise InputError(
                f"generation: this model's position table is for {'x'.join(map(str, self.own))} "
                "(frames, height, width) alone"
            )
        wrong = []
        frames = wanted.frames
        if frames and self.made(frames) != frames:
            wrong.append(
                f"generation.frames: for {frames} this model makes {self.made(frames)}; "
                f"the nearest to ask for is {self.nearest_frames(frames)}"
            )
        for name, value in (("height", wanted.height), ("width", wanted.width)):
            if value and value % self.side:
                near = max(self.side, round(value / self.side) * self.side)
                wrong.append(
                    f"generation.{name}: {value} is not a multiple of {self.side}; "
                    f"the nearest is {near}"
                )
        if wrong:
            raise InputError(*wrong)

    def nearest_frames(self, frames: int) -> int:
        """The nearest count that comes out as it goes in and moves; of two as near, the larger."""
        around = range(frames + SEARCHED, max(0, frames - SEARCHED), -1)
        moving = [count for count in around if (count - 1) % self.moving == 0]
        fitting = [count for count in moving if self.made(count) == count]
        return min(fitting, key=lambda count: abs(count - frames))

    def resolve(
        self, wanted: Generation, usual: tuple[int, int, int] | None
    ) -> tuple[int, int, int]:
        """Frames, height and width: the recipe's, else the known model's, else the pipeline's."""
        self.check(wanted)
        frames, height, width = (
            asked or default
            for asked, default in zip(
                (wanted.frames, wanted.height, wanted.width), usual or self.own, strict=True
            )
        )
        for name, asked, side in (
            ("height", wanted.height, height),
            ("width", wanted.width, width),
        ):
            if not asked and side > LARGEST_SIDE:
                raise InputError(
                    f"generation.{name}: the model's configuration says {side}, more than "
                    f"{LARGEST_SIDE}; say generation.height and generation.width"
                )
        return frames, height, width
