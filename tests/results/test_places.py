"""Places that hold what may not be read: said in a line each, and never skipped in silence."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, as_anybody, qbench

from qbench.decisions import places
from qbench.errors import InputError
from qbench.results import archive, store

PACKED = ROOT / "results/published/amd-epyc-2t/records.jsonl.xz"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two runs below the current folder, of which one is locked."""
    for (_, text), name in zip(archive.records(PACKED), ("locked", "open"), strict=False):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / store.FILE).write_bytes(text)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # nobody may come here from above
    locked = Path("runs/locked")
    locked.chmod(0)
    yield Path("runs")
    locked.chmod(0o755)


def test_a_run_that_may_not_be_looked_into_is_named(runs: Path) -> None:
    line = f"{runs / 'locked'}: cannot be read: Permission denied"
    with as_anybody():
        found, unreadable = places.read([runs])
        neighbours = store.siblings(runs / "open" / store.FILE)
        told = []
        for place in (runs / "locked", runs / "locked" / store.FILE):
            with pytest.raises(InputError) as caught:
                places.read([place])
            told.append(str(caught.value))
    assert [path for path, _ in found] == [runs / "open" / store.FILE]
    assert unreadable == [line]
    assert neighbours == [runs / "open" / store.FILE]
    assert told == [line, f"{runs / 'locked' / store.FILE}: cannot be read: Permission denied"]


def test_a_locked_neighbour_hides_no_other(tmp_path: Path, runs: Path) -> None:
    others = [runs / f"{number}" / store.FILE for number in range(8)]
    for path in others:
        shutil.copytree(runs / "open", path.parent)
    with as_anybody():
        assert store.siblings(others[0]) == [*others, runs / "open" / store.FILE]


def test_commands_name_what_is_no_file_and_end_where_nothing_else_is_there(tmp_path: Path) -> None:
    """A folder or a dangling link in a record's place, which root cannot read either."""
    (tmp_path / "folder" / store.FILE).mkdir(parents=True)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / store.FILE).symlink_to(tmp_path / "nowhere")
    told = {
        "folder": f"{tmp_path / 'folder' / store.FILE}: cannot be read: Is a directory",
        "link": f"{tmp_path / 'link' / store.FILE}: cannot be read: No such file or directory",
    }
    out = f"--out={tmp_path / 'out'}"
    for name, line in told.items():
        place = str(tmp_path / name)
        for words in (
            ["report", place, out], ["power", place], ["history", place],
            ["compare", place, str(PACKED)], ["pick", "--records", place],
        ):  # fmt: skip
            done = qbench(*words)
            assert (done.returncode, done.stderr) == (2, f"qbench: {line}\n"), words
    done = qbench("report", str(PACKED), str(tmp_path), out)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [f"qbench: left out: {line}" for line in told.values()]
    own = f"--out={tmp_path.parent / 'own'}"
    unread = qbench("import", str(tmp_path / "folder"), own)
    assert (unread.returncode, unread.stderr) == (2, f"qbench: {told['folder']}\n")
    refused = qbench("import", str(tmp_path), own)  # a link is, wherever it leads
    assert refused.returncode == 1
    assert refused.stdout.endswith("2 refused\n")


def test_links_in_a_circle_and_names_too_long_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop.yaml").symlink_to("loop.yaml")
    Path("folder").mkdir()
    Path("folder/loop.yaml").symlink_to("loop.yaml")
    for place in ("loop.yaml", "folder", "x" * 300):
        for words in (
            ["import", place], ["explain", place], ["report", place], ["validate", place],
            ["compare", place, place], ["verify", f"{place}/loop.yaml"], ["pick", "--model", place],
        ):  # fmt: skip
            done = qbench(*words, cwd=tmp_path)
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), (words, done.stderr)
