"""The videos past the timed ones, in batches, and how errors grow by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench.quality.outputs import Outputs
from qbench.run.events import WorkPlanned

if TYPE_CHECKING:
    import torch

    from qbench.quality.metrics.trajectory import ErrorGrowth
    from qbench.run.session import Session


def generate(session: Session) -> Outputs:
    """A video for every prompt: the timed ones are there, the others come in batches.

    Those that others have made (`part`) are taken as they are.
    """
    for numbers in _batches(session):
        if not session.outputs.take(session.job.made, numbers[0], len(numbers)):
            _make(session, numbers)
    return session.outputs


def part(session: Session) -> None:
    """Make the job's part of the videos past the timed ones, in the batches of the whole run.

    So they are the videos that a run on one device makes: a batch is the same wherever it is made.
    """
    assert session.job.part is not None
    number, of = session.job.part
    batches = _batches(session)
    mine = batches[len(batches) * number // of : len(batches) * (number + 1) // of]
    session.link.emit(WorkPlanned(len(mine) * session.generation.steps))
    for numbers in mine:
        _make(session, numbers)


def _timed(session: Session) -> int:
    return min(session.recipe.measure.repeats, len(session.prompts))


def _batch(session: Session) -> int:
    return 1 if session.recipe.variant.one_by_one else session.recipe.quality.batch


def _batches(session: Session) -> list[list[int]]:
    """The numbers of the videos past the timed ones, as they are made together."""
    count, batch = len(session.prompts), _batch(session)
    return [
        list(range(start, min(start + batch, count)))
        for start in range(_timed(session), count, batch)
    ]


def _make(session: Session, numbers: list[int]) -> None:
    start, count = numbers[0], len(numbers)
    session.stages.enter("more videos", numbers[-1] + 1, len(session.prompts))
    # A compiler compiles for each size of a batch, so a last one is filled up to the others'.
    filled = session.recipe.variant.compile is not None and start > _timed(session)
    more = range(start - _batch(session) + count, start) if filled else []
    video = session.video([*numbers, *more])
    session.outputs.add(start, video.frames[:count], video.latents[:count])


def error_by_step(session: Session) -> ErrorGrowth | None:
    """Latents after every step: the reference keeps its own, a variant is compared with them."""
    import torch

    from qbench.quality.metrics import trajectory
    from qbench.run.events import StepsDone

    recipe, recorder = session.recipe, session.recorder
    count = min(recipe.quality.trajectories, len(session.prompts))
    reference = trajectory.load(session.job.reference) if session.job.reference else None
    if not count or not (recipe.is_reference or reference is not None):
        return None
    numbers = list(range(1 if session.recipe.variant.one_by_one else count))
    # A compiler compiles for each size of a batch, and has for that of the timed videos.
    batches = [[number] for number in numbers] if recipe.variant.compile else [numbers]
    session.stages.enter("error by step")

    def followed(forced: torch.Tensor | None) -> torch.Tensor:
        """(steps, videos, ...), each step from the latents that `forced` gives it, if any."""
        return torch.cat(
            [follow(batch, None if forced is None else forced[:, batch]) for batch in batches], 1
        )

    def follow(batch: list[int], forced: torch.Tensor | None) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def exchange(_: int, latents: torch.Tensor) -> torch.Tensor:
            seen.append(latents.float().cpu().clone())  # a loop may go on in place
            if forced is None:
                return latents
            # By how often it was called: some schedulers (PNDM) have more timesteps than steps.
            return forced[len(seen) - 1].to(latents.device, latents.dtype)

        session.denoise(
            session.encode(batch),
            batch,
            lambda _: session.link.emit(StepsDone()),
            exchange=exchange,
        )
        return torch.stack(seen)

    known = session.followed[: len(numbers)]
    free = torch.cat(known, 1) if len(known) == len(numbers) else followed(None)
    if recipe.is_reference:
        trajectory.save(free, session.job.folder)
        return None
    assert reference is not None
    if reference.shape[0] != free.shape[0] or reference.shape[1] < len(numbers):
        recorder.note("error by step: the reference has other steps")
        return None
    reference = reference[:, : len(numbers)]
    forced = followed(reference)
    return trajectory.ErrorGrowth(
        videos=len(numbers),
        free=trajectory.error_by_step(free, reference),
        forced=trajectory.error_by_step(forced, reference),
    )
