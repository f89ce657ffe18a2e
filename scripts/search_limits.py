"""Why `qbench search` wins what it wins: where the error is, and what a layer's bits can hold.

    python -m scripts.search_limits OUT.json KEPT

The bundled model and its outlier form (factor 100), packed weights of 2 to 8 bits on a CPU, within
the bytes of INT4. Each form is searched with every scheme tried at every layer, and with one of
them. KEPT is a folder for the searches, some ten minutes of one core each, which go on where they
stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

import torch

from qbench.optimizations import quantization, schemes
from qbench.pipelines import specs
from qbench.recipe import shipped
from qbench.recipe.files import load
from qbench.search import costs, kept, mixed
from qbench.search.choice import Option, choose
from scripts import bench

if TYPE_CHECKING:
    from qbench.pipelines.base import Module
    from qbench.recipe.schema import Quantize, Recipe
    from qbench.search.kept import Table

RECIPE, SCHEME = "calibrated/packed-int4", "int4_weight_only"
BITS = (4, 5, 6, 8)
FORMS = {"plain": None, "outliers": 100.0}
WORST = 10  # layers
KINDS = {
    "queries_and_keys": (".to_q", ".to_k"),
    "values": (".to_v",),
    "output_projections": (".to_out.0",),
    "feed_forward": (".proj", ".net.2"),
}


def recipe_of(factor: float | None) -> Recipe:
    more = {"outliers.factor": f"{factor:g}"} if factor else {}
    return load(shipped.FOLDER / f"{RECIPE}.yaml", {"device": "cpu", **more})


def searched(recipe: Recipe, folder: Path, every: bool) -> Table:
    """Squared errors by layer and scheme, one for each prediction, in the order of the steps."""
    mixed.search(recipe, mixed.Budget("bytes"), folder, print, every)
    return kept.Kept.model_validate_json((folder / kept.FILE).read_bytes()).layers


def by_step(errors: list[float]) -> list[float]:
    count = len(errors) // mixed.STEPS
    return [mean(errors[step * count :][:count]) for step in range(mixed.STEPS)]


def where_the_error_is(table: Table) -> dict[str, object]:
    """Of each layer alone at INT4, as shares of their sum."""
    error = {name: mean(row[SCHEME]) for name, row in table.items()}
    total = sum(error.values())
    share = {name: error[name] / total for name in sorted(error, key=error.__getitem__)[::-1]}
    steps = {name: by_step(row[SCHEME]) for name, row in table.items()}
    half = mixed.STEPS // 2
    return {
        "layers": len(share),
        "worst": sum(list(share.values())[:WORST]),
        "kinds": {
            kind: sum(value for name, value in share.items() if name.endswith(ends))
            for kind, ends in KINDS.items()
        },
        "later": sum(mean(each[half:]) > mean(each[:half]) for each in steps.values()),
        "by_layer": {name: float(f"{value:.3g}") for name, value in share.items()},
    }


def lost_without_every(tried: Table, guessed: Table, module: Module, wanted: Quantize) -> float:
    """How much larger the error is by the choice that was made on one scheme a layer."""
    names = list(tried)
    known = list(tried[names[0]])
    taken = costs.stored(module, names, wanted, known, "bf16")
    budget = sum(taken[name][SCHEME] for name in names)

    def error(table: Table) -> float:
        """By what every scheme was seen to do, of the choice by this table."""
        options = {
            name: {one: Option(taken[name][one], mean(table[name][one])) for one in known}
            for name in names
        }
        chosen = choose(options, budget).schemes
        return sum(mean(tried[name][chosen[name]]) for name in names) ** 0.5

    return error(guessed) / error(tried) - 1


def rounded_to_zero(plain: Module, outliers: Module, wanted: Quantize) -> list[dict[str, float]]:
    """The weights that read an outlier channel, and all others of the outlier form."""
    found = []
    for bits in BITS:
        scheme = wanted.model_copy(update={"scheme": f"int{bits}_weight_only"})
        stored, _ = schemes.numbers(scheme, torch.float32)
        reading: list[torch.Tensor] = []
        others: list[torch.Tensor] = []
        for name in quantization.chosen(plain, wanted):
            before, weight = (m.get_submodule(name).weight.detach() for m in (plain, outliers))
            # Rows are scaled besides, few of them: the median is what was done to a column.
            divided = (before.abs() / weight.abs().clamp_min(1e-30)).median(0).values > 2
            zero = stored.rounded(weight) == 0
            reading.append(zero[:, divided].flatten())
            others.append(zero[:, ~divided].flatten())
        read, rest = (torch.cat(each).double().mean().item() for each in (reading, others))
        found.append({"bits": bits, "reading": read, "others": rest})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("kept", type=Path)
    args = parser.parse_args()
    model, modules, rows = specs.find("tiny-cogvideox"), {}, []
    wanted = recipe_of(None).variant.quantize
    assert wanted is not None
    for form, factor in FORMS.items():
        recipe = recipe_of(factor)
        tried = searched(recipe, args.kept / f"{form}-every", every=True)
        guessed = searched(recipe, args.kept / form, every=False)
        modules[form] = specs.load(model, "fp32", "cpu", outliers=recipe.outliers).denoiser
        lost = lost_without_every(tried, guessed, modules[form], wanted)
        rows.append({"form": form, "lost": lost, **where_the_error_is(tried)})
    zeros = rounded_to_zero(modules["plain"], modules["outliers"], wanted)
    facts = {"model": model.name, "torch": torch.__version__, "rows": rows, "zeros": zeros}
    bench.save(args.out, facts)


if __name__ == "__main__":
    main()
