"""Which parts of the matrix run side by side, and where."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts.matrix import PARTS
from scripts.side_by_side import chain, drop_own_videos, linked


def test_parts_that_follow_come_along_and_share_a_reference_where_they_are_comparable() -> None:
    found = dict(chain(["zeroscope-quality", "calibrated"]))
    assert found["calibrated-zeroscope"] == "zeroscope-quality"
    assert found["calibrated-outliers"] == "calibrated-outliers"
    for part, folder in found.items():
        assert PARTS[part].recipes[0] == PARTS[folder].recipes[0]
        assert PARTS[part].settings == PARTS[folder].settings


def test_what_is_timed_is_not_run_beside_others() -> None:
    with pytest.raises(SystemExit, match="steps is timed"):
        dict(chain(["quality", "steps"]))


def test_a_copied_reference_shares_its_videos_and_a_recipes_own_can_be_dropped(
    tmp_path: Path,
) -> None:
    reference, own = tmp_path / "reference", tmp_path / "own"
    reference.mkdir()
    (reference / "0-15.safetensors").write_bytes(b"theirs")
    (reference / "record.json").write_text("{}")
    shutil.copytree(reference, own, copy_function=linked)
    (own / "16-31.safetensors").write_bytes(b"ours")
    (own / "record.json").write_text("{1}")
    drop_own_videos(own)
    assert sorted(p.name for p in own.iterdir()) == ["0-15.safetensors", "record.json"]
    assert (own / "0-15.safetensors").samefile(reference / "0-15.safetensors")
    assert (reference / "record.json").read_text() == "{}"
