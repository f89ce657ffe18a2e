"""The page that `qbench report` makes, opened in a real browser from the disk."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ROOT, qbench
from PIL import Image

from qbench import media, prompts
from qbench.report import charts, writer
from qbench.report.page import data, videos, write
from qbench.results import archive, store
from qbench.results.ranking import Ranking, rankings
from qbench.results.record import VIDEO_STAGES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
PUBLISHED = ROOT / "results/published"
HOSTILE = "</script><img src=x onerror=alert(1)><script>alert(2)</script> & \"'`${1}"


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    found, _ = store.read_all([PUBLISHED / "amd-epyc-2t" / archive.FILE], compact=True)
    return rankings(found)[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install '.[dev]'")
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page and what it did: errors, and requests for anything but itself."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280) -> None:
        self.tab: Page = browser.new_page(viewport={"width": width, "height": 900}, offline=True)
        self.tab.set_default_timeout(10_000)
        self.faults: list[str] = []
        address = path.absolute().as_uri()

        def console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.faults.append(message.text)

        def request(asked: Request) -> None:
            video = asked.url.startswith(f"{path.parent.absolute().as_uri()}/videos/")
            if asked.url != address and not asked.url.startswith("data:") and not video:
                self.faults.append(f"asked for {asked.url}")

        self.tab.on("console", console)
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("request", request)
        self.tab.goto(address)
        self.tab.locator("html[data-ready]").wait_for(state="attached")

    def close(self) -> None:
        self.tab.close()

    def names(self) -> list[str]:
        return self.tab.locator("#rows tbody th .link").all_inner_texts()


@pytest.fixture(scope="module")
def opened(
    browser: Browser, ranking: Ranking, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    folder = tmp_path_factory.mktemp("page")
    write.write([ranking], [], folder)
    page = Opened(browser, folder / write.FILE)
    yield page
    assert page.faults == []


def test_every_row_is_in_the_table_and_every_measured_one_on_the_chart(
    opened: Opened, ranking: Ranking
) -> None:
    assert sorted(opened.names()) == sorted(r.recipe.name for r in ranking.records)
    drawn = [r for r in ranking.records if "psnr" in r.quality and ranking.timing(r).speed_up]
    points = opened.tab.locator(".point")
    assert points.count() == len(drawn)
    said = points.evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    assert sorted(text.split(",")[0] for text in said) == sorted(r.recipe.name for r in drawn)
    pixels = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v)"
    assert opened.tab.locator("#chart canvas").evaluate(pixels)


def test_the_table_fits_a_window_of_1280_pixels(opened: Opened) -> None:
    """A column past the edge is not looked for."""
    table = opened.tab.locator(".scroll")
    assert opened.tab.locator("#rows thead th").count() > 12
    assert table.evaluate("it => it.scrollWidth <= it.clientWidth")


def test_the_front_is_that_of_the_chart_in_the_report(opened: Opened, ranking: Ranking) -> None:
    shown = [r for r in ranking.records if "psnr" in r.quality and ranking.timing(r).speed_up]
    points = [
        (-(ratio.value if (ratio := ranking.timing(r).speed_up) else 0), r.quality["psnr"].value)
        for r in shown
    ]
    front = {shown[i].recipe.name for i in charts.pareto(points)}
    assert set(opened.tab.locator("#chart .name.front").all_inner_texts()) == front


def test_sorting_filtering_and_hiding_columns(opened: Opened, ranking: Ranking) -> None:
    tab = opened.tab
    tab.get_by_role("button", name="peak memory", exact=False).first.click()
    held = {r.recipe.name: r.held_bytes(r.peak()) for r in ranking.records}
    ran = [name for name in opened.names() if held[name]]
    assert ran == sorted(ran, key=lambda name: held[name] or 0)
    assert not any(held[name] for name in opened.names()[len(ran) :])  # what did not run is last
    tab.locator("#filter").fill("psnr>48 drift")
    close = {
        r.recipe.name
        for r in ranking.records
        if "psnr" in r.quality
        and r.quality["psnr"].value > 48
        and r.run in ranking.judged
        and ranking.judged[r.run].verdict == "drift"
    }
    assert set(opened.names()) == close != set()
    tab.locator("#filter").fill("peak memory > 700m")
    assert set(opened.names()) == {name for name in ran if (held[name] or 0) > 700 * 2**20} != set()
    tab.locator("#filter").fill("")
    heads = tab.locator("#rows thead th").count()
    tab.locator("#columns summary").click()
    tab.get_by_role("checkbox", name="first call").uncheck()
    assert tab.locator("#rows thead th").count() == heads - 1
    tab.get_by_role("checkbox", name="first call").check()
    tab.locator("#columns summary").click()


def test_chart_and_table_choose_the_same_variant(opened: Opened) -> None:
    tab = opened.tab
    point = tab.locator('.point[aria-label^="compile,"]')
    point.focus()
    tab.keyboard.press("Enter")
    assert point.get_attribute("aria-pressed") == "true"
    assert tab.get_by_label("Choose compile").is_checked()
    tab.get_by_label("Choose compile").click()
    assert point.get_attribute("aria-pressed") == "false"


def test_stages_are_as_long_as_the_video_that_they_make(ranking: Ranking) -> None:
    """Which interleaved runs have by their speed-up, not by the median of their own sitting."""
    board = data.board(ranking)
    timed = [v for v in board.variants if v.paired and "video_s" in v.figures]
    assert len(timed) > 5
    for variant in timed:
        paid = [s.seconds or 0 for s in variant.stages if s.name in VIDEO_STAGES]
        assert sum(paid) == pytest.approx(variant.figures["video_s"].value, rel=0.02)
        speed_up = variant.figures["speed_up"].value
        reference = next(v for v in board.variants if v.reference).figures["video_s"].value
        assert variant.figures["video_s"].value == pytest.approx(reference / speed_up)


def test_a_variant_is_told_in_full(opened: Opened, ranking: Ranking) -> None:
    tab = opened.tab
    tab.locator("#rows .link", has_text="int8-dynamic").click()
    told = tab.locator("#variant").inner_text()
    record = next(r for r in ranking.records if r.recipe.name == "int8-dynamic")
    for text in (
        "qbench run int8-dynamic --set=measure.interleave=true --set=quality.margins.psnr=48.13",
        record.fingerprints.recipe,
        record.environment.libraries["torch"],
        "scheme: int8_dynamic",
        "A denoise step of int8-dynamic takes",
    ):
        assert text in told
    assert tab.locator("#variant .strip .own").count() == len(record.latency_s)
    tab.keyboard.press("Escape")
    assert not tab.locator("#variant").is_visible()


def test_no_attribute_leads_elsewhere(opened: Opened) -> None:
    """Of everything that is on the page by now, drawn by scripts or not."""
    values = opened.tab.evaluate(
        "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes].map(a => a.value))"
    )
    addresses = [value for value in values if re.search(r"^\s*(\w+:)?//|\bhttps?:|url\(", value)]
    assert addresses == []
    assert len(values) > 500
    policy = opened.tab.locator("meta[http-equiv]").get_attribute("content") or ""
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    blocked = opened.tab.evaluate(
        "fetch('https://example.org').then(() => 'went out', () => 'blocked')"
    )
    assert blocked == "blocked"
    opened.faults = [fault for fault in opened.faults if "example.org" not in fault]


# Videos -------------------------------------------------------------------------------------------

FRAMES, SHADE = 20, 12  # frames of a planted video, and the levels of grey between two of them


def _planted(tint: int) -> Any:
    """Frames (n, 64, 64, 3) whose grey says their number, with a corner that tells videos apart."""
    pixels = np.empty((FRAMES, 64, 64, 3), dtype=np.uint8)
    pixels[:] = (np.arange(FRAMES) * SHADE).reshape(-1, 1, 1, 1)
    pixels[:, :16, :16] = tint
    return pixels


def _with_delta_frames(pixels: Any) -> bytes:
    """H.264 as cameras write it: one key frame, and what changes from there."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="module")
def filmed(ranking: Ranking, tmp_path_factory: pytest.TempPathFactory) -> Ranking:
    """The published ranking with videos beside three of its records; those of int8 are one level
    brighter in the corner, and have frames that are no key frames."""
    folder = tmp_path_factory.mktemp("filmed")
    folders = []
    for record in ranking.records:
        own = folder / record.recipe.name
        if record.recipe.name in ("fp32", "compile", "int8"):
            (own / "videos").mkdir(parents=True)
            for number in range(2):
                pixels = _planted({"fp32": 100, "compile": 100, "int8": 160}[record.recipe.name])
                delta = record.recipe.name == "int8"
                text = _with_delta_frames(pixels) if delta else media.mp4(pixels, 8)
                (own / "videos" / f"{number:03d}.mp4").write_bytes(text)
            (own / "prompts.json").write_text(json.dumps(["a red star", HOSTILE]))
            files = {"videos": "videos", "prompts": "prompts.json"}
            object.__setattr__(record, "files", files)
        folders.append(own)
    return dataclasses.replace(ranking, folders=tuple(folders))


@pytest.fixture(scope="module")
def player(
    browser: Browser, filmed: Ranking, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    path = tmp_path_factory.mktemp("film")
    write.write([filmed], [], path)
    page = Opened(browser, path / write.FILE)
    page.tab.get_by_role("button", name="Clear").click()
    for name in ("compile", "int8"):
        page.tab.get_by_label(f"Choose {name}", exact=True).check()
    page.tab.locator("#videos").scroll_into_view_if_needed()
    page.tab.locator('#videos[data-frame="0"]').wait_for()
    yield page
    assert page.faults == []


def _seen(page: Opened) -> list[int]:
    """The number of the frame that each canvas shows, all read from one picture of the screen."""
    boxes = page.tab.locator(".cells canvas").evaluate_all(
        "all => all.map(c => c.getBoundingClientRect()).map(b => [b.x, b.y, b.width, b.height])"
    )
    screen = Image.open(io.BytesIO(page.tab.screenshot())).convert("L")
    greys = [screen.getpixel((x + 0.7 * wide, y + 0.5 * tall)) for x, y, wide, tall in boxes]
    return [round(grey / SHADE) for grey in greys if isinstance(grey, int)]


def test_every_copy_of_a_video_has_key_frames_alone(filmed: Ranking, tmp_path: Path) -> None:
    import av

    for name in write.write([filmed], [], tmp_path):
        with av.open(str(tmp_path / name), "r") as container:
            assert all(p.is_keyframe for p in container.demux(video=0) if p.size)
            assert container.streams.video[0].frames == FRAMES
    assert len(list(tmp_path.glob("videos/*/*.mp4"))) == 6
    for name, same in (("compile", True), ("int8", False)):
        own = next(f for f in filmed.folders if f.name == name) / "videos/001.mp4"
        (copy,) = tmp_path.glob(f"videos/*-{name}/001.mp4")
        assert (copy.read_bytes() == own.read_bytes()) == same


def test_videos_show_the_frame_asked_for_and_stay_together(player: Opened) -> None:
    tab = player.tab
    assert tab.locator(".cells figure").count() == 3
    for k in (7, 19, 0, 13, 1, 18, 4, 11, 16, 2):
        tab.locator(".scrub").evaluate(
            "(s, k) => { s.value = k; s.dispatchEvent(new Event('input')) }", k
        )
        tab.locator(f'#videos[data-frame="{k}"]').wait_for()
        assert _seen(player) == [k, k, k]
    tab.locator(".scrub").focus()
    tab.keyboard.press(" ")
    shown = []
    for _ in range(4):
        tab.wait_for_timeout(1250)
        shown.append(_seen(player))
    assert all(len(set(frames)) == 1 for frames in shown)
    assert len({frames[0] for frames in shown}) > 1
    tab.keyboard.press(" ")
    assert tab.locator(".play").inner_text() == "Play"
    before = int(tab.locator("#videos").get_attribute("data-frame") or 0)
    tab.keyboard.press(".")
    after = min(before + 1, FRAMES - 1)
    tab.locator(f'#videos[data-frame="{after}"]').wait_for()
    assert _seen(player) == [after] * 3


def test_a_difference_shows_only_what_differs(player: Opened) -> None:
    """The corners are 60 levels apart in int8 and equal in compile."""
    tab = player.tab
    tab.get_by_role("button", name="Difference").click()
    tab.get_by_label("Gain").select_option("2")
    greys = []
    for box in tab.locator(".cells canvas").all()[1:]:
        picture = Image.open(io.BytesIO(box.screenshot())).convert("L")
        corner = picture.getpixel((picture.width // 10, picture.height // 10))
        greys.append((corner, picture.getpixel((picture.width * 2 // 3, picture.height // 2))))
    (same, rest), (apart, other) = greys
    assert max(same, rest, other) <= 8
    assert abs(apart - 120) <= 12
    tab.get_by_role("button", name="Side by side").click()


def test_the_line_below_says_how_far_each_frame_is(filmed: Ranking, tmp_path: Path) -> None:
    """A sixteenth of the picture is 60 levels off in every frame: 3.75 on average."""
    board, _ = videos.added(data.board(filmed), filmed, videos.Where(tmp_path, 6), "")
    clips = {v.name: v.clips[0] for v in board.variants if v.clips}
    assert clips["fp32"].difference == ()
    assert max(clips["compile"].difference) == 0
    assert all(abs(value - 3.75) < 0.4 for value in clips["int8"].difference)
    assert not board.raw
    assert [prompt.text for prompt in board.prompts] == ["a red star", HOSTILE]


def test_blind_hides_names_until_one_is_chosen(player: Opened) -> None:
    tab = player.tab
    tab.get_by_role("button", name="Blind").click()
    told = tab.locator("#videos").inner_text()
    assert "int8" not in told.replace("worst", "")
    assert tab.locator("figcaption").all_inner_texts() == ["A", "B"]
    labels = tab.locator(".cells canvas").evaluate_all("all => all.map(c => c.ariaLabel)")
    assert [label[0] for label in labels] == ["A", "B"]
    tab.get_by_role("button", name="A is better").click()
    assert sorted(text[3:] for text in tab.locator("figcaption").all_inner_texts()) == [
        "compile",
        "int8",
    ]
    with tab.expect_download() as saved:
        tab.locator(".tally button").click()
    rows = list(csv.DictReader(saved.value.path().open()))
    assert [row["better"] == row["A"] for row in rows] == [True]
    assert rows[0]["prompt"] == "a red star"
    tab.get_by_role("button", name="Blind").click()


def test_prompts_come_worst_first_by_a_metric(player: Opened, filmed: Ranking) -> None:
    tab = player.tab
    tab.get_by_label("Order of the prompts").select_option("quality.psnr")
    scores = [
        metric.samples or []
        for r in filmed.records
        if r.recipe.name in ("compile", "int8")
        for metric in [r.quality["psnr"]]
    ]
    worst = sorted(range(2), key=lambda n: min(samples[n] for samples in scores))
    listed = tab.get_by_label("Prompt", exact=True).locator("option")
    assert [text.split(".")[0] for text in listed.all_inner_texts()] == [str(n + 1) for n in worst]
    tab.get_by_label("Order of the prompts").select_option("")


def test_the_command_writes_videos_beside_the_page_or_into_it(
    finished: Path, tmp_path: Path
) -> None:
    """Of a real run; what an earlier report left that this one does not have is removed."""
    done = qbench("report", str(finished), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"page: {tmp_path / write.FILE}" in done.stdout
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mp4"))
    assert [name.split("-", 1)[1] for name in names] == [
        "fp32/000.mp4",
        "fp32/001.mp4",
        "int8/000.mp4",
        "int8/001.mp4",
    ]
    text = (tmp_path / write.FILE).read_text()
    assert all(name in text for name in names)
    assert '"raw":true' in text  # differences are of raw frames
    assert prompts.load("world-v1", 1).prompts[0] in text
    found, _ = store.read_all(store.find([finished]), compact=True)
    writer.write(rankings(found), [], tmp_path, write.Options(single_file=True))
    assert list(tmp_path.rglob("*.mp4")) == []
    assert (tmp_path / write.FILE).read_text().count("data:video/mp4;base64,") == 4


def test_what_is_no_video_is_left_out(filmed: Ranking, tmp_path: Path) -> None:
    """Whatever lies in a run's folder, or is claimed to: nothing outside it is read."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/000.mp4").write_bytes(media.mp4(_planted(0), 8))
    whole = media.mp4(_planted(0), 8)
    cases: list[tuple[str, bytes]] = [
        ("../secret", b""),
        (str(tmp_path / "secret"), b""),
        ("videos", b""),
        ("videos", b"<html>"),
        ("videos", whole[: len(whole) // 2]),
        ("videos", whole.replace(b"avc1", b"xxxx")),
    ]
    for i, (claimed, text) in enumerate(cases):
        own = tmp_path / f"run{i}"
        (own / "videos").mkdir(parents=True)
        (own / "videos/000.mp4").write_bytes(text)
        files = {"videos": claimed, "outputs": "../secret", "prompts": "../../etc/passwd"}
        record = filmed.records[0].model_copy(update={"files": files})
        alone = dataclasses.replace(filmed, records=(record,), folders=(own,), reference=None)
        board, names = videos.added(data.board(alone), alone, videos.Where(tmp_path / "o", 2), "")
        assert names == [], cases[i]
        assert board.prompts == ()


def test_a_single_file_holds_its_videos_up_to_a_limit(
    browser: Browser, filmed: Ranking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write.write([filmed], [], tmp_path, write.Options(single_file=True)) == []
    assert [path.name for path in tmp_path.iterdir()] == [write.FILE]
    moved = tmp_path / "elsewhere" / write.FILE
    moved.parent.mkdir()
    (tmp_path / write.FILE).rename(moved)
    page = Opened(browser, moved)
    page.tab.locator("#videos").scroll_into_view_if_needed()
    page.tab.locator('#videos[data-frame="0"]').wait_for()
    assert page.faults == []
    page.close()
    small = videos.Where(tmp_path, 6, inside=10_000)
    board, _ = videos.added(data.board(filmed), filmed, small, "")
    kept = sum(len(clip.source) for v in board.variants for clip in v.clips.values())
    assert 0 < kept < 1.5 * 10_000
    assert "left out" in board.left_out
    several = tmp_path / "several"
    several.mkdir()
    write.write([filmed, filmed], [], several, write.Options(single_file=True))
    twice = (several / write.FILE).read_text().count("data:video/mp4")
    monkeypatch.setattr(write, "INSIDE", kept)
    write.write([filmed, filmed], [], several, write.Options(single_file=True))
    assert 0 < (several / write.FILE).read_text().count("data:video/mp4") < twice / 2


# Hostile records ----------------------------------------------------------------------------------


def _hostile(ranking: Ranking) -> Ranking:
    """Markup wherever a record can hold text, and names that JavaScript's objects have already."""
    changed = []
    for record in ranking.records:
        recipe = record.recipe.model_copy(
            update={"about": HOSTILE, "model": HOSTILE, "device": HOSTILE}
        )
        environment = record.environment.model_copy(
            update={"device_name": HOSTILE, "libraries": {HOSTILE: HOSTILE, "__proto__": "x"}}
        )
        quality = dict(record.quality)
        stage = next(iter(record.stages.values()), None)
        if psnr := quality.get("psnr"):
            quality |= {HOSTILE: psnr, "__proto__": psnr, "constructor": psnr}
        changed.append(
            record.model_copy(
                update={
                    "recipe": recipe,
                    "environment": environment,
                    "quality": quality,
                    "reason": HOSTILE,
                    "notes": [HOSTILE],
                    "overrides": {"name": HOSTILE, HOSTILE: HOSTILE},
                    "stages": record.stages | ({HOSTILE: stage} if stage else {}),
                }
            )
        )
    found = [(Path(f"{i}/record.json"), record) for i, record in enumerate(changed)]
    return rankings(found)[0]


def test_markup_in_a_record_stays_text(browser: Browser, ranking: Ranking, tmp_path: Path) -> None:
    hostile = _hostile(ranking)
    write.write([hostile, ranking], [HOSTILE], tmp_path)
    page = Opened(browser, tmp_path / write.FILE, width=390)
    tab = page.tab
    tab.on("dialog", lambda dialog: page.faults.append(f"alert {dialog.message}"))
    elements = (
        "document.querySelectorAll('img, iframe, object, embed, form, [onerror], [style*=url]')"
    )
    count = tab.evaluate(f"{elements}.length + document.scripts.length")
    assert count == 3  # the data, the library, and the page's own
    assert HOSTILE in tab.locator("#title").inner_text()
    for name in ("int8", "tensorrt"):
        tab.locator("#rows .link", has_text=name).first.click()
        assert HOSTILE in tab.locator("#variant").inner_text()
        tab.keyboard.press("Escape")
    for box in tab.locator("#columns input").all():
        box.evaluate("box => box.checked || box.click()")
    assert HOSTILE in tab.locator("#rows thead").inner_text()
    tab.locator("#axis-y").select_option(f"quality.{HOSTILE}")
    tab.locator("#axis-y").select_option("quality.__proto__")
    assert tab.locator(".point").count() > 5
    tab.locator("#boards").select_option("1")
    assert tab.locator("#title").inner_text().startswith("tiny-cogvideox on AMD EPYC")
    assert tab.evaluate(f"{elements}.length + document.scripts.length") == count
    assert page.faults == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_a_copied_table_is_escaped_for_what_reads_it(
    browser: Browser, ranking: Ranking, tmp_path: Path
) -> None:
    write.write([_hostile(ranking)], [], tmp_path)
    page = Opened(browser, tmp_path / write.FILE)
    tab = page.tab
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    made = {}
    for form in ("Markdown", "CSV", "LaTeX"):
        tab.get_by_role("button", name=form, exact=True).click()
        tab.locator("#toast", has_text=form).wait_for()
        made[form] = tab.evaluate("navigator.clipboard.readText()")
    head, *rows = list(csv.reader(io.StringIO(made["CSV"])))
    assert head[:3] == ["variant", "verdict", "speed-up"]
    assert [len(row) for row in rows] == [len(head)] * len(page.names())
    assert f"skipped: {HOSTILE}" in {row[1] for row in rows}
    assert "<" not in made["Markdown"]
    assert {line.count(" | ") for line in made["Markdown"].splitlines()} == {len(head) - 1}
    assert made["LaTeX"].count(r" \\") == len(rows) + 1
    body = made["LaTeX"].split("midrule")[1]
    assert not re.search(
        r"(?<!\\)[#%${}_]", re.sub(r"\$\\times\$|\{\}", "", body.split("bottomrule")[0])
    )
    page.close()
