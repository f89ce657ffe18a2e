"""What linears are given along denoise trajectories, for engines that quantize by known ranges.

Ranges follow the time step: along a trajectory they shrink by two to five times, and one range for
all steps leaves the last ones, which make the picture, a quarter of their 256 numbers. And they
follow the prompt, so there are many prompts and few steps of each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qbench.optimizations import quantization, schemes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from qbench.pipelines.base import Module, VideoPipeline
    from qbench.pipelines.known import Model
    from qbench.pipelines.values import Resolved
    from qbench.recipe.schema import Quantize, Recipe

PROMPTS, STEPS = 16, 5  # trajectories of a short schedule over the whole range
SEED = 1_500_000_000  # of their noise, which no video is measured with
OTHERS = "camera-v1"  # prompts for a model whose own are all measured with
ROWS = 1280  # tokens kept of each linear's inputs, over all calls
TIME = "timestep"


@dataclass(frozen=True)
class Seen:
    """What a linear was given along the trajectories.

    timesteps: (timesteps,) ascending; one where the denoiser is told none.
    low, high: (timesteps, channels), of all tokens.
    rows: (rows, channels), a sample of the tokens.
    when: (rows,) the place of each row's time step in `timesteps`.
    per_token: whether it sees a row a token, or a row a video.
    balanced: whether the layers before it make balanced channels already.
    """

    timesteps: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    rows: NDArray[np.float32]
    when: NDArray[np.int64]
    per_token: bool
    balanced: bool = False

    def times(self, factors: NDArray[np.float32]) -> Seen:
        """Each channel multiplied by its positive factor."""
        return replace(
            self,
            low=self.low * factors,
            high=self.high * factors,
            rows=self.rows * factors,
        )

    def marked(self) -> Seen:
        """As what earlier layers have balanced, or need not."""
        return replace(self, balanced=True)


def along_trajectories(
    video: VideoPipeline, run: Resolved, recipe: Recipe, model: Model
) -> dict[str, Seen]:
    """Inputs of the linears that the recipe quantizes, by their names, from prompts of their own.

    None where the recipe's engine is not calibrated as it is built. Random weights know no prompts,
    so there is one trajectory.
    """
    from qbench import prompts
    from qbench.engines.parity import by_own_rules

    wanted = recipe.variant.quantize
    if wanted is None or not by_own_rules(recipe.variant) or not schemes.find(wanted).static:
        return {}
    tests = set(prompts.chosen(recipe.prompts, model).prompts)
    names = ["world-2048-v1"] if model.world else [model.prompts, OTHERS]
    texts = [text for name in names for text in prompts.load(name).prompts if text not in tests]
    steps = min(STEPS, run.steps)
    watch = Watch(video.denoiser, wanted, _count(recipe) * steps)
    with watch.on():
        for number, text in enumerate(texts[: _count(recipe)]):
            conditioning = video.encode(run, [text])
            video.captured(run, conditioning, video.noise(run, SEED + number), steps=steps)
    return watch.seen()


def settings(recipe: Recipe) -> dict[str, str | int | float]:
    """What a manifest says of `along_trajectories`."""
    return {"prompts": _count(recipe), "steps": STEPS, "seed": SEED}


def _count(recipe: Recipe) -> int:
    return PROMPTS if recipe.weights == "pretrained" else 1


class Watch:
    """Sees what the chosen linears of a denoiser are given, while it is on.

    calls: of the denoiser that are to come, among which the sample is shared.
    """

    def __init__(self, module: Module, wanted: Quantize, calls: int) -> None:
        import torch

        self._module, self._linears = module, quantization.chosen(module, wanted)
        self._each = max(1, ROWS // calls)
        self._generator = torch.Generator().manual_seed(0)
        self._now = 0.0
        self._watched: dict[str, _Watched] = {}

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        hooks = [self._module.register_forward_pre_hook(self._tell, with_kwargs=True)]
        hooks += [
            layer.register_forward_pre_hook(self._hook(name))
            for name, layer in self._linears.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def seen(self) -> dict[str, Seen]:
        return {name: one.seen() for name, one in self._watched.items()}

    def _tell(self, module: nn.Module, args: tuple[object, ...], given: dict[str, object]) -> None:
        import torch

        from qbench.pipelines.capture import by_name

        time = by_name(type(module), args, given).get(TIME, 0.0)
        self._now = float(time.max()) if isinstance(time, torch.Tensor) else float(str(time))

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            one = self._watched.setdefault(name, _Watched(given[0].dim() > 2))
            rows = given[0].detach().flatten(0, -2)
            one.add(rows, self._now, self._each, self._generator)

        return look


class _Watched:
    """One linear's inputs, as they come."""

    def __init__(self, per_token: bool) -> None:
        self._per_token = per_token
        self._ends: dict[float, tuple[Tensor, Tensor]] = {}
        self._rows: list[Tensor] = []
        self._when: list[float] = []

    def add(self, rows: Tensor, time: float, count: int, generator: torch.Generator) -> None:
        import torch

        low, high = rows.amin(0).float().cpu(), rows.amax(0).float().cpu()
        if time in self._ends:
            before = self._ends[time]
            low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
        self._ends[time] = (low, high)
        chosen = torch.randperm(len(rows), generator=generator)[:count]
        self._rows.append(rows[chosen.to(rows.device)].float().cpu())
        self._when += [time] * len(chosen)

    def seen(self) -> Seen:
        import numpy as np
        import torch

        times = sorted(self._ends)
        return Seen(
            timesteps=np.asarray(times, np.float32),
            low=torch.stack([self._ends[time][0] for time in times]).numpy(),
            high=torch.stack([self._ends[time][1] for time in times]).numpy(),
            rows=torch.cat(self._rows).numpy(),
            when=np.searchsorted(times, self._when),
            per_token=self._per_token,
        )
