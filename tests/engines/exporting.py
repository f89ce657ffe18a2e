"""Exports of the bundled model, short enough for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx as graphs
import pytest
from conftest import RECIPES

from qbench.engines import export, manifest, onnx
from qbench.recipe.files import load

SHORT = {"generation.steps": "4"}


def damage_graphs(patched: pytest.MonkeyPatch, damage: Callable[[graphs.GraphProto], None]) -> None:
    """Have the graph of every export damaged, once it is written, as a faulty exporter would."""
    plain = onnx.export

    def damaged(module: object, signature: object, example: object, path: Path) -> float:
        seconds = plain(module, signature, example, path)  # type: ignore[arg-type]
        model = graphs.load(path)
        damage(model.graph)
        graphs.save(model, path)
        return seconds

    patched.setattr(onnx, "export", damaged)


def append(graph: graphs.GraphProto, kind: str, constant: graphs.TensorProto, **how: int) -> None:
    """Have a node of this kind, whose second input is the constant, make the graph's output."""
    [output] = graph.output
    for node in graph.node:
        node.output[:] = ["undamaged" if name == output.name else name for name in node.output]
    graph.initializer.append(constant)
    inputs = ["undamaged", constant.name]
    graph.node.append(graphs.helper.make_node(kind, inputs, [output.name], **how))


def exported(name: str, out: Path, form: manifest.Format | None = None) -> export.Exported:
    return export.export(load(RECIPES / f"{name}.yaml", SHORT), out, form)
