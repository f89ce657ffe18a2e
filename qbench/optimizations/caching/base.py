"""What a cache goes by, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.recipe.schema import Cache

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.optimizations.changes import Changes
    from qbench.pipelines.base import Pipe, VideoPipeline

    Begin = Callable[[], object]
    Total = Callable[[Tensor], Tensor]  # the sum of everybody's


@dataclass(frozen=True)
class Schedule:
    """The denoise steps of a video, and the one that the pipeline is at.

    steps: of a video.
    """

    pipe: Pipe
    steps: int

    @property
    def below(self) -> int:
        """A timestep just above the last step's, which a range from here on leaves out."""
        return self._total // self.steps

    def timestep(self, thousandths: int) -> int:
        """What a paper gives of 1000 timesteps, of as many as this scheduler has."""
        return thousandths * self._total // 1000

    @property
    def _total(self) -> int:
        total: int = self.pipe.scheduler.config.num_train_timesteps
        return total

    def now(self) -> int:
        """The timestep that the pipeline is at."""
        return int(self.pipe.current_timestep)

    def step(self) -> int:
        """The number of the step that the pipeline is at, from 0 on."""
        now, timesteps = self.pipe.current_timestep, self.pipe.scheduler.timesteps
        if now.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr():
            # A view, as iteration gives; to look at its value would wait for the device.
            return int(now.storage_offset() - timesteps.storage_offset())
        return int((timesteps == now).nonzero()[0])

    def is_last(self) -> bool:
        """Whether the pipeline is at its loop's last step, which may have fewer than a video."""
        return self.step() == len(self.pipe.scheduler.timesteps) - 1


@dataclass(frozen=True)
class Method:
    """One cache.

    enable: puts it on the denoiser; what is to be undone goes into the changes. Returns what has
        to be called besides as a video begins.
    inner: whether it hooks the attention inside each block, which a compiled block has no more.
    guided: whether it needs guidance, because it predicts the unconditional half of the batch.
    one_batch: whether it keeps one state for both halves of guidance, so that they must come in one
        batch.
    split: whether GPUs that share a video skip the same steps.
    package: that it comes from.
    """

    enable: Callable[[VideoPipeline, Cache, Schedule, Changes], Begin | None]
    inner: bool = False
    guided: bool = False
    one_batch: bool = False
    split: bool = True
    package: str = "diffusers"
