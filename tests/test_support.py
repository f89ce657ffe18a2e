"""The rules of what runs where, held against what was run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from qbench.variants import support
from scripts import combinations

PUBLISHED = sorted((ROOT / "results/published").rglob("combinations.json"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.parent.name)
def test_rules_say_what_came_of_every_combination(path: Path) -> None:
    facts = json.loads(path.read_text())
    found = facts["machine"]
    machine = support.Machine(
        device=found["device"],
        capability=tuple(found["capability"]),
        packages=frozenset(found["packages"]),
        compiler=found["compiler"],
    )
    assert len(facts["rows"]) > 250
    assert any(row["works"] for row in facts["rows"])
    said = {
        json.dumps(row["variant"]): combinations.disagreement(row, machine) for row in facts["rows"]
    }
    assert {variant: text for variant, text in said.items() if text} == {}


def test_a_rule_that_is_wrong_is_found_out() -> None:
    """What runs and is refused, and what fails and is not."""
    machine = support.Machine("cpu", packages=frozenset({"onnx", "onnxscript", "onnxruntime"}))
    runs = {"variant": {"engine": "onnxruntime"}, "works": True, "relative_error": 0.01}
    assert "no products in BF16" in (combinations.disagreement(runs, machine) or "")
    fails = {"variant": {"attention": "math"}, "works": False, "error": "ValueError: no"}
    assert combinations.disagreement(fails, machine) == "ValueError: no; the rules say: runs"
    assert combinations.disagreement(fails | {"works": True}, machine) is None
