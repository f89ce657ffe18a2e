"""docs/recipes.md says what the schema says."""

from __future__ import annotations

from qbench.recipe import reference
from qbench.recipe.mistakes import all_fields


def test_the_documents_fields_are_the_schemas() -> None:
    text = reference.DOCUMENT.read_text()
    again = "python -m qbench.recipe.reference --write"
    assert reference.inserted(text) == text, f"the schema has changed: {again}"


def test_every_field_is_described() -> None:
    table = [line for line in reference.markdown().splitlines() if line.startswith("| `")]
    assert all(line.split(" | ")[-1].rstrip("| ") for line in table)
    leaves = {name.rpartition(".")[2] for name in all_fields()}
    assert leaves == {line.split("`")[1] for line in table} - {"size", "of"}
