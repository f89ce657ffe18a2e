"""Mixed precision: the choice is the best there is, and what is chosen beats one scheme for all."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES

from qbench.errors import InputError
from qbench.meters.memory import stored_bytes
from qbench.optimizations import quantization
from qbench.pipelines import specs
from qbench.recipe import files
from qbench.recipe.schema import Quantize, Recipe
from qbench.search import choice, mixed, sensitivity

# Attention that matters much, and some that matters little.
FOUR = [
    f"transformer_blocks.{name}"
    for name in ("0.attn1.to_q", "0.attn1.to_out", "7.attn1.to_q", "7.attn1.to_k")
]


def _recipe(**quantize: Any) -> Recipe:
    fields = {
        "backend": "qbench", "scheme": "int4_weight_only", "include": FOUR, "exclude": ["norm"],
    } | quantize  # fmt: skip
    return Recipe.model_validate(
        {
            "name": "some/int4",
            "variant": {"dtype": "bf16", "quantize": fields},
            "generation": {"steps": 5},
        }
    )


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "PROMPTS", 2)
    monkeypatch.setattr(mixed, "STEPS", 3)


def test_the_choice_is_the_best_of_all_that_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    options = {
        f"layer {i}": {
            f"{bits}": choice.Option(
                bits * (1.0 + i), float(torch.rand(1, generator=generator)) * 4.0**-bits
            )
            for bits in (2, 4, 8)
        }
        for i in range(6)
    }
    for budget in (50.0, 77.0, 120.0):
        found = choice.choose(options, budget)
        sums = []
        for picked in itertools.product(*(list(one.values()) for one in options.values())):
            if sum(one.cost for one in picked) <= budget:
                sums.append(sum(one.error for one in picked))
        assert found.error == pytest.approx(min(sums), rel=1e-6)
        assert found.cost <= budget
        assert found.gap <= 1e-6
    with pytest.raises(InputError, match="cheapest choice"):
        choice.choose(options, 10.0)


@pytest.mark.parametrize(
    ("text", "unit", "amount", "share"),
    [
        ("bytes", "bytes", None, 1.0),
        ("bytes=9.5M", "bytes", 9.5 * 2**20, 1.0),
        ("bytes=80%", "bytes", None, 0.8),
        ("latency=90%", "latency", None, 0.9),
        ("latency=0.2s", "latency", 0.2, 1.0),
    ],
)
def test_budgets(text: str, unit: str, amount: float | None, share: float) -> None:
    found = mixed.budget_of(text)
    assert (found.unit, found.amount, found.share) == (unit, amount, share)


@pytest.mark.parametrize(
    "text", ["", "memory", "bytes=", "bytes=-3", "bytes=2s", "latency=3M", "bytes=0"]
)
def test_what_is_no_budget_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="--budget"):
        mixed.budget_of(text)


@pytest.mark.usefixtures("_small")
def test_a_search_beats_the_uniform_scheme_of_its_size_and_goes_on_where_it_stopped(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    recipe = _recipe()
    found = mixed.search(recipe, mixed.Budget("bytes"), tmp_path, said.append)
    assert found.cost <= found.budget
    best = found.best_uniform
    assert best is not None
    assert best.name == "int4_weight_only"
    assert best.ratio < 1
    assert sum("sensitivity" in line for line in said) == 4
    # The file that was written is a recipe, and its bytes are those that the choice counted.
    written = files.load(tmp_path / "recipe.yaml")
    assert written.name == "some/int4-mixed"
    wanted = written.variant.quantize
    assert wanted is not None
    video = specs.load(specs.find("tiny-cogvideox"), "bf16", "cpu")
    before = stored_bytes(video.denoiser)
    chosen = quantization.chosen(video.denoiser, _quantize(recipe))
    plain = sum(stored_bytes(layer) for layer in chosen.values())
    quantization.apply(video.denoiser, wanted)
    assert stored_bytes(video.denoiser) == before - plain + found.cost
    # Ended after two layers, it measures the others alone.
    kept = json.loads((tmp_path / "sensitivity.json").read_text())
    kept["layers"] = dict(list(kept["layers"].items())[:2])
    (tmp_path / "sensitivity.json").write_text(json.dumps(kept))
    said.clear()
    again = mixed.search(recipe, mixed.Budget("bytes"), tmp_path, said.append)
    assert sum("sensitivity" in line for line in said) == 2
    assert again.layers == found.layers
    assert (tmp_path / "sensitivity.png").stat().st_size > 5000


@pytest.mark.usefixtures("_small")
def test_a_budget_of_latency_is_that_of_layers_as_they_are_called(tmp_path: Path) -> None:
    one = ["transformer_blocks.7.attn1.to_q"]
    recipe = _recipe(backend="torchao", scheme="int8_weight_only", include=one)
    found = mixed.search(recipe, mixed.Budget("latency"), tmp_path)
    assert 0 < found.cost <= found.budget < 1
    names = {one.name for one in found.uniform}
    assert {"int8_weight_only", "int4_weight_only"} <= names
    assert "fp8_dynamic_row" in names or not torch.cuda.is_available()
    assert set(found.layers.values()) <= {*names, "none"}


def _quantize(recipe: Recipe) -> Quantize:
    assert recipe.variant.quantize is not None
    return recipe.variant.quantize


def test_methods_that_share_scales_have_nothing_to_search() -> None:
    wanted = Quantize.model_validate(
        {"backend": "torchao", "scheme": "int4_weight_only", "calibration": {"method": "awq"}}
    )
    with pytest.raises(InputError, match="nothing to search"):
        sensitivity.candidates(wanted)


def test_layers_of_a_recipe_get_their_own_schemes() -> None:
    name = "transformer_blocks.7.attn1.to_q"
    module = specs.load(specs.find("tiny-cogvideox"), "bf16", "cpu").denoiser
    layers = {name: "int8_weight_only", "transformer_blocks.0.attn1.to_q": "none"}
    quantization.apply(module, _quantize(_recipe(layers=layers)))
    block = module.transformer_blocks[7]
    assert (block.attn1.to_q.bits, block.attn1.to_k.bits) == (8, 4)
    assert isinstance(module.transformer_blocks[0].attn1.to_q, torch.nn.Linear)
    other = specs.load(specs.find("tiny-cogvideox"), "bf16", "cpu").denoiser
    wrong = _recipe(layers={"transformer_blocks.7.attn1.to_x": "int8_weight_only"})
    with pytest.raises(InputError, match=r"no linear '.*to_x'; did you mean"):
        quantization.apply(other, _quantize(wrong))
    with pytest.raises(ValueError, match="no scheme 'int4_weight'; did you mean"):
        _recipe(layers={name: "int4_weight"})


def test_a_recipe_without_quantization_cannot_be_searched(tmp_path: Path) -> None:
    recipe = files.load(RECIPES / "bf16.yaml")
    with pytest.raises(InputError, match="nothing to search"):
        mixed.search(recipe, mixed.Budget("bytes"), tmp_path)
