"""Whatever a record says, `report`, `explain` and `power` go on: it is named and left out."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from qbench import explain, power
from qbench.decisions import compare_text, importing, pick_text
from qbench.decisions.compare import compare
from qbench.decisions.evidence import evidence
from qbench.decisions.importing import take_in
from qbench.decisions.pick import asked, pick
from qbench.errors import InputError
from qbench.meters.profile import Profile
from qbench.quality.statistics import summarise
from qbench.report import sheets, writer
from qbench.results import archive, derive, store
from qbench.results.frame import Results
from qbench.results.profiles import profiles_of
from qbench.results.ranking import rankings
from qbench.results.record import Record

PACKED = ROOT / "results/published/amd-epyc-2t" / archive.FILE
HUGE = 10**39
EDITS: list[tuple[str, Any]] = [
    ("stages.quantize.seconds", []),
    ("stages.denoise.seconds", []),
    ("stages.denoise.seconds", [1e300] * 12),
    ("stages.compile", {"seconds": [], "peak": {}}),
    ("stages", {}),
    ("ceilings.product_flop_per_s", {"fp32": 0.0}),
    ("ceilings.product_flop_per_s", {}),
    ("latency", None),
    ("latency.median", "NaN"),
    ("latency.median", "Infinity"),
    ("latency.n", HUGE),
    ("latency_s", [0.0] * 12),
    ("latency_s", [1e308] * 12),
    ("latency_s", []),
    ("step_s", []),
    ("step_s", [[]]),
    ("step_s", [[0.0]] * 12),
    ("paired_reference_s", [1.0]),
    ("paired_reference_s", ["NaN"] * 12),
    ("quality.psnr.summary", None),
    ("quality.psnr.summary.high", None),
    ("quality.psnr.value", "NaN"),
    ("quality.psnr.samples", []),
    ("quality.clip_score.samples", ["NaN"]),
    ("quality.clip_score.samples", [1e308] * 12),
    ("quality", {}),
    ("error_growth.free", []),
    ("error_growth.forced", []),
    ("error_growth.free", ["NaN"] * 20),
    ("gauges", {"energy_j": [], "power_w": 1.0, "sm_clock_mhz": None}),
    ("work.product_flop", 0.0),
    ("work", None),
    ("recipe.model", "a $\\frac$ b"),
    ("recipe.model", "x[/y]"),
    ("recipe.about", "x" * 100_000),
    ("weights_bytes", HUGE),
    ("weights_bytes", -1),
    ("stages.decode.peak.resident_bytes", HUGE),
    ("environment.threads", HUGE),
    ("environment.libraries", {"| <script>": "\x1b[31m"}),
    ("generation", {}),
    ("generation", {"frames": 1, "height": 1, "width": 1, "steps": "x"}),
    ("generation", {"frames": 1, "height": 1, "width": 1, "steps": HUGE}),
    ("reason", "# x\n![a](http://b) <script> =cmd|' /C calc'!A0"),
    ("notes", ["<script>alert(1)</script>", "\x1b[2J"]),
    ("facts", {"quantized_flop_share": "NaN"}),
    ("facts", {"quantized_flop_share": 1e308}),
    ("status", "oom"),
    ("status", "invalid"),
    ("status", "running"),
    ("reference", None),
    ("reference.run", "no such run"),
    ("files.contact_sheet", "profile.json"),
    ("files.contact_sheet", "."),
    ("files.profile", "record.json"),
    ("files.profile", "a" * 300),
    ("files.profile", "a/" * 3000),
    ("files.profile", "/etc/passwd"),
    ("files.profile", "../../../../../../etc/passwd"),
    ("files.profile", "a\x00b"),
]


def _edited(facts: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    made = json.loads(json.dumps(facts))
    *above, last = path.split(".")
    inside = made
    for name in above:
        inside[name] = inside.get(name) or {}
        inside = inside[name]
    inside[last] = value
    return made


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """A record of the published matrix with everything in it that a record can have."""
    texts = dict(archive.lines(PACKED))
    (name,) = [name for name in texts if name.startswith("compile-") and "record" in name]
    facts: dict[str, Any] = json.loads(texts[name])
    return facts


@pytest.fixture(scope="module")
def edited(good: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every edit as a record of its own, and the reference."""
    folder = tmp_path_factory.mktemp("edited")
    for name, text in archive.lines(PACKED):
        if name.startswith("fp32-"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(text)
    for i, (path, value) in enumerate(EDITS):
        facts = _edited(good, path, value)
        facts["run"] = f"edit-{i}"
        facts["recipe"]["name"] = f"edit-{i}"
        facts["recipe"]["variant"]["seed_offset"] = i + 1
        (folder / str(i)).mkdir()
        (folder / str(i) / store.FILE).write_text(json.dumps(facts))
    return folder


def test_report_and_power_survive_every_edit(edited: Path, tmp_path: Path) -> None:
    found, unreadable = store.read_all(store.find([edited]), compact=True)
    assert len(found) + len(unreadable) == len(EDITS) + 1
    assert len(found) > 20
    for line in unreadable:
        assert "not a record: " in line
        assert "\n" not in line
    text = writer.write(rankings(found), unreadable, tmp_path).read_text()
    assert "<script" not in text
    assert "](http" not in text.replace("\\](", "")
    assert "\x1b" not in text + (tmp_path / "results.csv").read_text()
    assert power.said(found, ["psnr=0.5"], 0.05, 0.8)


def test_explain_survives_every_edit(edited: Path) -> None:
    explained = 0
    for i in range(len(EDITS)):
        try:
            paragraphs, _ = explain.explain(edited / str(i))
        except InputError:  # that it is no record
            continue
        explained += bool(paragraphs)
    assert explained > 20


def test_decisions_survive_every_edit(edited: Path, tmp_path: Path) -> None:
    limit = ["latency +5% and +1s", "psnr -1", "clip -1%", "peak +1%", "first_call +1%"]
    whole = compare(edited, edited, across=True, fail_if=limit)
    assert len(whole.rows) > 20
    assert "\x1b" not in compare_text.markdown(whole) + whole.model_dump_json()
    one = edited / next(path.name for path in edited.iterdir() if path.name.startswith("fp32-"))
    held = 0
    for i in range(0, len(EDITS), 4):
        try:
            found = compare(one, edited / str(i), across=True, fail_if=limit)
        except InputError:  # that it is no record
            continue
        held += bool(compare_text.lines(found) and compare_text.markdown(found))
    assert held > 5
    question = asked("16GB", "1GB", "60s", 1.1, "drift", "latency", True)
    records = evidence([edited], [], "tiny-cogvideox", None)
    assert pick_text.lines(pick(question, records))
    taken = take_in([edited], tmp_path / "mine")
    outcome = {item.source: item.status for item in taken.items}
    assert list(outcome.values()).count("refused") > 25
    assert all("\n" not in line for line in importing.lines(taken))


def test_a_summary_that_its_samples_contradict_is_derived_from_them(good: dict[str, Any]) -> None:
    honest = store.parse(json.dumps(good).encode(), Path("x"))
    for path, value in (
        ("latency.median", 0.001),
        ("latency.low", 0.001),
        ("step.median", 1e-6),
        ("paired_speed_up", {"value": 99.0, "low": 98.0, "high": 100.0}),
        ("quality.psnr.value", 99.0),
        ("quality.psnr.summary.mean", 99.0),
        ("quality.psnr.summary.n", 9999),
    ):
        made = store.parse(json.dumps(_edited(good, path, value)).encode(), Path("x"))
        assert made.latency is not None
        assert honest.latency is not None
        assert made.latency.median == pytest.approx(honest.latency.median)
        assert made.step is not None
        assert honest.step is not None
        assert made.step.median == pytest.approx(honest.step.median)
        assert made.paired_speed_up is not None
        assert honest.paired_speed_up is not None
        ratios = (made.paired_speed_up, honest.paired_speed_up)
        assert ratios[0].model_dump() == pytest.approx(ratios[1].model_dump(), rel=1e-6)
        assert made.quality["psnr"].value == pytest.approx(honest.quality["psnr"].value)
        if "paired" not in path:
            assert any("derived anew" in note for note in made.notes), path
    assert not any("derived anew" in note for note in honest.notes)


def test_intervals_of_few_samples_are_taken_as_they_were_written(good: dict[str, Any]) -> None:
    """Stretched past the least and the most of three samples, as `median_interval` does."""
    honest = store.parse(json.dumps(good).encode(), Path("x"))
    samples = [0.779, 0.567, 0.539]
    few = summarise(samples, of="median")
    assert few.low is not None
    assert few.low < min(samples)
    record = honest.model_copy(
        update={"latency_s": samples, "latency": few, "paired_reference_s": [], "notes": []}
    )
    assert derive.derived(record).latency is few
    widened = few.model_copy(update={"low": 0.01})
    assert derive.derived(record.model_copy(update={"latency": widened})).latency == few


def test_an_interval_of_three_skewed_videos_is_taken_as_it_was_written(
    good: dict[str, Any],
) -> None:
    """Hall's reaches many times as far to the side of the skew as Student's."""
    honest = store.parse(json.dumps(good).encode(), Path("x"))
    samples = [44.08085, 45.32238, 48.84822]
    few = summarise(samples)
    assert few.high is not None
    assert few.high > few.mean + 3.5 * 4.303 * (few.sigma or 0.0) / 3**0.5  # thrice Student's
    written = honest.quality["psnr"].model_copy(
        update={"value": few.mean, "samples": samples, "summary": few}
    )
    record = honest.model_copy(update={"quality": {"psnr": written}, "notes": []})
    assert not derive.derived(record).notes
    widened = written.model_copy(update={"summary": few.model_copy(update={"high": 1e4})})
    again = derive.derived(record.model_copy(update={"quality": {"psnr": widened}}))
    assert again.quality["psnr"].summary == few


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, "", "null", "{}"])
def test_what_is_no_record_is_named_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / store.FILE).write_text(text)
    found, (line,) = store.read_all(store.find([tmp_path]))
    assert not found
    assert line.startswith(f"{tmp_path / store.FILE}: ")
    assert len(line) < 800


def test_no_pipe_device_or_endless_file_is_read(tmp_path: Path) -> None:
    for name in ("pipe", "device", "sparse", "circle", "folder"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / store.FILE)
    (tmp_path / "device" / store.FILE).symlink_to("/dev/zero")
    with (tmp_path / "sparse" / store.FILE).open("wb") as file:
        file.truncate(20 * 2**30)
    (tmp_path / "circle" / store.FILE).symlink_to(tmp_path / "circle" / store.FILE)
    (tmp_path / "folder" / store.FILE).mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    found, unreadable = store.read_all(store.find([tmp_path]))
    assert not found
    assert len(unreadable) == 5


def test_files_beside_a_record_are_inside_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "secret").write_text("secret")
    (run / "out").symlink_to(tmp_path / "secret")
    (run / "up").symlink_to(tmp_path)
    (run / "circle").symlink_to(run / "circle")
    (run / "large").write_text("x" * 100)
    (run / "in").symlink_to(run / "large")
    os.mkfifo(run / "pipe")
    for name in ("../secret", "out", "up/secret", str(tmp_path / "secret"), "circle", "pipe", "",
                 ".", "..", "a" * 300, "a\x00b", "nothing"):  # fmt: skip
        assert store.read_beside(run, name, 1000) is None, name
    assert store.read_beside(run, "large", 10) is None
    assert store.read_beside(run, "in", 100) == b"x" * 100
    inside = PACKED / "compile-a6bfa347"
    assert store.read_beside(inside, "profile.json", 2**20)
    assert store.read_beside(inside, "../fp32-3c5f39da/profile.json", 2**20) is None


def test_an_archive_is_read_as_the_folders_that_it_was_made_from(tmp_path: Path) -> None:
    for name, text in archive.lines(PACKED):
        (tmp_path / "runs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs" / name).write_bytes(text)
    plain, packed = (store.read_all(store.find([at]))[0] for at in (tmp_path / "runs", PACKED))
    by_run = {record.run: (path, record) for path, record in packed}
    assert len(by_run) == len(plain) == 15
    for path, record in plain:
        inside, same = by_run[record.run]
        assert same == record == store.read(inside)
        assert inside.parent.name == path.parent.name
    one, two = (profiles_of(rankings(found)[0]) for found in (plain, packed))
    assert one == two != {}
    assert all(isinstance(profile, Profile) for profile in one.values())
    again = archive.write(archive.lines(PACKED), tmp_path / archive.FILE)
    assert list(archive.lines(again)) == list(archive.lines(PACKED))


def test_compact_records_give_the_same_rows() -> None:
    whole, small = (
        Results(tuple(rankings(store.read_all([PACKED], compact=compact)[0]))).rows()
        for compact in (False, True)
    )
    assert whole == small


def test_explain_of_a_run_in_an_archive(tmp_path: Path) -> None:
    paragraphs, ranking = explain.explain(PACKED / "compile-a6bfa347")
    assert paragraphs[0].startswith("A denoise step of compile takes")
    assert len(ranking.records) == 15
    for place, words in (
        (PACKED / "compile", "did you mean 'compile-a6bfa347'"),
        (PACKED, "name one of them"),
        (PACKED.parent, "name one of them"),
    ):
        with pytest.raises(InputError, match=words):
            explain.explain(place)


def _bomb() -> bytes:
    packer = lzma.LZMACompressor(preset=0)
    parts = [packer.compress(b'{"path": "a/record.json", "content": "')]
    parts += [packer.compress(bytes(2**24)) for _ in range(8)]
    return b"".join([*parts, packer.flush()])


def test_damaged_and_hostile_archives_are_named(tmp_path: Path) -> None:
    whole = PACKED.read_bytes()
    line = b'{"path": "../x/record.json", "content": {}}\n'
    greedy = lzma.compress(line, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}])
    for name, text, reason in (
        ("cut", whole[: len(whole) // 2], "too early"),
        ("noise", bytes(range(256)), "format"),
        ("outside", lzma.compress(line), "no file of a run"),
        ("bomb", _bomb(), "longer than"),
        ("memory", greedy, "emory"),
    ):
        place = tmp_path / name / archive.FILE
        place.parent.mkdir()
        place.write_bytes(text)
        found, unreadable = store.read_all(store.find([place.parent]))
        assert reason in unreadable[-1], name
        assert len(found) == (0 if name != "cut" else len(found))


def test_sheets_that_are_no_pictures_are_left_out(good: dict[str, Any], tmp_path: Path) -> None:
    from PIL import Image

    good = _edited(good, "files.contact_sheet", "contact.png")
    record = Record.model_validate_json(json.dumps(good))
    (made,) = rankings([(tmp_path / store.FILE, record)])
    for text in (b"", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0"):
        (tmp_path / "contact.png").write_bytes(text)
        assert sheets.side_by_side(made, tmp_path / "out.webp") is None
    Image.new("L", (10_000, 10_000)).save(tmp_path / "contact.png")
    assert sheets.side_by_side(made, tmp_path / "out.webp") is None
    Image.new("L", (100, 100)).save(tmp_path / "contact.png")
    assert sheets.side_by_side(made, tmp_path / "out.webp")
