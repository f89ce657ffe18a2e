"""The rules of what runs where, held against what was run."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from qbench import support
from qbench.meters import environment
from qbench.recipe.schema import Compile, Memory, Variant
from qbench.results import store
from scripts import combinations

PUBLISHED = sorted((ROOT / "results/published").rglob("combinations.json.xz"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.parent.name)
def test_rules_say_what_came_of_every_combination(path: Path) -> None:
    facts = combinations.read(path)
    found = facts["machine"]
    machine = support.Machine(
        device=found["device"],
        capability=tuple(found["capability"]),
        packages=frozenset(found["packages"]),
        compiler=found["compiler"],
    )
    assert any(row["works"] for row in facts["rows"])
    said = {
        json.dumps(row["variant"]): combinations.disagreement(row, machine) for row in facts["rows"]
    }
    assert {variant: text for variant, text in said.items() if text} == {}


def test_hundreds_of_combinations_were_run_on_a_cpu_and_on_a_gpu() -> None:
    ran = {"cpu": 0, "cuda": 0}
    for path in PUBLISHED:
        facts = combinations.read(path)
        ran[facts["machine"]["device"]] += len(facts["rows"])
    assert min(ran.values()) > 300


def test_no_rule_refuses_what_ran_and_every_choice_ran() -> None:
    """The published records and combinations against the rules, whole and choice by choice."""
    found, _ = store.read_all(store.find([ROOT / "results/published"]))
    ran = [record for _, record in found if record.status == "ok"]
    assert len(ran) > 200
    variants: dict[str, list[Variant]] = {"cpu": [], "cuda": []}
    for record in ran:
        where, variant = record.environment, record.recipe.variant
        major, _, minor = (where.compute_capability or "0.0").partition(".")
        packages = frozenset({*support.PACKAGES, "onnxruntime-gpu"})
        machine = support.Machine(where.device, (int(major), int(minor)), packages, devices=8)
        assert support.why_not(variant, machine) is None, record.run
        variants[machine.device].append(variant)
    for path in PUBLISHED:
        facts = combinations.read(path)
        rows = [row["variant"] for row in facts["rows"] if row["works"]]
        made = [Variant.model_validate({"dtype": "bf16", **fields}) for fields in rows]
        variants[facts["machine"]["device"]] += made
    # No machine ran a recipe by TensorRT or had FlashAttention 3's own package, torchao's need.
    # ONNX Runtime's INT8 is for CPUs; other packed bits than four ran on a CPU alone.
    never = ("tensorrt", "torchao-fp8")
    not_on_a_gpu = (
        *never, '"backend": "onnxruntime"',
        *(f'"backend": "qbench", "scheme": "int{bits}_' for bits in (2, 3, 5, 6, 8)),
    )  # fmt: skip
    for those, but in (
        ([*variants["cpu"], *variants["cuda"]], never),
        (variants["cuda"], not_on_a_gpu),
    ):
        missing = _missing(those)
        assert all(any(word in each for word in but) for each in missing), missing
        assert all(any(word in each for each in missing) for word in but), "a word is there no more"


def test_every_axis_is_tried_or_left_out_by_name() -> None:
    tried = combinations.choices()
    assert tried.keys().isdisjoint(combinations.LEFT_OUT)
    assert {*tried, *combinations.LEFT_OUT} == set(Variant.model_fields)
    for axis, section, field in (("memory", Memory, "offload"), ("compile", Compile, "scope")):
        kinds = typing.get_args(section.model_fields[field].annotation)
        names = {name for kind in kinds for name in typing.get_args(kind) or (kind,)}
        assert {value[field] for value in tried[axis]} == names - {type(None)}


def _missing(variants: list[Variant]) -> set[str]:
    """The choices that none of these have."""
    return {
        f"{axis}: {json.dumps(value)}"
        for axis, values in combinations.choices().items()
        for value in values
        if not any(_has(variant, axis, value) for variant in variants)
    }


# Fields that say how much, not which.
AMOUNTS = {"interval", "threshold", "front", "first", "prompts", "calibration"}


def _has(variant: Variant, axis: str, value: Any) -> bool:
    own = variant.model_dump(mode="json")[axis]
    if not isinstance(value, dict) or own is None:
        return bool(own == value)
    same = all(own[key] == value[key] for key in value.keys() - AMOUNTS)
    return same and bool(own.get("calibration")) == bool(value.get("calibration"))


def test_a_rule_that_is_wrong_is_found_out() -> None:
    """What runs and is refused, and what fails and is not."""
    machine = support.Machine("cpu", packages=frozenset({"onnx", "onnxscript", "onnxruntime"}))
    runs = {"variant": {"engine": "onnxruntime"}, "works": True, "relative_error": 0.01}
    assert "no GEMMs in BF16" in (combinations.disagreement(runs, machine) or "")
    fails = {"variant": {"attention": "math"}, "works": False, "error": "ValueError: no"}
    assert combinations.disagreement(fails, machine) == "ValueError: no; the rules say: runs"
    assert combinations.disagreement(fails | {"works": True}, machine) is None


def test_combinations_go_on_where_they_stopped_and_on_the_same_machine_alone(
    tmp_path: Path,
) -> None:
    out = tmp_path / "combinations.json.xz"
    machine = support.Machine("cpu", packages=frozenset({"torchao"}))
    here = environment.read("cpu")
    made = combinations.begun(out, here, machine)
    assert made["rows"] == []
    made["rows"].append({"variant": {"fuse_qkv": True}, "works": True, "relative_error": 0.01})
    combinations.write(made, out)
    assert combinations.begun(out, here, machine) == made
    for other, place in (
        (here, support.Machine("cpu")),
        (here.model_copy(update={"device_name": "another"}), machine),
    ):
        with pytest.raises(SystemExit, match="another machine"):
            combinations.begun(out, other, place)


FULL = support.Machine("cuda", (9, 0), frozenset(support.PACKAGES))
AWQ = {"method": "awq", "prompts": 1}


@pytest.mark.parametrize(
    ("form", "inside", "chosen", "said"),
    [
        ("qbench", {"compile": {"scope": "model"}}, {"cuda_graph": True}, "scope blocks"),
        (
            "qbench",
            {"compile": {"scope": "model"}},
            {"cache": {"kind": "taylorseer", "interval": 2}},
            "one compiled program cannot",
        ),
        (
            "diffusers",
            {"quantize": {"backend": "quanto", "scheme": "int4_weight_only"}},
            {"compile": {}},
            "cannot be compiled",
        ),
        ("qbench", {"compile": {}}, {"cuda_graph": True}, None),
        ("aoti", {"compile": {"mode": "reduce-overhead"}}, {}, None),
        # Calibration is over: the way that the rule against both names.
        (
            "diffusers",
            {
                "quantize": {
                    "backend": "torchao", "scheme": "int8_weight_only", "calibration": AWQ,
                }
            },
            {"memory": {"offload": "model"}},
            None,
        ),
    ],
)  # fmt: skip
def test_what_is_chosen_beside_a_folder_is_held_against_what_is_in_it(
    form: str, inside: dict[str, Any], chosen: dict[str, Any], said: str | None
) -> None:
    exported = {"folder": "engine", "sha256": "0" * 64, "format": form}
    fields = {"dtype": "bf16", **inside, "exported": exported}
    plain = Variant.model_validate(fields)
    assert support.why_not(plain, FULL) is None
    assert not (plain.left_python and plain.captures_graphs)
    found = support.why_not(Variant.model_validate(fields | chosen), FULL)
    assert found == said or (said and said in (found or ""))


def test_what_a_folder_holds_is_asked_for_no_machine_of_its_own() -> None:
    """FP8 linears are computed in plain operations on a CPU, where an export is verified."""
    own = {"quantize": {"backend": "qbench", "scheme": "fp8_dynamic_row"}}
    exported = {"folder": "engine", "sha256": "0" * 64, "format": "qbench"}
    cpu = support.Machine("cpu", packages=frozenset(support.PACKAGES) - {"xformers"})
    assert support.why_not(Variant.model_validate(own), cpu)
    assert support.why_not(Variant.model_validate(own | {"exported": exported}), cpu) is None
