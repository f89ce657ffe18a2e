"""Mixed precision: the choice is the best there is, and what is chosen beats one scheme for all."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES

from qbench import support
from qbench.errors import InputError, Unsupported
from qbench.meters import environment
from qbench.meters.memory import stored_bytes
from qbench.optimizations import builds, quantization, schemes
from qbench.optimizations.calibration import observe
from qbench.pipelines import specs
from qbench.recipe import files
from qbench.recipe.schema import Calibration, Generation, Quantize, Recipe, Variant
from qbench.run.plan import plan
from qbench.search import choice, kept, mixed, sensitivity

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
    half = json.loads((tmp_path / "sensitivity.json").read_text())
    half["layers"] = dict(list(half["layers"].items())[:2])
    (tmp_path / "sensitivity.json").write_text(json.dumps(half))
    said.clear()
    again = mixed.search(recipe, mixed.Budget("bytes"), tmp_path, said.append)
    assert sum("sensitivity" in line for line in said) == 2
    assert again.layers == found.layers
    # Its trajectories are of another length: nothing of it is used.
    said.clear()
    longer = recipe.model_copy(update={"generation": Generation(steps=4)})
    mixed.search(longer, mixed.Budget("bytes"), tmp_path, said.append)
    assert sum("layers (" in line for line in said) == 4
    [line] = [line for line in said if "measured anew" in line]
    assert line.endswith("sensitivity.json is of another walk of trajectories")
    assert (tmp_path / "sensitivity.png").stat().st_size > 5000


def test_what_was_measured_of_anything_else_is_measured_anew_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, said = tmp_path / kept.FILE, list[str]()

    def made(scheme: str = "int4_weight_only", names: list[str] = FOUR) -> dict[str, str]:
        recipe, model = _recipe(scheme=scheme), specs.find("tiny-cogvideox")
        walk = (["a ring"], 3, 1)
        return kept.made_from(recipe, _quantize(recipe), model, "cpu", walk, names, [scheme], False)

    def read(**other: Any) -> kept.Table:
        said.clear()
        return kept.read(file, made(**other), said.append)

    assert read() == {}
    assert not said
    kept.write(file, made(), table := {FOUR[0]: {"int4_weight_only": [0.5]}})
    assert read() == table
    assert not said
    begins = f"sensitivity: measured anew: {file} is of another"
    assert read(names=FOUR[:2]) == {}
    assert said == [f"{begins} list of layers"]
    assert read(scheme="int3_weight_only") == {}
    assert said == [f"{begins} quantization, list of schemes"]
    monkeypatch.setattr(environment, "code", lambda *_: "of another day")
    assert read() == {}
    assert said == [f"{begins} version of qbench"]
    for text in ('{"key": "6f0c2d6f3a1b", "layers": {}}', "[]", "{", '{"made_from": {}}'):
        file.write_text(text)
        assert read() == {}
        assert [line.partition(str(file))[2] for line in said] == [
            " says not what it was made from, or is none"
        ]


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


@pytest.mark.usefixtures("_small")
def test_a_budget_that_nothing_fits_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--budget: 1 KiB is less than .* \d+ KiB"):
        mixed.search(_recipe(), mixed.Budget("bytes", amount=1024.0), tmp_path)
    assert not (tmp_path / "sensitivity.json").exists()


def _quantize(recipe: Recipe) -> Quantize:
    assert recipe.variant.quantize is not None
    return recipe.variant.quantize


def test_one_probe_a_layer_chooses_almost_as_well_as_every_scheme(tmp_path: Path) -> None:
    """Sums of measured errors of the two choices."""
    include = ["transformer_blocks.0.attn1", "transformer_blocks.7.attn1"]
    recipe = _recipe(include=include)
    table = {
        every: _sensitivity(recipe, tmp_path / f"{every}.json", every) for every in (True, False)
    }
    plain = "int4_weight_only"
    assert {name: row[plain] for name, row in table[True].items()} == {
        name: row[plain] for name, row in table[False].items()
    }
    bits = {f"int{n}_weight_only": float(n) for n in (2, 3, 4, 5, 6, 8)}
    sums = {}
    for every, found in table.items():
        options = {
            name: {s: choice.Option(bits[s], sum(row[s])) for s in bits}
            for name, row in found.items()
        }
        chosen = choice.choose(options, 4.0 * len(found)).schemes
        sums[every] = sum(sum(table[True][name][chosen[name]]) for name in chosen)
    uniform = sum(sum(row[plain]) for row in table[True].values())
    assert sums[True] <= sums[False] < 0.5 * (sums[True] + uniform)


def _sensitivity(recipe: Recipe, file: Path, every: bool) -> sensitivity.Table:
    model, wanted = specs.find("tiny-cogvideox"), _quantize(recipe)
    video = specs.load(model, "fp32", "cpu")
    calls = observe.walk(
        video,
        video.resolve(model, recipe.generation),
        ["a small blue ring circles around over a black background"],
        Calibration(method="gptq", steps=1),
    )
    names = sorted(quantization.chosen(video.denoiser, wanted))
    schemes = sensitivity.candidates(wanted)
    bench = sensitivity.Bench.of(video.denoiser, calls)
    return sensitivity.measure(bench, names, schemes, wanted, file, {}, lambda _: None, every=every)


def test_a_mixed_recipe_is_what_torchao_makes_of_its_names_and_loads_in_diffusers(
    tmp_path: Path,
) -> None:
    """torchao's FqnToConfig, written by hand, against the recipe; then saved and loaded."""
    import torchao.quantization as ao
    from diffusers import CogVideoXTransformer3DModel

    from qbench.engines import checkpoint

    schemes = dict(zip(FOUR, ["int8_weight_only", "int4_weight_only"] * 2, strict=True))
    names = {name: f"{name}.0" if name.endswith("to_out") else name for name in FOUR}
    chosen = choice.Choice({names[n]: s for n, s in schemes.items()}, 0.0, 0.0, 0.0)
    recipe = _recipe(backend="torchao", scheme="int8_weight_only")
    mixed.write_recipe(recipe, chosen, mixed.Budget("bytes"), tmp_path / "recipe.yaml")
    wanted = _quantize(files.load(tmp_path / "recipe.yaml"))

    video = specs.load(specs.find("tiny-cogvideox"), "bf16", "cpu")
    quantization.apply(video.denoiser, wanted)
    expected = specs.load(specs.find("tiny-cogvideox"), "bf16", "cpu").denoiser
    configs = {
        "int8_weight_only": ao.Int8WeightOnlyConfig(set_inductor_config=False),
        "int4_weight_only": ao.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=ao.PerGroup(32)
        ),
    }
    by_name = {name: configs[scheme] for name, scheme in chosen.schemes.items()}
    ao.quantize_(expected, ao.FqnToConfig(by_name), filter_fn=None)
    checkpoint._declare(video.denoiser, wanted)
    video.denoiser.save_pretrained(str(tmp_path / "saved"))
    loaded = CogVideoXTransformer3DModel.from_pretrained(
        str(tmp_path / "saved"), dtype=torch.bfloat16
    )
    for module in (video.denoiser, loaded):
        for name, layer in expected.named_modules():
            if isinstance(layer, torch.nn.Linear):
                ours = module.get_submodule(name).weight
                assert type(ours.data) is type(layer.weight.data), name
                assert (ours.dequantize() if name in by_name else ours).equal(
                    layer.weight.dequantize() if name in by_name else layer.weight
                ), name


def test_a_mixed_recipe_is_compared_with_a_reference_of_its_settings(tmp_path: Path) -> None:
    """Whatever the search was told, and whatever is shipped under the reference's name."""
    settings = files.overrides(["generation.steps=5", "prompts.count=8", "outliers.factor=30"])
    both = plan([RECIPES / "calibrated" / "packed-int4.yaml"], settings)
    (reference,), (own,) = (
        [item.recipe for item in both if item.implied == implied] for implied in (True, False)
    )
    chosen = choice.Choice({"transformer_blocks.0.attn1.to_q": "int8_weight_only"}, 0.0, 0.0, 0.0)
    mixed.write_recipe(own, chosen, mixed.Budget("bytes"), tmp_path / "recipe.yaml")
    mixed.write_reference(reference, tmp_path)
    again = [item.recipe for item in plan([tmp_path / "recipe.yaml"], {})]
    assert [recipe.name for recipe in again] == ["fp32", "calibrated/packed-int4-mixed"]
    assert again[0].settings_fingerprint() == again[1].settings_fingerprint()
    assert again[0].outliers == own.outliers


def test_a_budget_with_room_for_every_layer_as_it_is_leaves_a_recipe_that_quantizes_nothing(
    tmp_path: Path,
) -> None:
    """As where a CPU is fastest in BF16: it has to run like any other."""
    recipe = _recipe()
    chosen = choice.Choice(dict.fromkeys(FOUR, "none"), 1.0, 0.0, 0.0)
    mixed.write_recipe(recipe, chosen, mixed.Budget("latency"), tmp_path / "recipe.yaml")
    written = files.load(tmp_path / "recipe.yaml")
    assert written.variant == recipe.variant.model_copy(update={"quantize": None})
    found = mixed.Found(
        unit="latency", budget=2.0, cost=1.0, predicted=0.0, error=0.0, gap=0.0,
        layers=chosen.schemes, uniform=[], recipe="recipe.yaml", chart="sensitivity.png",
    )  # fmt: skip
    assert mixed.lines(found)[-1].startswith("nothing is quantized")


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


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantos_schemes_are_rated_by_the_weights_that_it_stores(bits: int) -> None:
    """A range in place of a magnitude, in groups of 32 to 128 by what divides a row, or a row."""
    library = pytest.importorskip("optimum.quanto")
    for width, group in ((96, None), (160, 32), (192, 96), (256, 128), (304, None)):
        whole = torch.nn.Sequential(torch.nn.Linear(width, 8))
        whole[0].weight.data.abs_()
        wanted = Quantize(backend="quanto", scheme=f"int{bits}_weight_only")
        rated, inputs = sensitivity.weights_of(whole[0], wanted, None)  # type: ignore[arg-type]
        library.quantize(whole, weights=f"qint{bits}")
        library.freeze(whole)
        stored = whole[0].weight
        assert bits == 8 or stored._group_size == group  # type: ignore[operator,union-attr]
        assert rated.equal(stored.dequantize())  # type: ignore[operator,union-attr]
        assert inputs.format is None
    with pytest.raises(ValueError, match="not of one size"):
        builds.group_of(wanted)
    with pytest.raises(ValueError, match="its own tensors"):
        schemes.numbers(wanted, torch.float32)


def test_what_is_not_searched_is_refused() -> None:
    wanted = Quantize(backend="quanto", scheme="int4_weight_only", convolutions=True)
    with pytest.raises(InputError, match="linears alone are searched"):
        sensitivity.candidates(wanted)


def test_a_recipe_without_quantization_cannot_be_searched(tmp_path: Path) -> None:
    recipe = files.load(RECIPES / "bf16.yaml")
    with pytest.raises(InputError, match="nothing to search"):
        mixed.search(recipe, mixed.Budget("bytes"), tmp_path)


def test_schemes_that_the_model_cannot_have_are_no_candidates() -> None:
    """Weights of few bits share a scale in groups, which have to divide every layer's width."""
    machine = support.Machine("cpu", packages=frozenset({"torchao"}))
    narrow = support.ModelFacts("CogVideoXPipeline", {"norm.linear": 16}, 16, True, True)
    here = dataclasses.replace(machine, model=narrow)
    wanted = Quantize(backend="torchao", scheme="int8_weight_only")
    recipe = Recipe(name="mine", variant=Variant(quantize=wanted))
    known, fitting = (mixed._possible(recipe, wanted, one) for one in (machine, here))
    assert set(known) - set(fitting) == {"int4_weight_only", "int2_weight_only"}
    few = wanted.model_copy(update={"scheme": "int4_weight_only"})
    with pytest.raises(Unsupported, match="divides the width"):
        mixed._possible(recipe, few, here)
