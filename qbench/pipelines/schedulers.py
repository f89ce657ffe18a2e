"""diffusers' schedulers: by a recipe's name, and the numbers of steps that they do not divide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qbench.errors import InputError, nearest

if TYPE_CHECKING:
    from qbench.pipelines.base import Pipe


def put(pipe: Pipe, name: str, known: Mapping[str, str]) -> None:
    """Give the pipeline the scheduler that a recipe's `generation.scheduler` names.

    known: the names that this class of pipeline takes, with diffusers' own. Raises InputError for
    another.
    """
    import diffusers

    if name not in known:
        hint = nearest(name, known) or "; leave it out for the pipeline's own"
        raise InputError(f"generation.scheduler: {type(pipe).__name__} has no {name!r}{hint}")
    wanted = getattr(diffusers, known[name])
    pipe.scheduler = wanted.from_config(pipe.scheduler.config)


def uneven(pipe: Pipe, steps: int) -> str | None:
    """A sentence where the pipeline's scheduler leaves noise in the video at this number of steps.

    With 'trailing' spacing its timesteps lie total/steps apart, but each step goes down by the
    whole part of that: of 1000, 15 steps lie 66.7 apart, go down by 66, and the last ends above
    0.
    """
    config = pipe.scheduler.config
    total = config.num_train_timesteps
    by_whole_parts = type(pipe.scheduler).__name__ in (
        "DDIMScheduler", "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler",
    )  # fmt: skip
    trailing = config.get("timestep_spacing") == "trailing"
    if not (trailing and by_whole_parts) or round(total / steps) <= total // steps:
        return None
    divisors = (n for n in range(total, 0, -1) if total % n == 0)
    near = min(divisors, key=lambda n: abs(n - steps))  # of two alike the larger
    return (
        f"generation.steps: at {steps} steps of {total} timesteps diffusers' scheduler ends "
        "before the last and leaves noise in the video; the nearest number that divides them "
        f"is {near}"
    )
