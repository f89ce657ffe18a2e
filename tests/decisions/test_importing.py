"""Records of another machine: what is taken in, what is refused, and what is left alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from made_records import made, placed
from typer.testing import CliRunner

from qbench.cli import app
from qbench.decisions.evidence import evidence
from qbench.decisions.history import history
from qbench.decisions.importing import Imported, lines, take_in
from qbench.errors import InputError
from qbench.report import tables
from qbench.results import origin, store
from qbench.results.ranking import rankings

PUBLISHED = ROOT / "results/published"


def test_an_archive_comes_in_whole_once_and_reports_name_it(tmp_path: Path) -> None:
    place = PUBLISHED / "amd-epyc-2t"
    first = take_in([place], tmp_path / "mine")
    assert {item.status for item in first.items} == {"imported"}
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    again = take_in([place], tmp_path / "mine")
    assert {item.status for item in again.items} == {"here already"}
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    found, unreadable = store.read_all(store.find([tmp_path / "mine"]))
    assert not unreadable
    theirs, _ = store.read_all(store.find([place]))
    assert sorted(r.run for _, r in found) == sorted(r.run for _, r in theirs)
    (ranking,) = rankings(found)
    (told,) = [line for line in tables.remarks(ranking) if "imported" in line]
    assert str(place) in told
    assert "fp32" in told
    # What lay beside a record is beside it still.
    assert any(path.name == "profile.json" for path in before)


def test_every_published_record_is_plausible(tmp_path: Path) -> None:
    found = take_in([PUBLISHED / "h100/videos", PUBLISHED / "planted-faults"], tmp_path)
    assert not found.refused


def _own(facts: dict[str, Any], *path: str, value: object) -> None:
    inside = facts
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = value


FORGERIES: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "schema": ("schema", lambda f: _own(f, "schema_version", value=99)),
    "extra": ("schema", lambda f: _own(f, "extra", value=1)),
    "another card": (
        "fingerprints",
        lambda f: _own(f, "environment", "device_name", value="NVIDIA B200"),
    ),
    "another torch": (
        "fingerprints",
        lambda f: _own(f, "environment", "libraries", "torch", value="9.9.9"),
    ),
    "faster than its samples": ("samples", lambda f: _own(f, "latency", "median", value=0.001)),
    "better than its samples": ("samples", lambda f: _own(f, "quality", "psnr", "value", value=99)),
    "pairs of another run": ("samples", lambda f: _own(f, "paired_reference_s", value=[1.0])),
    "nothing made": ("whole", lambda f: _own(f, "generation", value={})),
    "longer than it ran": ("times", lambda f: _own(f, "ended", value=f["started"])),
    "before it began": ("times", lambda f: _own(f, "ended", value="2020-01-01T00:00:00+00:00")),
    "in the future": ("times", lambda f: _own(f, "ended", value="2999-01-01T00:00:00+00:00")),
    "no date": ("times", lambda f: _own(f, "started", value="yesterday")),
    "too much memory": (
        "memory",
        lambda f: _own(f, "stages", "denoise", "peak", "resident_bytes", value=2**50),
    ),
    "videos that are not there": ("quality", lambda f: _own(f, "videos", value=500)),
    "ssim above one": (
        "quality",
        lambda f: _own(
            f, "quality", "ssim", value={"value": 7.0, "unit": "0-1", "better": "higher"}
        ),
    ),
    "lower is better": (
        "quality",
        lambda f: _own(f, "quality", "psnr", "better", value="lower"),
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_record_that_contradicts_itself_is_named_and_left_out(tmp_path: Path, name: str) -> None:
    check, forge = FORGERIES[name]
    folder = placed(made("int8"), tmp_path / "theirs")
    placed(made("fp16"), tmp_path / "theirs")
    facts = json.loads((folder / "record.json").read_text())
    forge(facts)
    (folder / "record.json").write_text(json.dumps(facts))
    found = take_in([tmp_path / "theirs"], tmp_path / "mine")
    assert sorted(item.status for item in found.items) == ["imported", "refused"]
    (bad,) = [item for item in found.items if item.status == "refused"]
    assert check in [c.name for c in bad.checks if c.faults], bad.checks
    assert str(folder) in "\n".join(lines(found))
    assert len(store.find([tmp_path / "mine"])) == 1


def test_links_are_not_followed_and_nothing_is_overwritten(tmp_path: Path) -> None:
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    folder = placed(made("int8", files={"contact_sheet": "sheet.webp", "log": "log.txt"}), theirs)
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", folder / "sheet.webp")
    (folder / "log.txt").write_text("a log")
    linked = theirs / "linked"
    linked.mkdir()
    os.symlink(folder / "record.json", linked / "record.json")
    os.symlink(theirs, theirs / "circle")
    found = take_in([theirs], mine)
    assert sorted(item.status for item in found.items) == ["imported", "refused"]
    copied = Path(next(item.folder for item in found.items if item.folder))
    assert sorted(path.name for path in copied.iterdir()) == [
        "log.txt", origin.FILE, "record.json",
    ]  # fmt: skip
    assert (copied / "record.json").read_bytes() == (folder / "record.json").read_bytes()
    assert not [path for path in mine.rglob("*") if path.name.startswith(".import")]
    (copied / "log.txt").write_text("mine now")
    take_in([theirs], mine)
    assert (copied / "log.txt").read_text() == "mine now"


def test_names_from_a_record_stay_inside_the_folder(tmp_path: Path) -> None:
    shell = made("int8", files={"videos": "../..", "log": "/etc/passwd", "a": "record.json"})
    placed(shell, tmp_path / "theirs")
    found = take_in([tmp_path / "theirs"], tmp_path / "mine")
    (item,) = found.items
    assert item.status == "imported"
    assert sorted(path.name for path in Path(item.folder).iterdir()) == [origin.FILE, "record.json"]
    assert (tmp_path / "mine") in Path(item.folder).parents


def test_imported_figures_are_no_promise_for_this_card_and_no_part_of_its_history(
    tmp_path: Path,
) -> None:
    own = made("int8", run="own", started="2026-01-01")
    for run in ("b", "c"):
        placed(made("int8", run=run, started="2026-02-02"), tmp_path / "theirs")
    take_in([tmp_path / "theirs"], tmp_path / "mine")
    with pytest.raises(InputError, match="nothing was measured on this machine"):
        evidence([tmp_path / "mine"], [], None, own.environment.hardware())
    placed(own, tmp_path / "mine")
    found = evidence([tmp_path / "mine"], [], None, own.environment.hardware())
    assert [record.run for record in found.ranking.records] == ["own"]
    (series,) = history([tmp_path / "mine"], None, None).series
    assert {point.run for point in series.points} == {"b", "c"}


def test_unfinished_runs_are_left_out_and_are_no_fault(tmp_path: Path) -> None:
    placed(made("int8", status="interrupted"), tmp_path / "theirs")
    found: Imported = take_in([tmp_path / "theirs"], tmp_path / "mine")
    assert [item.status for item in found.items] == ["unfinished"]
    assert not found.refused


def test_exit_codes(tmp_path: Path) -> None:
    call = CliRunner().invoke
    folder = placed(made("int8"), tmp_path / "theirs")
    words = ["import", str(tmp_path / "theirs"), "--out", str(tmp_path / "mine")]
    assert call(app, words).exit_code == 0
    (folder / "record.json").write_text("{")
    refused = call(app, [*words, "--json"])
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["items"][0]["status"] == "refused"
    for place in (tmp_path / "none", tmp_path / "mine"):
        error = call(app, ["import", str(place), "--out", str(tmp_path / "mine")]).exception
        assert isinstance(error, InputError)
