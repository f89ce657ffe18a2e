"""Graphs that are exported once and filled with other weights later, against fresh exports."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from tiny import build, inputs, settings

from qbench.engines import onnx as exporting
from qbench.engines import onnx_kept
from qbench.engines.inputs import signature


def _tensors(path: Path) -> dict[str, bytes]:
    found = {one.name: one.raw_data for one in onnx.load(path).graph.initializer}
    assert all(found.values())
    return found


def test_a_graph_is_exported_once_and_holds_whatever_weights_the_module_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = build("cogvideox", tmp_path, torch.float32)
    run = settings(video)
    first = inputs(video, run, [0])
    module, signed = video.denoiser, signature(video, run, *first)
    call = signed.tensors((), video.example_inputs(run, *first))

    def export(name: str, cache: str) -> float:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        return exporting.export(module, signed, call, tmp_path / name)

    # Never in this process, which would keep what torch.onnx leaves behind.
    monkeypatch.setattr(exporting, "export_here", None)

    def change() -> None:
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(1.5).add_(torch.rand_like(weight))

    change()  # new norms are all ones, and what is equal cannot be told apart
    assert export("first.onnx", "here") < 0  # by the start of a process, which is not counted
    assert export("again.onnx", "here") > 0.1
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "first.onnx").read_bytes()

    change()
    assert export("filled.onnx", "here") > 0.1
    assert export("fresh.onnx", "elsewhere") < 0
    assert _tensors(tmp_path / "filled.onnx") == _tensors(tmp_path / "fresh.onnx")
    assert _tensors(tmp_path / "filled.onnx") != _tensors(tmp_path / "first.onnx")
    graphs = [onnx.load(tmp_path / name).graph for name in ("filled.onnx", "fresh.onnx")]
    assert graphs[0].node == graphs[1].node

    # Another size, another type, and a module that something was done to are other graphs.
    place = onnx_kept.place(module, signed, call)
    assert place is not None
    assert place.is_file()
    longer = {name: torch.cat([value] * 2) for name, value in call.items()}
    assert onnx_kept.place(module, signed, longer) != place
    hook = module.transformer_blocks[0].register_forward_hook(lambda *_: None)
    assert onnx_kept.place(module, signed, call) is None
    hook.remove()
    monkeypatch.setattr(module.proj_out, "forward", lambda x: x)
    assert onnx_kept.place(module, signed, call) is None
    monkeypatch.undo()
    assert onnx_kept.place(module.to(torch.bfloat16), signed, call) != place

    # What cannot be read is as good as not there.
    place.write_bytes(place.read_bytes()[:1000])
    assert onnx_kept.fill(place, module, tmp_path / "damaged.onnx") is None


def test_a_graph_whose_weights_cannot_be_told_apart_is_not_kept(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(3, 4))
    with torch.no_grad():
        module[1].load_state_dict(module[0].state_dict())
    named = [onnx_kept._laid(f"val_{i}", layer.weight, True) for i, layer in enumerate(module)]
    biases = [
        onnx_kept._laid(f"module.{i}.bias", layer.bias, False) for i, layer in enumerate(module)
    ]
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[*named, *biases])
    model = onnx.helper.make_model(graph)
    assert onnx_kept._weights(model, module) is None
    with torch.no_grad():
        module[1].weight.add_(1)
    graph.initializer[1].CopyFrom(onnx_kept._laid("val_1", module[1].weight, True))
    model = onnx.helper.make_model(graph)
    assert onnx_kept._weights(model, module) == {
        "val_0": ("0.weight", True),
        "val_1": ("1.weight", True),
        "module.0.bias": ("0.bias", False),
        "module.1.bias": ("1.bias", False),
    }
    del model.graph.initializer[0]  # folded into something else
    assert onnx_kept._weights(model, module) is None
