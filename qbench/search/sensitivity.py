"""What quantizing one layer does to the denoiser's prediction, by layer and scheme.

Every evaluation begins from the plain denoiser's own trajectory (a forced step), so errors are
those of the layer and nothing accumulates. What is measured is kept after every layer, and not
measured again.

A layer is tried in one scheme, the probe. What its other schemes cause goes as what they do to the
layer's own output, on sampled tokens, which takes no evaluation: the layers behind it hardly care
where an error came from, unless it is in channels that are far stronger than others (docs/
calibration.md has what that loses). `measure` can try every scheme instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qbench.errors import InputError
from qbench.optimizations import schemes as known
from qbench.optimizations.calibration import gptq, observe
from qbench.optimizations.calibration.numbers import Activations
from qbench.search import costs, kept
from qbench.search.kept import Table, Tell

if TYPE_CHECKING:
    from qbench.optimizations.calibration.observe import Call
    from qbench.pipelines.base import Module
    from qbench.recipe.schema import Quantize

TOKENS = 256  # of each linear's inputs, to compare its schemes on


@dataclass(frozen=True)
class Bench:
    """The denoiser, the calls that it is tried on, and what it makes of them unquantized."""

    module: Module
    calls: Sequence[Call]
    expected: Sequence[Tensor]

    @classmethod
    def of(cls, module: Module, calls: Sequence[Call]) -> Bench:
        return cls(module, calls, [observe.predict(module, call).float() for call in calls])

    @property
    def steps(self) -> list[int]:
        """The denoise step of each error."""
        pairs = zip(self.calls, self.expected, strict=True)
        return [call.step for call, made in pairs for _ in range(len(made))]

    def errors(self) -> list[float]:
        """Squared relative error of each prediction, by call and by video and half of guidance."""
        found: list[float] = []
        for call, wanted in zip(self.calls, self.expected, strict=True):
            made = observe.predict(self.module, call).float()
            wrong = (made - wanted).flatten(1).square().sum(1)
            found += (wrong / wanted.flatten(1).square().sum(1)).tolist()
        return found


@contextmanager
def rounded(layer: nn.Linear, weight: Tensor, inputs: Activations) -> Iterator[None]:
    """The linear with these weights, its inputs rounded as they come."""
    before = layer.weight.data
    layer.weight.data = weight.to(before.dtype)
    handle = None
    if inputs.format is not None:

        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0]
            return (inputs.rounded(x.flatten(0, -2)).view(x.shape).to(x.dtype), *args[1:])

        handle = layer.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        layer.weight.data = before
        if handle is not None:
            handle.remove()


def weights_of(
    layer: nn.Linear, wanted: Quantize, hessian: Tensor | None
) -> tuple[Tensor, Activations]:
    """What is left of a linear's weights by the scheme that is wanted, and of its inputs."""
    if wanted.backend == "quanto":  # stores ranges, in groups that go by the weight's shape
        built = costs.alone(layer, wanted, wanted.scheme, layer.weight.dtype)
        return built.get_parameter("0.weight").dequantize().float(), Activations()
    stored, inputs = known.numbers(wanted, layer.weight.dtype)
    weight = layer.weight.detach().float()
    if hessian is None:
        return stored.rounded(weight), inputs
    damping = (wanted.calibration and wanted.calibration.damping) or gptq.DAMPING
    codes, scales = gptq.quantize(weight, hessian, stored, damping)
    return codes * stored.spread(scales), inputs


def candidates(wanted: Quantize) -> list[str]:
    """The schemes of the recipe's backend that a layer may get.

    Raises InputError where there is no choice.
    """
    if wanted.convolutions:
        raise InputError("variant.quantize.convolutions: linears alone are searched: leave it out")
    method = wanted.calibration.method if wanted.calibration else None
    if method not in (None, "gptq"):
        raise InputError(
            f"variant.quantize.calibration: {method} gives linears that share an input one scheme, "
            "so there is nothing to search layer by layer: use gptq, or none"
        )
    found = []
    for entry in known.SCHEMES.values():
        one = {"backend": entry.backend, "scheme": entry.name, "calibration": wanted.calibration}
        if entry.backend == wanted.backend and entry.build and not entry.static:
            try:
                type(wanted).model_validate(one)
            except ValueError:
                continue
            if entry.weights != "fp8" or wanted.backend != "qbench" or _is_fp8(wanted):
                found.append(entry.name)
    if len(found) < 2:
        raise InputError(
            f"variant.quantize.backend: {wanted.backend} has no schemes to choose from"
        )
    return found


def _is_fp8(wanted: Quantize) -> bool:
    return known.find(wanted).weights == "fp8"


@dataclass(frozen=True)
class Input:
    """The linears that share an input, a sample of its tokens, and what GPTQ rounds by."""

    readers: list[str]
    tokens: Tensor
    hessian: Tensor | None = None


def inputs_of(bench: Bench, names: Sequence[str], settings: Quantize) -> Iterator[Input]:
    """Every input, with its second moments where GPTQ rounds."""
    seen = observe.moments(bench.module, names, bench.calls, TOKENS, 0)
    if settings.calibration is None:
        yield from (Input(one.readers, one.tokens) for one in seen)
        return

    for one, hessian in observe.hessians(bench.module, seen, bench.calls):
        yield Input(one.readers, one.tokens, hessian)


def own_error(layer: nn.Linear, tokens: Tensor, weight: Tensor, inputs: Activations) -> float:
    """Squared error of the linear's outputs on the tokens, with these weights, relative to them."""
    x, plain = tokens.float(), layer.weight.detach().float()
    expected = x @ plain.t()
    wrong = inputs.rounded(x) @ weight.float().t() - expected
    return float(wrong.square().sum() / expected.square().sum().clamp_min(1e-30))


def measure(
    bench: Bench,
    names: Sequence[str],
    schemes: Sequence[str],
    wanted: Quantize,
    file: Path,
    made_from: Mapping[str, str],
    tell: Tell,
    every: bool = False,
) -> Table:
    """The error that each scheme causes at each layer alone.

    file: where results are kept as they come; those that are made from the same are used again.
    every: try every scheme, and not the recipe's own alone.
    """
    table = kept.read(file, made_from, tell)
    done = sum(name in table for name in names)
    if done == len(names):
        return {name: table[name] for name in names}
    for one in inputs_of(bench, names, wanted):
        for name in one.readers:
            if name in table:
                continue
            table[name] = _tried(bench, name, one, schemes, wanted, every)
            kept.write(file, made_from, table)
            done += 1
            tell(f"sensitivity: {done} of {len(names)} layers ({name})")
    return {name: table[name] for name in names}


def _tried(
    bench: Bench,
    name: str,
    seen: Input,
    schemes: Sequence[str],
    wanted: Quantize,
    every: bool,
) -> dict[str, list[float]]:
    """Errors by scheme of one layer."""
    layer = bench.module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    row: dict[str, list[float]] = {}
    own: dict[str, float] = {}
    for scheme in schemes:
        one = wanted.model_copy(update={"scheme": scheme, "layers": {}})
        weight, inputs = weights_of(layer, one, seen.hessian)
        own[scheme] = own_error(layer, seen.tokens, weight, inputs)
        if every or scheme == wanted.scheme:
            with rounded(layer, weight, inputs):
                row[scheme] = bench.errors()
    probed, least = row[wanted.scheme], max(own[wanted.scheme], 1e-30)
    return {s: row.get(s) or [error * own[s] / least for error in probed] for s in schemes}


def together(
    bench: Bench, layers: Mapping[str, str], wanted: Quantize, basis: Bench | None = None
) -> list[float]:
    """Errors with every layer at its scheme at once.

    basis: the calls that GPTQ's Hessians are made of, where they are others than the bench's.
    """
    from contextlib import ExitStack

    from qbench.recipe.choices import AS_IT_IS

    with ExitStack() as stack:
        plan = []
        for seen in inputs_of(basis or bench, list(layers), wanted):
            for name in seen.readers:
                if layers[name] != AS_IT_IS:
                    one = wanted.model_copy(update={"scheme": layers[name], "layers": {}})
                    layer = bench.module.get_submodule(name)
                    plan.append((layer, *weights_of(layer, one, seen.hessian)))
        for layer, weight, inputs in plan:
            stack.enter_context(rounded(layer, weight, inputs))
        return bench.errors()
