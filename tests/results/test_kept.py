"""Records that were read before: what is kept of them never shows another record than the file."""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from pydantic import BaseModel

from qbench.decisions.history import history
from qbench.errors import InputError
from qbench.report import markdown
from qbench.report.page import data, write
from qbench.report.page.model import Page
from qbench.results import archive, codec, kept, store
from qbench.results.ranking import rankings
from qbench.results.record import Record

PACKED = ROOT / "results/published/amd-epyc-2t" / archive.FILE
RUNS = 5
COLUMNS = ("head", "rest", "numbers", "part", "head_digest", "rest_digest", "numbers_digest")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real records as folders, as many as are worth keeping, and a cache of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "FEW", 0)
    (tmp_path / "cache").mkdir()
    for name, content in itertools.islice(archive.records(PACKED), RUNS):
        folder = tmp_path / "runs" / name.parent.name
        folder.mkdir(parents=True)
        (folder / store.FILE).write_bytes(content)
    return tmp_path / "runs"


def report(runs: Path) -> list[bytes]:
    """The texts of a report, which hold every figure of its charts."""
    found, bad = store.read_all(store.find([runs]), compact=True)
    out = runs.parent / "report"
    out.mkdir(exist_ok=True)
    made = rankings(found)
    markdown.write(made, [[] for _ in made], bad, out)
    page = write.html(Page(tuple(map(data.board, made)), tuple(bad), ""))
    return [(out / name).read_bytes() for name in ("report.md", "results.csv")] + [page.encode()]


def file_of(runs: Path) -> Path:
    (found,) = (runs.parent / "cache" / "qbench" / kept.FOLDER).glob("*.sqlite")
    return found


def test_a_report_is_the_same_without_what_is_kept_when_it_is_kept_and_from_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "FEW", 10**6)
    plain = report(runs)
    monkeypatch.setattr(store, "FEW", 2)
    assert report(runs) == plain
    monkeypatch.setattr(store, "FEW", 0)
    monkeypatch.setattr(kept, "HELD", 2)
    monkeypatch.setattr(kept, "PASSING", 1)  # fetched again and again
    assert report(runs) == plain
    monkeypatch.setattr(store, "parse", refused)  # and nothing is parsed again
    assert report(runs) == plain


def test_records_parsed_on_other_cores_are_the_same_and_in_their_order(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = sorted(runs.glob("*/record.json"))[2]
    broken.write_text("{}")
    monkeypatch.setattr(store, "FEW", 10**6)
    plain = report(runs)
    assert str(broken).encode() in plain[0]
    monkeypatch.setattr(store, "FEW", 0)
    monkeypatch.setattr(store, "MANY", 0)
    monkeypatch.setattr(store, "EACH", 2)
    assert report(runs) == plain
    parse = store.parse

    def unless_kept(text: bytes, path: Path) -> Record:
        assert path == broken, f"{path} was parsed again"
        return parse(text, path)

    monkeypatch.setattr(store, "parse", unless_kept)
    assert report(runs) == plain


def refused(text: bytes, path: Path) -> None:
    raise AssertionError(f"{path} was parsed again")


def test_a_record_that_changed_is_shown_as_it_is_now_whatever_its_size_and_time_say(
    runs: Path,
) -> None:
    report(runs)
    path = next(runs.glob("*/record.json"))
    status = path.stat()
    text = path.read_text()
    name = json.loads(text)["recipe"]["name"]
    other = "z" * len(name)
    path.write_text(text.replace(f'"name":"{name}"', f'"name":"{other}"'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert other in report(runs)[0].decode()


def test_a_broken_record_is_named_each_time(runs: Path) -> None:
    path = next(runs.glob("*/record.json"))
    path.write_text(path.read_text().replace('"schema_version":', '"schema_version":9'))
    first = report(runs)
    assert f"{path.parent.name}/record.json: schema version" in first[0].decode()
    assert report(runs) == first


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def changed(column: str) -> Callable[[Path], None]:
    """One digit of it is another one, in every entry."""
    table = "parts" if column == "part" else "entries"

    def change(path: Path) -> None:
        with sqlite3.connect(path) as database:
            for row, value in database.execute(f"select rowid, {column} from {table}").fetchall():
                if not value:
                    continue
                place = len(value) // 2
                edited = value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]
                database.execute(f"update {table} set {column} = ? where rowid = ?", (edited, row))

    return change


def swapped(path: Path) -> None:
    """Each entry is sound, and another record's."""
    with sqlite3.connect(path) as database:
        keys = [key for (key,) in database.execute("select key from entries order by rowid")]
        database.execute("update entries set key = key || 'x'")
        for i, key in enumerate([*keys[1:], keys[0]]):
            database.execute("update entries set key = ? where rowid = ?", (key, i + 1))


def emptied(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.executescript("update entries set numbers = null; delete from parts;")


@pytest.mark.parametrize(
    "damage",
    [
        garbage, truncated, swapped, emptied,
        *(changed(column) for column in COLUMNS),
    ],
    ids=["garbage", "truncated", "swapped", "emptied", *COLUMNS],
)  # fmt: skip
def test_what_is_damaged_is_read_again(runs: Path, damage: Callable[[Path], None]) -> None:
    sound = report(runs)
    damage(file_of(runs))
    assert report(runs) == sound
    assert report(runs) == sound


def test_a_record_that_is_another_one_by_the_time_it_is_looked_at_is_refused(runs: Path) -> None:
    found, _ = store.read_all(store.find([runs]), compact=True)
    path, record = found[0]
    with sqlite3.connect(file_of(runs)) as database:
        database.execute("delete from entries")
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match=r"record\.json: changed while it was read"):
        _ = record.latency_s


def test_without_a_place_to_keep_anything_records_are_read_as_ever(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = report(runs)
    folder = file_of(runs).parent
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("a file where the folder would be")
    assert report(runs) == sound


def test_another_version_of_the_program_begins_a_file_of_its_own(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report(runs)
    old = file_of(runs)
    monkeypatch.setattr(kept, "_program", lambda: "0" * 32)
    report(runs)
    assert {path.name for path in old.parent.iterdir()} == {old.name, f"{'0' * 32}.sqlite"}
    os.utime(old, (0, 0))
    report(runs)
    assert file_of(runs).name == f"{'0' * 32}.sqlite"


def test_a_history_is_the_same_from_what_is_kept(runs: Path) -> None:
    for i, path in enumerate(sorted(runs.glob("*/record.json"))):
        facts = json.loads(path.read_text())
        facts["run"] += "-later"
        facts["started"] = f"2030-01-{i % 28 + 1:02d}"
        again = runs / f"{path.parent.name}-later" / store.FILE
        again.parent.mkdir()
        again.write_text(json.dumps(facts))
    made = history([runs], None, None)
    assert len(made.series) > 1
    assert history([runs], None, None) == made


def test_without_any_place_for_a_file_records_are_held_whole(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = report(runs)
    monkeypatch.setattr(kept, "_connected", lambda place: None)
    assert report(runs) == sound


def test_every_published_record_is_made_again_as_it_was() -> None:
    """Field by field, every type the same: but for figures by frame, which are left out."""
    found, _ = store.read_all(store.find([ROOT / "results/published"]))
    encoder, parts = codec.Encoder(), dict[codec.Key, bytes]()
    for _, record in found:
        made = encoder.encode(record)
        parts |= made.parts
        decoder = codec.Decoder(parts.__getitem__)
        numbers = array("d", made.numbers)
        rest = decoder.rest(made.rest)
        values = dict(zip(codec.HEAD, decoder.head(made.head), strict=True))
        for name, place in codec.PLACES.items():
            values[name] = decoder.value(
                rest, place, lambda at, n, a=numbers: a[at : at + n].tobytes()
            )
        for name in Record.model_fields:
            assert repr(plain(values[name])) == repr(plain(getattr(record, name)))


def plain(value: object) -> object:
    if isinstance(value, BaseModel):
        own = {k: None if k == "by_frame" else plain(v) for k, v in value.__dict__.items()}
        return type(value), own
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [*map(plain, value)] if isinstance(value, (list, codec.Samples)) else value
