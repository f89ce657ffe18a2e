"""Sizes are said in the unit that they are read in: a disk of 40 MiB is none of 0.0 GiB."""

from __future__ import annotations

import pytest
from conftest import ROOT

from qbench.cli import commands
from qbench.explain import explain
from qbench.results import store
from qbench.run import failures
from qbench.units import bytes_text

PUBLISHED = ROOT / "results/published"
MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (2048, "2 KiB"),
        (40 * MIB, "40 MiB"), (1000 * MIB, "1000 MiB"),
        (GIB, "1 GiB"), (1.5 * GIB, "1.5 GiB"), (139.8 * GIB, "140 GiB"), (4000 * GIB, "4000 GiB"),
    ],
)  # fmt: skip
def test_three_digits_in_the_largest_unit_below(size: float, text: str) -> None:
    assert bytes_text(size) == text


def test_small_sizes_are_said_in_mib_wherever_they_are_said() -> None:
    room = commands._room(300 * MIB, 40 * MIB)
    assert room == "raw videos will take about 300 MiB, more than 40 MiB free"
    assert commands._room(3 * GIB, 40 * GIB).endswith("3 GiB, of 40 GiB free")
    assert commands._room(30 * MIB, 40 * MIB) == ""
    facts = {"needed_bytes": 40.0 * MIB, "fragments_bytes": 200.0 * MIB}
    said = failures.memory_reason(MemoryError("no"), facts)
    assert said.startswith("needed 40 MiB at once, with 200 MiB more lost to fragments")


def test_a_small_model_s_weights_are_no_hundredth_of_a_gib() -> None:
    path, _ = store.read_all(store.find([PUBLISHED / "amd-epyc-2t"]))[0][0]
    (memory,) = [text for text in explain(path.parent)[0] if text.startswith("Memory peaks")]
    assert "MiB of it" in memory
    assert " 0." not in memory
