"""What the sweep hands to a run's process."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from qbench.results.record import Record


class Job(BaseModel):
    """One run: what to measure, where to write, and what it is compared with."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    draft: Record  # status "running"; the finished record is made from it
    folder: Path
    cache: Path | None = None  # of compilers; null leaves them the user's own
    prompts: tuple[str, ...]  # as the sweep read them: a file may change meanwhile
    reference: Path | None = None  # folder of the reference's finished run
    part: tuple[int, int] | None = None  # of the videos to make: its number, of how many
    made: Path | None = None  # videos that others have made of it, to be used as they are
    interleaved: bool = False  # the sweep has the reference take its turns beside this run
    rank: int = 0  # of the processes that make one video together; the first leads
    devices: tuple[str, ...] = ()  # what CUDA_VISIBLE_DEVICES calls the GPUs of all ranks

    @property
    def ranks(self) -> int:
        """Processes that make one video together."""
        shared = self.draft.recipe.variant.parallel
        return shared.ranks if shared else 1
