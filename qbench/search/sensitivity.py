"""What quantizing one layer does to the denoiser's prediction, by layer and scheme.

Every evaluation begins from the plain denoiser's own trajectory (a forced step), so errors are
those of the layer and nothing accumulates. What is measured is kept after every layer, and not
measured again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qbench.errors import InputError
from qbench.optimizations import quantization
from qbench.optimizations.calibration import gptq, observe

if TYPE_CHECKING:
    from qbench.optimizations.calibration.numbers import Activations
    from qbench.optimizations.calibration.observe import Call
    from qbench.pipelines.base import Module
    from qbench.recipe.schema import Quantize

Tell = Callable[[str], None]
Table = dict[str, dict[str, list[float]]]  # layer -> scheme -> squared relative errors


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
    stored, inputs = quantization.numbers(wanted, layer.weight.dtype)
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
    method = wanted.calibration.method if wanted.calibration else None
    if method not in (None, "gptq"):
        raise InputError(
            f"variant.quantize.calibration: {method} gives linears that share an input one scheme, "
            "so there is nothing to search layer by layer: use gptq, or none"
        )
    found = []
    for entry in quantization.SCHEMES.values():
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
    return quantization.scheme(wanted).weights == "fp8"


def inputs_of(
    bench: Bench, names: Sequence[str], settings: Quantize
) -> Iterator[tuple[list[str], Tensor | None]]:
    """Linears that share an input, with its second moments where GPTQ rounds."""
    if settings.calibration is None:
        yield from (([name], None) for name in names)
        return
    from qbench.optimizations.calibration import HESSIANS_BYTES

    seen = observe.moments(bench.module, names, bench.calls, 16, 0)
    for one, hessian in observe.hessians(bench.module, seen, bench.calls, HESSIANS_BYTES):
        yield one.readers, hessian


def measure(
    bench: Bench,
    names: Sequence[str],
    schemes: Sequence[str],
    wanted: Quantize,
    file: Path,
    key: str,
    tell: Tell,
) -> Table:
    """The error that each scheme causes at each layer alone.

    file: where results are kept as they come; those of the same `key` are used again.
    """
    table = kept(file, key)
    done = sum(name in table for name in names)
    for readers, hessian in inputs_of(bench, names, wanted):
        for name in readers:
            if name in table:
                continue
            layer = bench.module.get_submodule(name)
            row: dict[str, list[float]] = {}
            for scheme in schemes:
                one = wanted.model_copy(update={"scheme": scheme, "layers": {}})
                with rounded(layer, *weights_of(layer, one, hessian)):
                    row[scheme] = bench.errors()
            table[name] = row
            _keep(table, file, key)
            done += 1
            tell(f"sensitivity: {done} of {len(names)} layers ({name})")
    return {name: table[name] for name in names}


def kept(file: Path, key: str) -> Table:
    """What an earlier search of the same settings has measured."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    table: Table = found.get("layers", {}) if found.get("key") == key else {}
    return table


def _keep(table: Table, file: Path, key: str) -> None:
    beside = file.with_suffix(".partial")
    beside.write_text(json.dumps({"key": key, "layers": table}) + "\n", "utf-8")
    os.replace(beside, file)


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
        for readers, hessian in inputs_of(basis or bench, list(layers), wanted):
            for name in readers:
                if layers[name] != AS_IT_IS:
                    one = wanted.model_copy(update={"scheme": layers[name], "layers": {}})
                    layer = bench.module.get_submodule(name)
                    plan.append((layer, *weights_of(layer, one, hessian)))
        for layer, weight, inputs in plan:
            stack.enter_context(rounded(layer, weight, inputs))
        return bench.errors()
