"""Records survive; what is not a record is named and left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, qbench

from qbench.quality.outputs import FOLDER, Outputs
from qbench.recipe.files import load
from qbench.results import store
from qbench.results.record import SCHEMA
from qbench.run import folders


def _one(finished: Path, recipe: str) -> Path:
    return next(finished.glob(f"*/{recipe}-*/record.json"))


def test_record_is_complete_and_round_trips(finished: Path, tmp_path: Path) -> None:
    record = store.read(_one(finished, "int8"))
    assert record.status == "ok"
    assert store.read(store.write(record, tmp_path)) == record
    text = (tmp_path / store.FILE).read_text()
    assert sum('"samples": [' in line and line.endswith("],") for line in text.splitlines()) > 5
    assert set(record.stages) >= {"load", "quantize", "text_encode", "denoise", "decode", "save"}
    assert record.generation["steps"] == 2
    assert record.generation["frames"] == 17
    assert [len(steps) for steps in record.step_s] == [2]
    assert record.reference
    assert record.reference.recipe == "fp32"
    assert record.overrides["generation.steps"] == "2"
    assert {"psnr", "ssim", "clip_score", "fvd_reference", "adherence"} <= set(record.quality)
    assert len(record.quality["psnr"].samples or []) == 2
    assert "not comparable" in record.quality["adherence"].note


def test_stages_of_a_video_add_up_to_its_latency(finished: Path) -> None:
    record = store.read(_one(finished, "fp32"))
    whole = sum(record.stages[s].seconds[0] for s in ("text_encode", "denoise", "decode"))
    assert record.latency_s[0] == pytest.approx(whole, rel=1e-9)
    assert sum(record.step_s[0]) <= record.stages["denoise"].seconds[0]


def test_weights_shrink_as_the_scheme_says(finished: Path) -> None:
    full, int8 = (store.read(_one(finished, name)) for name in ("fp32", "int8"))
    assert full.weights_bytes == pytest.approx(4 * 9_673_024, rel=0.02)
    # One byte a weight, a scale a row, and what is no linear stays as it was.
    assert int8.weights_bytes == pytest.approx(9_673_024, rel=0.08)
    assert int8.facts["quantized_parameter_share"] > 0.98


def test_fingerprints_share_what_is_shared(finished: Path) -> None:
    full, int8 = (store.read(_one(finished, name)) for name in ("fp32", "int8"))
    assert full.fingerprints.ranking() == int8.fingerprints.ranking()
    assert full.fingerprints.recipe != int8.fingerprints.recipe
    assert load(Path("recipes/fp32.yaml"), full.overrides).fingerprint() == (
        full.fingerprints.recipe
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "not a record"),
        (
            lambda text: text.replace(f'"schema_version": {SCHEMA}', '"schema_version": 99'),
            "schema version",
        ),
        (lambda text: text.replace('"status": "ok"', '"status": "splendid"'), "status"),
        (lambda text: json.dumps([1]), "not a record"),
    ],
)
def test_damaged_record_is_refused_with_its_name(
    finished: Path, tmp_path: Path, damage: object, reason: str
) -> None:
    text = _one(finished, "int8").read_text()
    path = tmp_path / "record.json"
    path.write_text(damage(text))  # type: ignore[operator]
    with pytest.raises(store.Unreadable) as caught:
        store.read(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_report_names_the_corrupt_record_and_shows_the_rest(finished: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "record.json"
    broken.parent.mkdir()
    broken.write_text("{")
    done = qbench("report", str(finished), str(broken.parent), f"--out={tmp_path / 'out'}")
    assert done.returncode == 0
    assert str(broken) in done.stderr
    text = (tmp_path / "out" / "report.md").read_text()
    assert str(broken) in text
    assert "int8" in text
    alone = qbench("report", str(broken.parent), f"--out={tmp_path / 'alone'}")
    assert alone.returncode == 2  # nothing of it can be shown
    assert str(broken) in alone.stderr
    assert not (tmp_path / "alone").exists()


def test_interrupted_write_leaves_the_old_record(finished: Path, tmp_path: Path) -> None:
    record = store.read(_one(finished, "int8"))
    path = store.write(record, tmp_path)
    before = path.read_bytes()
    unserialisable = record.model_copy(update={"notes": [object()]})
    with pytest.raises(Exception, match=r".+"):
        store.write(unserialisable, tmp_path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["record.json"]


def test_memory_of_captured_graphs_is_what_is_reserved() -> None:
    """Between replays torch counts the graphs' pool as free: 1.7 GiB allocated of 4.5 held."""
    found, _ = store.read_all(store.find([ROOT / "results/published/h200/peers"]))
    [record] = [record for _, record in found if record.recipe.name == "diffusers-torchao"]
    peak = record.peak()
    assert record.held_bytes(peak) == peak.reserved_bytes != peak.allocated_bytes
    plain = record.recipe.variant.model_copy(update={"compile": None})
    recipe = record.recipe.model_copy(update={"variant": plain})
    eager = record.model_copy(update={"recipe": recipe})
    assert eager.held_bytes(peak) == peak.allocated_bytes


def test_the_videos_of_a_reference_are_held_against_its_record(
    finished: Path, tmp_path: Path
) -> None:
    """Others in their place are told, and so are deleted ones: both have the run made anew."""
    folder = shutil.copytree(_one(finished, "fp32").parent, tmp_path / "fp32")
    record = store.read(folder / store.FILE)
    assert folders.damage(folder, record) == ""
    kept = Outputs(folder / FOLDER)
    frames, latents = kept.read(0, 1)
    kept.add(0, frames.flip(2), latents)
    changed = folders.damage(folder, record)
    shutil.rmtree(folder / FOLDER)
    gone = folders.damage(folder, record)
    assert changed
    assert gone
    assert changed != gone
