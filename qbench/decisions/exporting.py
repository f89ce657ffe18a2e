"""The command that writes a variant for a deployment."""

from __future__ import annotations

import shlex

from qbench.engines import formats
from qbench.recipe import shipped
from qbench.recipe.schema import Recipe
from qbench.results.record import Record


def export_command(record: Record) -> str:
    """The command that writes the variant for a deployment, or why none can."""
    recipe = record.recipe
    name = _recipe_name(recipe)
    words = ["qbench", "export", name, "--out", f"engines/{recipe.plain_name}"]
    fitting = [form for form in formats.MODULES if not formats.module(form).refuses(recipe.variant)]
    if not fitting:
        implied = formats.implied(recipe.variant)
        reason = formats.module(implied).refuses(recipe.variant)
        return f"no format holds it ({reason}); in Python: qbench.apply(pipe, {name!r})"
    if formats.implied(recipe.variant) not in fitting:
        words += ["--format", fitting[0]]
    if "model" in record.overrides:
        words += ["--model", record.overrides["model"]]
    for key, value in record.overrides.items():
        if key.partition(".")[0] == "variant":
            words += ["--set", f"{key}={value}"]
    return shlex.join(words)


def _recipe_name(recipe: Recipe) -> str:
    """As `qbench` finds it: records of earlier versions have no folder in the name."""
    known = shipped.names()
    if recipe.name in known:
        return recipe.name
    below = [name for name in known if name.endswith(f"/{recipe.name}")]
    return below[0] if len(below) == 1 else recipe.name
