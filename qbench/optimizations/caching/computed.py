"""What a cache left to compute, counted at the blocks themselves and not by what it says."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from qbench.fields import Count, NonNegative, Word

if TYPE_CHECKING:
    from qbench.meters.flops import Work
    from qbench.optimizations.changes import Changes, Forward
    from qbench.pipelines.base import Module, VideoPipeline

Shares = Annotated[list[NonNegative], Field(max_length=10_000)]


class Computed(BaseModel):
    """What of the denoise steps was computed, mean over videos; a whole step is 1.

    steps: by the FLOPs of the blocks. least, most: of any video.
    by_step: what of each step was.
    blocks, attention: the same sums by evaluations of blocks, and of attention where a cache reuses
        that inside of computed blocks; both count halves of guidance.
    library: whose cache it is, with its version.
    ratios: of the magnitudes that MagCache goes by, of each step to the one before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    videos: Count
    steps: NonNegative
    least: NonNegative
    most: NonNegative
    by_step: Shares
    blocks: NonNegative
    attention: NonNegative | None = None
    library: Word = ""
    ratios: Shares = []

    @property
    def everything(self) -> bool:
        """Whether no step of any video was left out, in whole or in part."""
        return all(share > 1 - 1e-6 for share in self.by_step)


@dataclass(frozen=True)
class Share:
    """What of one denoise step was computed."""

    blocks: float
    attention: float | None = None

    def of_flop(self, attention: float) -> float:
        """By FLOPs, of which attention and its projections have this share."""
        if self.attention is None:
            return self.blocks
        return self.blocks * (1 - attention) + self.attention * attention


class Counter:
    """Counts the rows of the batch that went into the denoiser, its blocks and their attention."""

    def __init__(self, video: VideoPipeline, inner: bool) -> None:
        self._blocks: list[Module] = video.repeated_blocks()
        names = {id(layer): name for name, layer in video.denoiser.named_modules()}
        layers = [x for block in self._blocks for x in block.modules()] if inner else []
        self._attention = [x for x in layers if hasattr(x, "processor")]
        self.attention_names = [names[id(layer)] for layer in self._attention]
        self._rows = dict.fromkeys(("asked", "block", "attention"), 0)

    def watch(self, changes: Changes) -> None:
        """Count what is computed; called before a cache puts itself around these layers."""
        for kind, layers in (("block", self._blocks), ("attention", self._attention)):
            for layer in layers:
                changes.replace(layer, "forward", self._counted(kind, layer.forward))

    def watch_calls(self, module: Module, changes: Changes) -> None:
        """Count what is asked of the denoiser; called after a cache put itself around it."""
        changes.replace(module, "forward", self._counted("asked", module.forward))

    def _counted(self, kind: str, forward: Forward) -> Forward:
        import torch

        def counted(*args: object, **kwargs: object) -> object:
            named = kwargs.get("hidden_states")
            given = (x for x in (named, *args, *kwargs.values()) if isinstance(x, torch.Tensor))
            self._rows[kind] += len(next(given))
            return forward(*args, **kwargs)

        return functools.update_wrapper(counted, forward)

    def mark(self) -> Share:
        """What was computed since the last mark, of what was asked."""
        rows, self._rows = self._rows, dict.fromkeys(self._rows, 0)
        asked = max(1, rows["asked"])
        blocks = rows["block"] / (asked * len(self._blocks))
        if not self._attention:
            return Share(blocks)
        return Share(blocks, rows["attention"] / (asked * len(self._attention)))


def attention_share(work: Work | None, names: Sequence[str]) -> float:
    """Of a step's FLOPs, what attention by these names does, its projections included."""
    if work is None or not names:
        return 0.0
    linears = {one for one in work.linear_flop if one.startswith(tuple(f"{x}." for x in names))}
    return work.attention_flop / work.flop + work.share(linears)


def summed(
    videos: Sequence[tuple[int, Sequence[Share]]],
    attention: float,
    library: str,
    ratios: Sequence[float],
) -> Computed | None:
    """Of batches of videos, each with their number and its steps; None where there are none."""
    count = sum(number for number, _ in videos)
    if not count:
        return None

    def mean(values: Sequence[float]) -> float:
        pairs = zip(videos, values, strict=True)
        return sum(number * value for (number, _), value in pairs) / count

    each = [[share.of_flop(attention) for share in steps] for _, steps in videos]
    totals = [sum(steps) for steps in each]
    longest = max(map(len, each))
    padded = [[*steps, *[0.0] * (longest - len(steps))] for steps in each]
    inner = [[share.attention for share in steps] for _, steps in videos]
    kept = [[x for x in steps if x is not None] for steps in inner]
    return Computed(
        videos=count,
        steps=mean(totals),
        least=min(totals),
        most=max(totals),
        by_step=[mean(values) for values in zip(*padded, strict=True)],
        blocks=mean([sum(share.blocks for share in steps) for _, steps in videos]),
        attention=mean([sum(steps) for steps in kept]) if any(kept) else None,
        library=library,
        ratios=list(ratios),
    )
