"""The published matrices name recipes that exist and settings that they take."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench.quality import weights
from qbench.recipe.files import overrides
from qbench.run.plan import plan
from scripts import matrix


@pytest.mark.parametrize("name", matrix.PARTS)
def test_a_part_can_be_planned(name: str) -> None:
    part = matrix.PARTS[name]
    words = matrix.command(part, Path("out"), "cpu", part.recipes, ["measure.timeout_s=9"])
    paths = [Path(word) for word in words if word.startswith("/") and "recipes" in word]
    assert len(paths) == len(part.recipes)
    files = [file for p in paths for file in (sorted(p.glob("*.yaml")) if p.is_dir() else [p])]
    settings = [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    if weights.missing("i3d"):  # planning asks for them, and they are not this test's to fetch
        settings = [setting for setting in settings if setting != "quality.fvd.network=i3d"]
    planned = plan(files, overrides(settings))
    assert len(planned) >= len(paths)
    assert {item.recipe.measure.timeout_s for item in planned} == {9.0}


def test_shards_share_the_reference_and_cover_all_once() -> None:
    part = matrix.PARTS["quality"]
    shards = [matrix.chosen(part, [], (one, 3)) for one in (1, 2, 3)]
    assert {shard[0] for shard in shards} == {"fp32"}
    others = [name for shard in shards for name in shard[1:]]
    assert len(others) == len(set(others)) == len(part.recipes) - 1


def test_only_what_is_asked_for_stays_in_the_parts_order() -> None:
    part = matrix.PARTS["quality"]
    assert matrix.chosen(part, ["int8", "bf16", "fp32"], (1, 1)) == ["fp32", "bf16", "int8"]
