"""A folder that `qbench export` wrote is measured like any variant, or refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import SMALL, qbench

from qbench.engines import exported, manifest
from qbench.engines.export import Exported
from qbench.errors import InputError, LoadError, Unsupported
from qbench.pipelines import specs
from qbench.recipe.files import load
from qbench.recipe.schema import Recipe
from qbench.report import tables
from qbench.results import store
from qbench.results.profiles import profiles_of
from qbench.results.ranking import rankings
from qbench.run.plan import plan

pytestmark = pytest.mark.slow


def _recipe(made: Exported, **changes: str) -> Recipe:
    return exported.recipe_of(made.folder, changes, {}).recipe


def test_folders_are_measured_beside_variants_and_make_the_same_videos(
    checkpoint: Exported, graph: Exported, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "runs"
    shutil.copytree(finished, out)  # the reference and int8 are there already
    places = [str(made.folder) for made in (checkpoint, graph)]
    done = qbench("run", *places, *SMALL, "--device=cpu", f"--out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {r.recipe.name: r for _, r in store.read_all(store.find([out]))[0]}
    engine, module = found["exported/onnx"], found["exported/int8-diffusers"]
    assert module.outputs_sha256 == found["int8"].outputs_sha256
    assert module.weights_bytes == found["int8"].weights_bytes
    assert module.reference == found["int8"].reference
    for made, record in ((graph, engine), (checkpoint, module)):
        held = record.recipe.variant.exported
        assert held is not None
        assert held.sha256 == manifest.sha256(made.folder / manifest.FILE) == made.sha256
        assert record.facts["engine_build_s"] == made.manifest.build_s
        assert record.facts["parity_relative_error"] <= made.manifest.parity_limit
    assert engine.weights_bytes == pytest.approx(4 * 9_673_024, rel=0.1)
    assert engine.quality["psnr"].value > 60
    [ranking] = rankings(store.read_all(store.find([out]))[0])
    layers = profiles_of(ranking)[engine.run].layers
    assert any(one.name == "transformer_blocks.0.ff.net.0.proj" for one in layers)
    assert {one.precision for one in layers if one.kind == "MatMul"} == {"float"}
    column = tables.HEADERS.index("build")
    assert tables.time_text(graph.manifest.build_s) in {
        r.cells[column] for r in tables.rows(ranking)
    }


def test_a_choice_that_the_folder_holds_cannot_be_made_again(
    checkpoint: Exported, graph: Exported
) -> None:
    with pytest.raises(InputError, match=r"written with its own; what is left .* step_share"):
        _recipe(graph, **{"variant.compile.scope": "blocks"})
    assert _recipe(checkpoint, **{"variant.compile.scope": "model"}).variant.compile
    assert _recipe(graph, **{"variant.step_share": "0.5"}).variant.step_share == 0.5
    assert _recipe(graph).fingerprint() != _recipe(checkpoint).fingerprint()


def test_an_engine_at_another_size_or_of_another_model_is_refused_before_anything_runs(
    checkpoint: Exported, graph: Exported, tmp_path: Path
) -> None:
    larger = {"generation.frames": "33", "generation.height": "128", "generation.width": "128"}
    changes = [f"--set={key}={value}" for key, value in larger.items()]
    done = qbench("run", str(graph.folder), *SMALL, *changes, f"--out={tmp_path / 'runs'}")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"qbench: {graph.folder}: generation: ")
    assert "of 17x64x64 (frames, height, width), and these are of 33x128x128" in line
    assert not (tmp_path / "runs").exists()
    same = {"generation.frames": "17", "generation.height": "64"}  # what it has without a word
    assert plan([graph.folder], same)[-1].recipe.generation.frames == 17
    assert plan([checkpoint.folder], larger)[-1].recipe.generation.frames == 33  # torch's module
    with pytest.raises(InputError, match="is not the one of which"):
        plan([graph.folder], {"model": "tiny-zeroscope"})


def test_where_a_folder_lies_is_no_part_of_what_is_measured(
    graph: Exported, tmp_path: Path
) -> None:
    moved = shutil.copytree(graph.folder, tmp_path / "elsewhere")
    assert exported.recipe_of(moved, {}, {}).recipe.fingerprint() == _recipe(graph).fingerprint()


def test_the_reference_of_a_folder_is_found_beside_what_it_is_named_with(
    checkpoint: Exported, tmp_path: Path
) -> None:
    """A folder has left its recipe's neighbours behind."""
    place = shutil.copytree(checkpoint.folder, tmp_path / "engines/own")
    facts = json.loads((place / manifest.FILE).read_text())
    facts["recipe"]["reference"] = "own"
    (place / manifest.FILE).write_text(json.dumps(facts))
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("own", "other"):
        own = "null" if name == "own" else "own"
        (mine / f"{name}.yaml").write_text(f"extends: qbench:fp32\nreference: {own}\n")
    with pytest.raises(InputError, match=r"'own'.* name that recipe's file as well"):
        plan([place], {})
    assert [one.implied for one in plan([place], {"reference": "null"})] == [False]
    for named, implied in (("own", False), ("other", True)):
        first, *rest = plan([mine / f"{named}.yaml", place], {"generation.steps": "4"})
        assert (first.recipe.name, first.implied) == ("own", implied)
        assert all(one.recipe.reference == "own" for one in rest)


def test_machine_code_of_a_recipe_that_names_a_folder_needs_someone_to_vouch_for_it(
    graph: Exported, tmp_path: Path
) -> None:
    """A recipe from elsewhere could name a folder from elsewhere."""
    place = tmp_path / "engine"
    shutil.copytree(graph.folder, place)
    facts = json.loads((place / manifest.FILE).read_text())
    (place / manifest.FILE).write_text(json.dumps(facts | {"format": "aoti"}))
    recipe = exported.recipe_of(place, {}, {}).recipe
    held = recipe.variant.exported
    assert held is not None
    lines = ["extends: qbench:base", "variant:", f"  exported: {{folder: {place}, format: aoti,"]
    (tmp_path / "mine.yaml").write_text("\n".join([*lines, f"    sha256: {held.sha256}}}\n"]))
    assert load(tmp_path / "mine.yaml").variant.exported == held
    done = qbench("run", str(tmp_path / "mine.yaml"), f"--out={tmp_path / 'runs'}")
    assert done.returncode == 2
    assert "aoti is machine code" in done.stderr
    for trust, expect in ((True, ()), (False, (held.sha256,)), (False, ("a" * 64, held.sha256))):
        exported.check(recipe, trust, expect)
    with pytest.raises(InputError, match="its SHA-256 is"):
        exported.check(recipe, False, ("a" * 64,))


def test_a_folder_that_is_not_what_was_exported_is_not_measured(
    graph: Exported, tmp_path: Path
) -> None:
    model = specs.find("tiny-cogvideox")
    video = specs.load(model, "fp32", "cpu")
    recipe = _recipe(graph)
    with pytest.raises(LoadError, match="is not the one of which"):
        exported.install(video, recipe.model_copy(update={"weights": "random"}), model, "cpu")
    with pytest.raises(Unsupported, match="built for cpu, and this run is on cuda"):
        exported.install(video, recipe, model, "cuda")
    place = tmp_path / "engine"
    shutil.copytree(graph.folder, place)
    copied = exported.recipe_of(place, {}, {}).recipe
    exported.check(copied, False, ())
    os.truncate(place / "parity.json", 10)  # told before the reference runs
    with pytest.raises(InputError, match=r"parity\.json: 10 bytes instead of"):
        exported.check(copied, False, ())
    shutil.copy(Path(graph.folder) / "parity.json", place)
    with (place / "denoiser.onnx").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(LoadError, match="it was changed"):
        exported.install(video, copied, model, "cpu")
    (place / manifest.FILE).write_text((place / manifest.FILE).read_text() + " ")
    with pytest.raises(LoadError, match="changed since the run was planned"):
        exported.install(video, copied, model, "cpu")
