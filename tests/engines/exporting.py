"""Exports of the bundled model, short enough for tests."""

from __future__ import annotations

from pathlib import Path

from conftest import RECIPES

from qbench.engines import export, manifest
from qbench.recipe.files import load

SHORT = {"generation.steps": "4"}


def exported(name: str, out: Path, form: manifest.Format | None = None) -> export.Exported:
    return export.export(load(RECIPES / f"{name}.yaml", SHORT), out, form)
