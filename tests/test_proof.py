"""What an export shows beside the parity of calls: a chart, and whole videos with their verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engines.exporting import append, damage_graphs
from onnx.numpy_helper import from_array
from PIL import Image
from pipelines.tiny import build, settings

import qbench
from qbench import proof, support
from qbench.engines import export, manifest
from qbench.errors import Unsupported
from qbench.optimizations.rules import Machine
from qbench.recipe.files import load, overrides

RECIPES = Path(qbench.__file__).parent.parent / "recipes"
SHORT = overrides(["generation.steps=4"])


def test_an_engine_of_its_own_quantization_is_held_against_the_plain_denoiser() -> None:
    recipe = load(RECIPES / "onnx-int8.yaml")
    plain = proof.twin(recipe, "onnx").variant
    assert (plain.engine, plain.quantize, plain.dtype) == (None, None, recipe.variant.dtype)
    kept = proof.twin(load(RECIPES / "fp8-dynamic.yaml"), "diffusers").variant
    assert kept.quantize is not None


@pytest.mark.parametrize(
    ("name", "form", "compiled"),
    [
        ("compile", "diffusers", "neither"),  # the folder leaves it open
        ("calibrated/packed-int4", "qbench", "both"),  # the folder compiles as it is opened
        ("compile", "aoti", "engine"),
        ("int8", "diffusers", "neither"),
    ],
)
def test_engine_and_variant_are_compiled_alike(
    name: str, form: manifest.Format, compiled: proof.Compiled
) -> None:
    recipe = load(RECIPES / f"{name}.yaml")
    assert proof.compiled(recipe.variant, form) == compiled
    beside = proof.twin(recipe, form).variant.compile
    assert beside == (recipe.variant.compile if compiled == "both" else None)


def test_what_a_format_compiles_is_held_against_the_machine_and_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Blocks alone would be compiled in Python, and what stands before them sees one row."""
    gpu = Machine("cuda", (9, 0), frozenset(support.PACKAGES))
    monkeypatch.setattr(support, "this_machine", lambda _: gpu)
    video = build("cogvideox", tmp_path)
    recipe = load(RECIPES / "int8-dynamic.yaml", overrides(["variant.quantize.exclude=[norm]"]))
    run = settings(video, guidance=1.0)
    proof.check_model(recipe, "diffusers", video, run)
    proof.check_machine(recipe, "aoti")
    with pytest.raises(Unsupported, match="more than 16 rows"):
        proof.check_model(recipe, "aoti", video, run)
    monkeypatch.setattr(support, "this_machine", lambda _: replace(gpu, compiler=False))
    with pytest.raises(Unsupported, match="AOTInductor needs"):
        proof.check_machine(recipe, "aoti")


def test_the_chart_shows_every_call(tmp_path: Path) -> None:
    calls = [
        {"timestep": t, "relative_l2_to_fp32": 0.01, "relative_l2_to_variant": 0.0}
        for t in (999.0, 10.0)
    ]
    proof.draw(calls, 0.02, tmp_path / proof.CHART)
    with Image.open(tmp_path / proof.CHART) as chart:
        assert min(chart.size) > 300


@pytest.mark.slow
def test_videos_of_an_engine_are_judged_and_sealed_with_it(graph: export.Exported) -> None:
    seen = json.loads((graph.folder / proof.VIDEOS).read_text())
    assert seen["videos"] == 4
    assert seen["verdict"].startswith("indistinguishable")
    assert seen["psnr"] > 50
    manifest.check_files(graph.folder, graph.manifest)
    assert {proof.VIDEOS, proof.CHART} <= set(graph.manifest.files)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "compiled"),
    [("compile/int8-compile", "neither"), ("calibrated/packed-int4", "both")],
)
def test_videos_of_a_compiled_recipe_are_those_of_the_variant_to_the_bit(
    tmp_path: Path, name: str, compiled: str
) -> None:
    """In BF16, where what a compiler fuses is rounded less often.

    Of packed linears two kinds are enough: the compiler makes a program for each.
    """
    settings = ["generation.steps=2", "generation.frames=9"]
    if compiled == "both":
        settings.append("variant.quantize.include=[ff]")
    recipe = load(RECIPES / f"{name}.yaml", overrides(settings))
    lines: list[str] = []
    made = export.export(
        recipe, tmp_path / "engine", tell=lines.append, prove=lambda f: proof.prove(f, recipe, 1)
    )
    seen = json.loads((made.folder / proof.VIDEOS).read_text())
    assert (seen["compiled"], seen["identical"], seen["psnr"]) == (compiled, True, 100)
    assert made.manifest.recipe.variant.compile is not None
    assert lines[-1].endswith("equal to the bit")
    assert f"in Python, {compiled} compiled: " in lines[-1]


@pytest.mark.slow
def test_an_engine_whose_videos_are_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted transpose is inside the limit of a call's parity, which is lifted for it."""
    recipe = load(RECIPES / "onnx.yaml", SHORT)
    columns = from_array(np.arange(8)[::-1].copy(), "columns")  # of latents, from right to left
    damage_graphs(monkeypatch, lambda graph: append(graph, "Gather", columns, axis=-1))
    monkeypatch.setattr(export, "FAITHFUL", 10.0)
    with pytest.raises(export.Differs, match="videos"):
        export.export(recipe, tmp_path / "wrong", prove=lambda f: proof.prove(f, recipe, 4))
    assert not (tmp_path / "wrong").exists()
    kept = tmp_path / "wrong.failed"
    assert (kept / proof.VIDEOS).is_file()
    assert not (kept / manifest.FILE).exists()
