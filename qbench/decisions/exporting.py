"""The command that writes a variant for a deployment."""

from __future__ import annotations

import shlex

from qbench.engines import formats
from qbench.recipe import files, shipped
from qbench.recipe.schema import Recipe
from qbench.results.record import Record

SIZE = {"frames", "height", "width"}
WRITTEN: dict[str, bool | set[str]] = {
    **dict.fromkeys(("model", "weights_variant", "variant"), True),
    "generation": SIZE,
}


def export_command(record: Record) -> str:
    """The command that writes the variant for a deployment, or why none can.

    Of the model that was measured, at its size. A recipe that is not shipped is named as its file.
    """
    recipe = record.recipe
    if recipe.variant.exported:
        return f"it is one: {recipe.variant.exported.folder}"
    name, shipped_as = _recipe_name(recipe)
    words = ["qbench", "export", name, "--out", f"engines/{recipe.plain_name}"]
    fitting = [form for form in formats.MODULES if not formats.refuses(form, recipe.variant)]
    if not fitting:
        implied = formats.implied(recipe.variant)
        reason = formats.refuses(implied, recipe.variant)
        return f"no format holds it ({reason}); in Python: qbench.apply(pipe, {name!r})"
    if formats.implied(recipe.variant) not in fitting:
        words += ["--format", fitting[0]]
    if shipped_as is not None:
        changes = files.overriding(shipped_as, recipe, WRITTEN)
    else:
        changes = {
            key: text for key, text in record.overrides.items() if key.partition(".")[0] in WRITTEN
        }
    if changes.pop("model", None):
        words += ["--model", recipe.model]
    for key, value in changes.items():
        words += ["--set", f"{key}={value}"]
    return shlex.join(words)


def _recipe_name(recipe: Recipe) -> tuple[str, Recipe | None]:
    """As `qbench` finds it, and what is shipped by that name; else the name of its own file.

    Records of earlier versions have no folder in the name.
    """
    known = shipped.names()
    below = [name for name in known if name.endswith(f"/{recipe.name}")]
    if recipe.name not in known and len(below) != 1:
        return f"{recipe.name}.yaml", None
    name = recipe.name if recipe.name in known else below[0]
    return name, files.load(shipped.path(name))
