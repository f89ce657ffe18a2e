"""Quantization that is fitted to activations along denoise trajectories.

`fit` walks trajectories, watches the linears' inputs and says for each linear what is to be stored;
`storing` writes that into the tensors of the scheme's backend. One file a method.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qbench.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qbench.optimizations.calibration.numbers import Activations, Weights
    from qbench.optimizations.calibration.observe import Call, Seen
    from qbench.pipelines.base import VideoPipeline
    from qbench.pipelines.known import Model
    from qbench.pipelines.rescaling import Rescaling
    from qbench.pipelines.values import Resolved
    from qbench.recipe.schema import Calibration, Quantize


@dataclass(frozen=True)
class Occasion:
    """What will be served: calibration walks the same trajectories, from other prompts.

    tests: the prompts that the variant is measured with.
    """

    run: Resolved
    model: Model
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Fitted:
    """What is to be stored of one linear.

    codes, scales: as `Weights` has them.
    pre: (in,) what the input is multiplied by first; None where earlier layers do it.
    fixed: the scale of inputs that are quantized with one scale.
    axes: of the inputs.
    up, down: a branch of low rank beside, (out, rank) and (rank, in).
    """

    codes: Tensor
    scales: Tensor
    axes: int
    pre: Tensor | None = None
    fixed: Tensor | None = None
    up: Tensor | None = None
    down: Tensor | None = None


@dataclass(frozen=True)
class Work:
    """Everything that a method is given: the model, what its linears see, and the numbers.

    stored: of every linear. Methods that scale an input go by those of its first reader.
    """

    video: VideoPipeline
    settings: Calibration
    calls: Sequence[Call]
    seen: Sequence[Seen]
    stored: Mapping[str, Weights]
    inputs: Activations
    scales_inputs: bool  # whether stored linears can multiply their inputs by channel
    folds: bool = True  # whether layers before them may be changed

    def linear(self, name: str) -> nn.Linear:
        found: nn.Linear = self.video.denoiser.get_submodule(name)
        return found

    def weight(self, name: str) -> Tensor:
        """(out, in) float32."""
        return self.linear(name).weight.detach().float()


def texts(settings: Calibration, model: Model, tests: Sequence[str]) -> list[str]:
    """Prompts to calibrate with, none of which is among `tests`. Raises InputError for too few."""
    field = "variant.quantize.calibration.prompts"
    return unmeasured(settings.prompts, field, model, tests, settings.set)


def unmeasured(
    count: int, field: str, model: Model, tests: Sequence[str], named: str | None = None
) -> list[str]:
    """So many prompts of the named set or the model's own, none of which is among `tests`.

    field: of the recipe, that an InputError for too few names.
    """
    from qbench import prompts

    own = "world-2048-v1" if model.world else model.prompts
    name = named or own
    apart = set(tests)
    if name != model.prompts and model.prompts in prompts.names():
        apart |= set(prompts.load(model.prompts).prompts)  # whatever their number, one calibration
    found = [text for text in prompts.load(name).prompts if text not in apart]
    chosen = found[:count]
    if len(chosen) < count:
        raise InputError(
            f"{field}: {count} asked for, and {name} has {len(found)} that are not measured with"
        )
    assert not set(chosen) & set(tests)
    return chosen


def fit(
    video: VideoPipeline,
    settings: Calibration,
    occasion: Occasion,
    stored: Mapping[str, Weights],
    inputs: Activations,
    scales_inputs: bool,
) -> dict[str, Fitted]:
    """What is to be stored of each linear that `stored` names.

    Layers of the denoiser that can scale an input themselves are changed in place: what it
    computes is the same until the linears are stored.
    """
    from qbench.optimizations.calibration import observe

    chosen = texts(settings, occasion.model, occasion.tests)
    calls = observe.walk(video, occasion.run, chosen, settings)
    seen = observe.moments(video.denoiser, list(stored), calls, settings.samples, settings.seed)
    work = Work(video, settings, calls, seen, stored, inputs, scales_inputs)
    found = METHODS[settings.method](work)
    missing = set(stored) - set(found)
    if missing:
        raise InputError(
            f"variant.quantize.exclude: {min(missing)} was never called along the trajectories, so "
            "it cannot be calibrated: exclude it"
        )
    return found


def by_range(
    video: VideoPipeline, wanted: Quantize, names: Collection[str], occasion: Occasion
) -> None:
    """Fit and store the named linears once for each range of timesteps.

    Scales stay with the linears: layers before them have weights of one kind for all ranges.
    """
    import copy

    from torch import nn

    from qbench.optimizations import schemes
    from qbench.optimizations.calibration import observe, ranges, storing

    settings, module = wanted.calibration, video.denoiser
    assert settings is not None
    assert settings.ranges is not None
    stored, inputs = schemes.numbers(wanted, module.dtype)
    chosen = texts(settings, occasion.model, occasion.tests)
    calls = observe.walk(video, occasion.run, chosen, settings)
    cuts = ranges.borders(calls, settings.ranges)
    numbers = dict.fromkeys(names, stored)
    parts: dict[str, list[nn.Linear]] = {name: [] for name in names}
    for number in range(len(cuts) + 1):
        some = [c for c in calls if ranges.range_of(ranges.timestep_of(c), cuts) == number]
        seen = observe.moments(module, names, some, settings.samples, settings.seed)
        work = Work(video, settings, some, seen, numbers, inputs, True, folds=False)
        found = METHODS[settings.method](work)
        for name in names:
            linear = copy.deepcopy(work.linear(name))
            alone = nn.Sequential(linear)
            build = schemes.find(wanted).build
            assert build is not None
            build(alone, wanted, {"0"})
            storing.into_torchao(alone, {"0": found[name]}, {"0": stored})
            parts[name].append(linear)
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, ranges.RangedLinear(parts[name]))
    ranges.follow(module, cuts)


@dataclass(frozen=True)
class Scaled:
    """An input whose channels were divided by `s`: by layers before it, or by its readers."""

    seen: Seen
    s: Tensor
    folded: bool

    def weight(self, work: Work, name: str) -> Tensor:
        """A reader's weights with what undoes the division, (out, in) float32."""
        weight = work.weight(name)
        return weight if self.folded else weight * self.s

    @property
    def pre(self) -> Tensor | None:
        """What readers have to multiply the input by themselves."""
        return None if self.folded or bool((self.s == 1).all()) else 1 / self.s

    @property
    def square(self) -> Tensor:
        return self.seen.square / self.s.square()


def _foldable(work: Work) -> Iterator[tuple[Seen, Rescaling | None]]:
    """Each input, with the layers before it that can scale it, in the order that they need."""
    left = {one.readers[0]: one for one in work.seen}
    for rescaling in work.video.rescalings() if work.folds else ():
        for first, one in list(left.items()):
            if rescaling.readers and set(one.readers) <= set(rescaling.readers):
                yield left.pop(first), rescaling
    for one in left.values():
        yield one, None


def _scaled(work: Work, scales: Callable[[Seen, list[Tensor]], Tensor] | None) -> list[Scaled]:
    """Divide every input by its scales, in the layers before it where these can take them.

    Where they cannot, and the stored linear cannot multiply its input either, there are none.
    """
    import torch

    found = []
    for one, rescaling in _foldable(work):
        if scales is None or (rescaling is None and not work.scales_inputs):
            found.append(Scaled(one, torch.ones_like(one.most), folded=False))
            continue
        s = scales(one, [work.weight(name) for name in one.readers])
        if rescaling is not None:
            rescaling.apply(1 / s)
        found.append(Scaled(one, s, folded=rescaling is not None))
    return found


def _with_hessians(work: Work, inputs: Sequence[Scaled]) -> Iterator[tuple[Scaled, Tensor | None]]:
    """Each input with its second moments where rounding needs them, as it is divided."""
    from qbench.optimizations.calibration import observe

    if work.settings.rounds != "gptq":
        yield from ((one, None) for one in inputs)
        return
    by_first = {one.seen.readers[0]: one for one in inputs}
    module = work.video.denoiser
    for seen, hessian in observe.hessians(module, work.seen, work.calls):
        one = by_first[seen.readers[0]]
        if not one.folded:  # what was seen is not divided yet
            hessian = hessian / (one.s[:, None] * one.s)
        yield one, hessian


def _rounded(
    work: Work, name: str, weight: Tensor, hessian: Tensor | None, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes and scales of a linear's (out, in) weights."""
    from qbench.optimizations.calibration import gptq

    stored = work.stored[name]

    if hessian is not None:
        damping = work.settings.damping or gptq.DAMPING
        return gptq.quantize(weight, hessian, stored, damping, scales=scales)
    scales = stored.scales(weight) if scales is None else scales
    return stored.codes(weight, scales), scales


def _smoothquant(work: Work) -> dict[str, Fitted]:
    from qbench.optimizations.calibration import smooth

    def scales(one: Seen, weights: list[Tensor]) -> Tensor:
        stored = work.stored[one.readers[0]]
        return smooth.best(one, weights, stored, work.inputs, work.settings.exponent)

    return _stored(work, _scaled(work, scales))


def _gptq(work: Work) -> dict[str, Fitted]:
    return _stored(work, _scaled(work, None))


def _stored(work: Work, inputs: Sequence[Scaled]) -> dict[str, Fitted]:
    found = {}
    for one, hessian in _with_hessians(work, inputs):
        most = (one.seen.most / one.s).amax()
        fixed = work.inputs.scale(most) if work.inputs.static else None
        for name in one.seen.readers:
            made = _rounded(work, name, one.weight(work, name), hessian)
            found[name] = Fitted(*made, one.seen.axes, one.pre, fixed)
    return found


def _searched(work: Work) -> Sequence[Scaled]:
    """Inputs with the scales that AWQ's search finds best for the weights that read them."""
    from qbench.optimizations.calibration import awq

    def scales(one: Seen, weights: list[Tensor]) -> Tensor:
        return awq.best(one, weights, work.stored[one.readers[0]])

    return _scaled(work, scales)


def _awq(work: Work) -> dict[str, Fitted]:
    from qbench.optimizations.calibration import awq

    found = {}
    for one, hessian in _with_hessians(work, _searched(work)):
        for name in one.seen.readers:
            weight = one.weight(work, name)
            clipped = awq.clipped(weight, one.square, work.stored[name])
            made = _rounded(work, name, weight, hessian, clipped)
            found[name] = Fitted(*made, one.seen.axes, one.pre)
    return found


def _svdquant(work: Work) -> dict[str, Fitted]:
    from qbench.optimizations.calibration import svd

    found = {}
    for one, hessian in _with_hessians(work, _searched(work)):
        for name in one.seen.readers:
            weight = one.weight(work, name)
            rank = min(work.settings.rank or svd.RANK, *weight.shape)
            dtype = work.linear(name).weight.dtype
            parts = svd.split(weight, one.square, work.stored[name], rank, dtype)
            made = _rounded(work, name, parts.residual, hessian)
            found[name] = Fitted(*made, one.seen.axes, one.pre, up=parts.up, down=parts.down)
    return found


METHODS: dict[str, Callable[[Work], dict[str, Fitted]]] = {
    "smoothquant": _smoothquant,
    "awq": _awq,
    "gptq": _gptq,
    "svdquant": _svdquant,
}
