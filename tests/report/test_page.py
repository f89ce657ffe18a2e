"""The page that `qbench report` makes, opened in a real browser from the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import ROOT

from qbench.report import charts
from qbench.report.page import write
from qbench.results import archive, store
from qbench.results.ranking import Ranking, rankings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

CHROMIUM = Path("/usr/bin/chromium")
PUBLISHED = ROOT / "results/published"


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    found, _ = store.read_all([PUBLISHED / "amd-epyc-2t" / archive.FILE], compact=True)
    return rankings(found)[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install '.[dev]'")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page and what it did: errors, and requests for anything but itself."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280) -> None:
        self.tab: Page = browser.new_page(viewport={"width": width, "height": 900})
        self.tab.set_default_timeout(10_000)
        self.faults: list[str] = []
        address = path.absolute().as_uri()

        def console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.faults.append(message.text)

        def request(asked: Request) -> None:
            if asked.url != address and not asked.url.startswith("data:"):
                self.faults.append(f"asked for {asked.url}")

        self.tab.on("console", console)
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("request", request)
        self.tab.goto(address)
        self.tab.wait_for_function("document.documentElement.dataset.ready")

    def names(self) -> list[str]:
        return self.tab.locator("#rows tbody th .link").all_inner_texts()


@pytest.fixture(scope="module")
def opened(
    browser: Browser, ranking: Ranking, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    path = write.write([ranking], [], tmp_path_factory.mktemp("page"))
    page = Opened(browser, path)
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
