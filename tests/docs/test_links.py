"""Links and paths in the documents lead somewhere."""

import re
from pathlib import Path

import pytest

from scripts.figures.documents import documents
from scripts.figures.values import ROOT

LINK = re.compile(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)")
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
