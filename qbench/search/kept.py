"""What a search has measured, kept with what it was made from: one that was ended goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from qbench import textfile

if TYPE_CHECKING:
    from qbench.pipelines.known import Model
    from qbench.recipe.schema import Quantize, Recipe

Tell = Callable[[str], None]
Table = dict[str, dict[str, list[float]]]  # layer -> scheme -> squared relative errors
FILE = "sensitivity.json"
LIBRARIES = ("torch", "diffusers", "torchao", "optimum-quanto")  # that layers are tried with


class Kept(BaseModel):
    """The file. made_from: a digest of each thing that the errors depend on."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    made_from: dict[str, str]
    layers: Table


def made_from(
    recipe: Recipe,
    wanted: Quantize,
    model: Model,
    device: str,
    walk: Sequence[object],
    names: Sequence[str],
    schemes: Sequence[str],
    every: bool,
) -> dict[str, str]:
    """What the errors depend on, a digest each, by what a line calls it.

    walk: what says which trajectories there are.
    """
    from qbench.meters import environment
    from qbench.recipe.schema import digest

    outliers = recipe.outliers.model_dump() if recipe.outliers else None
    facts: dict[str, object] = {
        "model": [model.digest(recipe.weights), recipe.weights_variant, outliers],
        "walk of trajectories": [recipe.generation.model_dump(mode="json"), *walk],
        "quantization": wanted.model_copy(update={"layers": {}}).model_dump(mode="json"),
        "dtype": recipe.variant.dtype,
        "list of layers": list(names),
        "list of schemes": list(schemes),
        "--every": every,
        "device": device,
        "version of qbench": environment.code("search"),
        "version of a library": environment.libraries(LIBRARIES),
    }
    return {name: digest(fact) for name, fact in facts.items()}


def read(file: Path, made_from: Mapping[str, str], tell: Tell) -> Table:
    """What was measured before of the same; of anything else a line, and nothing."""
    try:
        found = Kept.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        tell(f"sensitivity: measured anew: {file} says not what it was made from, or is none")
        return {}
    others = [name for name, made in made_from.items() if found.made_from.get(name) != made]
    if others:
        tell(f"sensitivity: measured anew: {file} is of another {', '.join(others)}")
        return {}
    return found.layers


def write(file: Path, made_from: Mapping[str, str], table: Table) -> None:
    """Whole, or what is there stays."""
    made = Kept(made_from=dict(made_from), layers=table)
    textfile.replace(file, made.model_dump_json() + "\n")
