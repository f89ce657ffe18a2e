"""The search itself: walk, measure, choose, confirm, write."""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from qbench import support, textfile
from qbench.errors import InputError, Unsupported
from qbench.recipe.choices import AS_IT_IS
from qbench.search.choice import Choice, Option, choose
from qbench.units import bytes_text

if TYPE_CHECKING:
    from torch import nn

    from qbench.optimizations.calibration.observe import Call
    from qbench.pipelines.base import VideoPipeline
    from qbench.pipelines.known import Model
    from qbench.pipelines.values import Resolved
    from qbench.recipe.schema import Quantize, Recipe

Tell = Callable[[str], None]
PROMPTS, STEPS, SEED = 4, 6, 1_600_000_000
SMALL = 1_000_000_000  # parameters up to which errors are measured in FP32
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
LONGEST_NAME = 70


class Compared(BaseModel):
    """Errors of a forced step on prompts that the search has not seen, with an interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    cost: float
    error: float  # relative L2, root of the mean square over predictions
    ratio: float = 1.0  # of the mixed choice's error to this one's
    low: float = 1.0  # of the ratio, 95 %, bootstrap over predictions
    high: float = 1.0


class Found(BaseModel):
    """What a search came to.

    predicted, error: of all chosen layers together; by adding up, and measured.
    gap: bound of the choice, as a share of its sum of errors; 0 is the best there is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    unit: Literal["bytes", "latency"]
    budget: float
    cost: float
    predicted: float
    error: float
    gap: float
    layers: dict[str, str]
    uniform: list[Compared]
    recipe: str
    chart: str

    @property
    def best_uniform(self) -> Compared | None:
        """The uniform scheme within the budget with the least error."""
        within = [one for one in self.uniform if one.cost <= self.budget * (1 + 1e-9)]
        return min(within, key=lambda one: one.error, default=None)


@dataclass(frozen=True)
class Budget:
    unit: Literal["bytes", "latency"]
    amount: float | None = None  # in the unit; None is a share of the recipe's own scheme
    share: float = 1.0


def budget_of(text: str) -> Budget:
    """`bytes`, `bytes=9.5M`, `bytes=80%`, and the same of `latency`, in seconds.

    Without an amount: that of the recipe's own scheme at every layer. Raises InputError.
    """
    found = re.fullmatch(
        r"(bytes|latency)(?:=(\d+(?:\.\d+)?(?:e-?\d+)?)(?:(%)|([KMG])(?:iB)?|(s))?)?", text.strip()
    )
    if not found:
        raise InputError(
            f"--budget {text}: bytes or latency, alone or with an amount: bytes=9.5M, bytes=80%, "
            "latency=90%, latency=0.2s"
        )
    unit, number, percent, letter, seconds = found.groups()
    kind: Literal["bytes", "latency"] = "bytes" if unit == "bytes" else "latency"
    if (letter and kind == "latency") or (seconds and kind == "bytes"):
        raise InputError(f"--budget {text}: {unit} has another unit")
    if number is None:
        return Budget(kind)
    if not float(number) > 0:
        raise InputError(f"--budget {text}: an amount above 0")
    if percent:
        return Budget(kind, share=float(number) / 100)
    return Budget(kind, amount=float(number) * UNITS[letter or ""])


def search(
    recipe: Recipe,
    budget: Budget,
    out: Path,
    tell: Tell = lambda _: None,
    every: bool = False,
) -> Found:
    """Choose a scheme for every layer of the recipe's denoiser, and write `out`.

    every: try each scheme at each layer, and not the recipe's own alone; see `sensitivity`.

    `out` gets the recipe, what was measured, and a chart. A search that was ended goes on where it
    stopped. Raises InputError where there is nothing to choose or the budget is too small.
    """
    import torch

    from qbench.optimizations import quantization
    from qbench.pipelines import specs
    from qbench.search import chart, kept, sensitivity

    wanted = recipe.variant.quantize
    if wanted is None:
        raise InputError(f"{recipe.name}: variant.quantize: there is nothing to search without it")
    model = specs.find(recipe.model)
    device = "cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu"
    machine = support.this_machine(device)
    known = _possible(recipe, wanted, machine)  # before anything is loaded
    out.mkdir(parents=True, exist_ok=True)
    video, run = _loaded(recipe, model, device)
    facts = support.model_facts(video, run.guided, run.frames)
    schemes = _possible(recipe, wanted, dataclasses.replace(machine, model=facts))
    if left := [scheme for scheme in known if scheme not in schemes]:
        tell(f"not searched, for some layers of this model cannot have them: {', '.join(left)}")
    names = sorted(quantization.chosen(video.denoiser, wanted), key=_in_order(video.denoiser))
    texts = _texts(recipe, model)
    tell(f"trajectories of {len(texts)} prompts, {min(STEPS, run.steps)} steps of each")
    seen, unseen = (_walked(video, run, some) for some in (texts[:PROMPTS], texts[PROMPTS:]))
    bench = sensitivity.Bench.of(video.denoiser, seen)
    tell("what each layer costs in each scheme")
    costs = _costs(video.denoiser, names, wanted, schemes, recipe, budget, seen)
    amount = budget.amount or budget.share * sum(costs[name][wanted.scheme] for name in names)
    least = sum(min(costs[name].values()) for name in names)
    if least > amount:  # before anything is measured for it
        raise InputError(
            f"--budget: {_cost(budget.unit, amount)} is less than the cheapest choice of all, "
            f"{_cost(budget.unit, least)}"
        )
    walk = (texts[:PROMPTS], STEPS, SEED)
    made_from = kept.made_from(recipe, wanted, model, device, walk, names, schemes, every)
    table = sensitivity.measure(
        bench, names, schemes, wanted, out / kept.FILE, made_from, tell, every
    )
    options = {
        name: {
            AS_IT_IS: Option(costs[name][AS_IT_IS], 0.0),
            **{s: Option(costs[name][s], mean(table[name][s])) for s in schemes},
        }
        for name in names
    }
    chosen = choose(options, amount)
    tell("confirmation on prompts that were not searched on")
    held_out = sensitivity.Bench.of(video.denoiser, unseen)
    mixed = sensitivity.together(held_out, chosen.schemes, wanted, bench)
    uniform = []
    for scheme in schemes:
        cost = sum(costs[name][scheme] for name in names)
        plain = sensitivity.together(held_out, dict.fromkeys(names, scheme), wanted, bench)
        uniform.append(_compared(scheme, cost, mixed, plain))
    file = out / "recipe.yaml"
    write_recipe(recipe, chosen, budget, file)
    drawn = chart.draw(table, wanted.scheme, bench.steps, chosen.schemes, out / "sensitivity.png")
    found = Found(
        unit=budget.unit,
        budget=amount,
        cost=chosen.cost,
        predicted=chosen.error**0.5,
        error=mean(mixed) ** 0.5,
        gap=chosen.gap,
        layers=chosen.schemes,
        uniform=uniform,
        recipe=file.name,
        chart=drawn.name,
    )
    textfile.replace(out / "search.json", found.model_dump_json(indent=1) + "\n")
    return found


def _possible(recipe: Recipe, wanted: Quantize, machine: support.Machine) -> list[str]:
    """The candidates that this machine can run, and its model can have where that is known.

    Raises Unsupported where the recipe's own scheme is none of them.
    """
    from qbench.search import sensitivity

    found = []
    for scheme in sensitivity.candidates(wanted):
        one = wanted.model_copy(update={"scheme": scheme, "layers": {}})
        reason = support.why_not(recipe.variant.model_copy(update={"quantize": one}), machine)
        if reason is None:
            found.append(scheme)
        elif scheme == wanted.scheme:
            raise Unsupported(reason)
    return found


def _loaded(recipe: Recipe, model: Model, device: str) -> tuple[VideoPipeline, Resolved]:
    """In FP32 where that is affordable: a layer's own error would drown in BF16's rounding."""
    from qbench.pipelines import specs

    outliers, dtype = recipe.outliers, recipe.variant.dtype
    variant = recipe.weights_variant
    video = specs.load(model, dtype, device, recipe.weights, variant=variant, outliers=outliers)
    if dtype != "fp32" and sum(p.numel() for p in video.denoiser.parameters()) <= SMALL:
        del video
        video = specs.load(
            model, "fp32", device, recipe.weights, variant=variant, outliers=outliers
        )
    return video, video.resolve(model, recipe.generation, recipe.variant.step_share)


def _in_order(module: nn.Module) -> Callable[[str], int]:
    order = {name: number for number, (name, _) in enumerate(module.named_modules())}
    return lambda name: order[name]


def _texts(recipe: Recipe, model: Model) -> list[str]:
    """Prompts of search and confirmation, apart from each other and from those of measurements."""
    from qbench import prompts
    from qbench.optimizations.calibration import texts
    from qbench.recipe.schema import Calibration

    tests = prompts.chosen(recipe.prompts, model).prompts
    return texts(Calibration(method="gptq", prompts=2 * PROMPTS), model, tests)


def _walked(video: VideoPipeline, run: Resolved, texts: Sequence[str]) -> list[Call]:
    from qbench.optimizations.calibration import observe
    from qbench.recipe.schema import Calibration

    seed = SEED + 1000 * sum(map(len, texts)) % 1_000_000
    small = sum(p.numel() for p in video.denoiser.parameters()) <= SMALL
    settings = Calibration(method="gptq", steps=STEPS, seed=seed)
    return observe.walk(video, run, texts, settings, at_once=PROMPTS if small else 1)


def _costs(
    module: nn.Module,
    names: Sequence[str],
    wanted: Quantize,
    schemes: Sequence[str],
    recipe: Recipe,
    budget: Budget,
    calls: Sequence[Call],
) -> dict[str, dict[str, float]]:
    from qbench.search import costs

    if budget.unit == "bytes":
        return costs.stored(module, names, wanted, schemes, recipe.variant.dtype)
    compiled = recipe.variant.compile is not None
    return costs.latency(module, names, wanted, schemes, recipe.variant.dtype, calls[0], compiled)


def _compared(name: str, cost: float, mixed: Sequence[float], plain: Sequence[float]) -> Compared:
    """The two errors, and a paired bootstrap of their ratio over predictions."""
    generator = random.Random(0)
    count = len(mixed)
    ratios = []
    for _ in range(2000):
        places = generator.choices(range(count), k=count)
        ours, theirs = (sum(values[i] for i in places) for values in (mixed, plain))
        ratios.append((ours / theirs) ** 0.5 if theirs else 1.0)
    ratios.sort()
    return Compared(
        name=name,
        cost=cost,
        error=mean(plain) ** 0.5,
        ratio=(mean(mixed) / mean(plain)) ** 0.5 if mean(plain) else 1.0,
        low=ratios[50],
        high=ratios[1949],
    )


def write_recipe(recipe: Recipe, chosen: Choice, budget: Budget, path: Path) -> None:
    """The recipe with every layer's scheme, self-contained: it extends no other file.

    Where every layer stays as it is, nothing is quantized.
    """
    quantize = recipe.variant.quantize
    assert quantize is not None
    counts: dict[str, int] = {}
    for scheme in chosen.schemes.values():
        counts[scheme] = counts.get(scheme, 0) + 1
    most = max(
        (s for s in counts if s != AS_IT_IS), key=lambda s: counts[s], default=quantize.scheme
    )
    layers = {name: scheme for name, scheme in chosen.schemes.items() if scheme != most}
    fields = {"scheme": most, "layers": layers}
    mixed = quantize.model_copy(update=fields) if most in counts else None
    made = recipe.model_copy(
        update={
            "name": f"{recipe.name[:LONGEST_NAME]}-mixed",
            "about": f"Mixed precision by qbench search within {budget.unit}, from {recipe.name}",
            "variant": recipe.variant.model_copy(update={"quantize": mixed}),
        }
    )
    _write(made, path)


def write_reference(reference: Recipe, folder: Path) -> Path:
    """The reference with the settings of the search, where the mixed recipe's runs will find it."""
    path = folder / f"{reference.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(reference, path)
    return path


def _write(recipe: Recipe, path: Path) -> None:
    import yaml

    fields = recipe.model_dump(mode="json", exclude_defaults=True) | {"name": recipe.name}
    textfile.replace(path, yaml.safe_dump(fields, sort_keys=False, width=100))


def _cost(unit: str, value: float) -> str:
    return bytes_text(value) if unit == "bytes" else f"{value * 1e3:.3g} ms"


def lines(found: Found) -> list[str]:
    """What a search came to, for a terminal."""
    counts: dict[str, int] = {}
    for scheme in found.layers.values():
        counts[scheme] = counts.get(scheme, 0) + 1

    cost = functools.partial(_cost, found.unit)
    bound = "exact" if found.gap <= 1e-6 else f"within {found.gap:.1%} of the least sum"
    said = [
        "layers: " + ", ".join(f"{count} {scheme}" for scheme, count in sorted(counts.items())),
        f"cost {cost(found.cost)} of {cost(found.budget)}; the choice is {bound}",
        f"error of a forced step {found.error:.4g} on unseen prompts, {found.predicted:.4g} by sum",
    ]
    for one in sorted(found.uniform, key=lambda one: one.cost):
        fits = one.cost <= found.budget * (1 + 1e-9)
        said.append(
            f"  {one.name} everywhere: {cost(one.cost)}{'' if fits else ' (over the budget)'}, "
            f"error {one.error:.4g}; mixed is at {one.ratio:.3f} [{one.low:.3f}, {one.high:.3f}]"
        )
    best = found.best_uniform
    if set(counts) == {AS_IT_IS}:
        said.append("nothing is quantized: the budget has room for every layer as it is")
    elif best is None:
        said.append("no uniform scheme fits the budget")
    elif best.high < 1:
        said.append(f"better than {best.name}, the best uniform scheme that fits")
    else:
        said.append(f"not shown to be better than {best.name}, the best uniform scheme that fits")
    return said


def by_scheme(layers: Mapping[str, str]) -> dict[str, list[str]]:
    """Layers of each scheme."""
    found: dict[str, list[str]] = {}
    for name, scheme in layers.items():
        found.setdefault(scheme, []).append(name)
    return found
