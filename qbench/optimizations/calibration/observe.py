"""What linears see along whole denoise trajectories, in bounded memory.

Trajectories are those of the scheduler that will be served, with both halves of guidance, from
prompts that are not among those of the measurement. Inputs are never kept: of each channel there
are running moments, and of all tokens a sample.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from qbench.pipelines.base import Module, VideoPipeline
    from qbench.pipelines.capture import Inputs
    from qbench.pipelines.values import Resolved
    from qbench.recipe.schema import Calibration


@dataclass(frozen=True)
class Call:
    """One call of the denoiser: its keyword inputs, and the step of the trajectory, from 0 on."""

    step: int
    inputs: Inputs


def walk(
    video: VideoPipeline,
    run: Resolved,
    texts: Sequence[str],
    settings: Calibration,
    at_once: int = 1,
) -> list[Call]:
    """Denoise a video of each text, and keep what the denoiser is given at some of the steps.

    The steps are spread evenly over the trajectory, first and last among them. A kept call is
    latents and embeddings of `at_once` videos, 5 MB each for CogVideoX-2B.
    """
    last = run.steps - 1
    count = min(settings.steps, run.steps)
    kept = {round(i * last / (count - 1)) for i in range(count)} if count > 1 else {last // 2}
    calls = []
    for first in range(0, len(texts), at_once):
        some = list(texts[first : first + at_once])
        conditioning = video.encode(run, some)
        seeds = range(settings.seed + first, settings.seed + first + len(some))
        noise = torch.cat([video.noise(run, seed) for seed in seeds])
        steps = video.captured(run, conditioning, noise, steps=run.steps)
        calls += [Call(step, one) for step in sorted(kept) for one in steps[step]]
    return calls


@torch.no_grad()
def predict(module: Module, call: Call) -> Tensor:
    """The denoiser's prediction for one call."""
    found: Tensor = module(**call.inputs, return_dict=False)[0]
    return found


@dataclass
class Seen:
    """One activation, and the linears that read it.

    most, mean, square: of each channel's magnitudes, the largest, the mean and the mean square.
    tokens: a sample of them, (at most the number asked for, channels), in the model's dtype.
    axes: of the tensor that the linears are given, for scales that must have as many.
    """

    readers: list[str]
    axes: int
    most: Tensor
    mean: Tensor
    square: Tensor
    count: int = 0
    sampled: list[Tensor] = field(default_factory=list)

    @property
    def tokens(self) -> Tensor:
        if len(self.sampled) > 1:
            self.sampled[:] = [torch.cat(self.sampled)]
        return self.sampled[0]


class Watch:
    """Forward pre-hooks on linears, in which those that are given one tensor share its figures."""

    def __init__(self, module: nn.Module, names: Collection[str]) -> None:
        self._module, self._names = module, set(names)
        self._last: tuple[Tensor, str] | None = None
        self.first: dict[str, str] = {}  # a reader -> the first of those of its input

    @contextmanager
    def on(self) -> Iterator[None]:
        handles = [
            layer.register_forward_pre_hook(self._hook(name))
            for name, layer in self._module.named_modules()
            if name in self._names
        ]
        try:
            yield
        finally:
            self._last = None
            for handle in handles:
                handle.remove()

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            if self._last is not None and self._last[0] is x:
                self.first[name] = self._last[1]
                return
            self._last = (x, name)
            self.first[name] = name
            self.see(name, x)

        return look

    def see(self, name: str, x: Tensor) -> None:
        raise NotImplementedError


class _Moments(Watch):
    def __init__(
        self, module: nn.Module, names: Collection[str], samples: int, calls: int, seed: int
    ) -> None:
        super().__init__(module, names)
        self._each = max(1, -(-samples // max(1, calls)))
        self._generator = torch.Generator().manual_seed(seed)
        self.seen: dict[str, Seen] = {}

    def see(self, name: str, x: Tensor) -> None:
        rows = x.detach().flatten(0, -2)
        magnitudes = rows.float().abs()
        if name not in self.seen:
            zeros = magnitudes.new_zeros(rows.shape[1])
            self.seen[name] = Seen([], x.dim(), zeros, zeros.clone(), zeros.clone())
        seen = self.seen[name]
        seen.most = torch.maximum(seen.most, magnitudes.amax(0))
        share = len(rows) / (seen.count + len(rows))
        seen.mean += (magnitudes.mean(0) - seen.mean) * share
        seen.square += (magnitudes.square().mean(0) - seen.square) * share
        seen.count += len(rows)
        chosen = torch.randperm(len(rows), generator=self._generator)[: self._each]
        seen.sampled.append(rows[chosen.to(rows.device)].clone())


def moments(
    module: Module, names: Collection[str], calls: Sequence[Call], samples: int, seed: int
) -> list[Seen]:
    """Replay the calls and watch the named linears; one entry an input, with all of its readers."""
    watch = _Moments(module, names, samples, len(calls), seed)
    with watch.on():
        for call in calls:
            predict(module, call)
    for reader, first in watch.first.items():
        watch.seen[first].readers.append(reader)
    return list(watch.seen.values())


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """FP32 products by way of TF32: half-precision inputs have no more bits than it keeps."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    try:
        yield
    finally:
        matmul.allow_tf32 = before


class _Hessians(Watch):
    def __init__(self, module: nn.Module, names: Collection[str]) -> None:
        super().__init__(module, names)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def see(self, name: str, x: Tensor) -> None:
        rows = x.detach().flatten(0, -2).float()
        if name not in self.sums:
            self.sums[name] = rows.new_zeros(rows.shape[1], rows.shape[1])
            self.counts[name] = 0
        with _tensor_cores():
            self.sums[name].addmm_(rows.t(), rows)
        self.counts[name] += len(rows)


LEAST_BYTES = 4 * 2**30  # of second moments, that there is room for


def hessians(
    module: Module, seen: Sequence[Seen], calls: Sequence[Call], most_bytes: int | None = None
) -> Iterable[tuple[Seen, Tensor]]:
    """The second moments X'X/n of every input, over all tokens, (channels, channels) in float32.

    All of CogVideoX-2B's take 9 GB, so the calls are replayed for as many at a time as fit
    `most_bytes`, one at least; by default half of the GPU's free memory, or 4 GiB if that is more.
    """
    if most_bytes is None:
        most_bytes = max(LEAST_BYTES, _free_bytes(module) // 2)
    waiting = list(seen)
    while waiting:
        chunk, size = [waiting.pop(0)], 0
        while waiting:
            size += 4 * len(chunk[-1].most) ** 2
            if size + 4 * len(waiting[0].most) ** 2 > most_bytes:
                break
            chunk.append(waiting.pop(0))
        watch = _Hessians(module, [one.readers[0] for one in chunk])
        with watch.on():
            for call in calls:
                predict(module, call)
        for one in chunk:
            name = one.readers[0]
            yield one, watch.sums.pop(name) / watch.counts[name]


def _free_bytes(module: Module) -> int:
    """Of the GPU that the module is on, with what torch keeps for later; 0 on a CPU."""
    device = next(module.parameters()).device
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)  # where a smaller card is simulated
    return min(free, int(total * share) - torch.cuda.memory_reserved(device))
