"""Links and paths in the documents lead somewhere."""

import re
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import pytest

from scripts.figures.documents import documents
from scripts.figures.values import ROOT

LINK = re.compile(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)")
PLACE = re.compile(r"\]\((?!https?://)([^)#]*)#([^)]+)\)")
NAMED = re.compile(r"`((?:qbench|docs|scripts|recipes|results)/[\w./-]+)`")
PAGES = [*documents(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [to for to in LINK.findall(text) if not (page.parent / to).exists()]
    # `results/runs/` is made by running, and a word in capitals is the reader's to fill in.
    named = [
        name
        for name in NAMED.findall(text)
        if not name.startswith("results/runs") and not re.search(r"/[A-Z]{4,}", name)
    ]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing


def _places(page: Path) -> set[str]:
    """What `#` may name in a page: its headings as GitHub writes them, numbered where repeated."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: Counter[str] = Counter()
    places = set()
    for heading in re.findall(r"^#{1,6} (.*)$", text, flags=re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"<!--.*?-->", "", heading))
        name = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        places.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return places


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_headings_that_there_are(page: Path) -> None:
    missing = []
    for to, place in PLACE.findall(page.read_text(encoding="utf-8")):
        there = page.parent / to if to else page
        if there.suffix == ".md" and place not in _places(there):
            missing.append(f"{to}#{place}")
    assert missing == []


def test_what_is_published_and_what_is_listed_are_the_same() -> None:
    """Matrices, searches and files of `results/published` against the rows of its README."""
    published = ROOT / "results" / "published"
    text = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    there = {path.parent for path in published.rglob("*.xz")}
    there |= {path for path in published.rglob("*.json") if path.parent not in there}
    names = {path.relative_to(published).as_posix() for path in there}
    listed = re.findall(r"`((?:[\w.-]+/)?[\w.*-]+)`", text)
    unlisted = {
        name for name in names
        if not any(fnmatch(at, word) for at in (name, Path(name).name, str(Path(name).parent))
                   for word in listed)
    }  # fmt: skip
    assert unlisted == set()
    machines = {path.name for path in published.iterdir() if path.is_dir()}
    rows = [word for word in listed if word.partition("/")[0] in machines]
    assert len(rows) > 40
    assert [word for word in rows if not list(published.glob(word))] == []
