"""The page on disk: one HTML file with its scripts, styles and data inside, videos beside it or in.

A Content-Security-Policy in the page allows the scripts and styles that are in it by their digests,
media of its own folder, and nothing else: no request can leave it, whatever a record says.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path

from qbench import __version__, escape
from qbench.report.page import data
from qbench.report.page.model import Page
from qbench.results.ranking import Ranking

FILE = "index.html"
ASSETS = Path(__file__).parent / "assets"
# In the order in which they build on each other.
MODULES = ("format", "select", "chart", "table", "variant", "main")
VENDORED = ASSETS / "vendor" / "uplot"
IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
NAMED = 100  # unreadable records that are named
DIGITS = 6  # significant, of a figure


def write(made: list[Ranking], unreadable: list[str], out: Path) -> Path:
    """The page of these rankings into the folder `out`. Returns its path."""
    boards = tuple(data.board(ranking) for ranking in made)
    lines = tuple(escape.clipped(escape.plain(line), data.TEXT) for line in unreadable[:NAMED])
    path = out / FILE
    path.write_text(html(Page(boards, lines, __version__)), encoding="utf-8")
    return path


def html(page: Page) -> str:
    """The whole page."""
    library = _text(VENDORED / "uPlot.iife.min.js").rstrip()
    licence = _text(VENDORED / "LICENSE").strip()
    styles = [_text(VENDORED / "uPlot.min.css"), _text(ASSETS / "page.css")]
    scripts = [f"/*\nuPlot\n\n{licence}\n*/\n{library}", bundled()]
    facts = json.dumps(
        _compact(dataclasses.asdict(page)),
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
    )
    parts = {
        "policy": _policy(scripts, styles),
        "styles": "\n".join(f"<style>{text}</style>" for text in styles),
        "data": _inert(facts),
        "scripts": f'<script>{scripts[0]}</script>\n<script type="module">{scripts[1]}</script>',
    }
    template = _text(ASSETS / "page.html")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def bundled() -> str:
    """The page's modules as one: a page that is opened from a disk cannot import others."""
    return "".join(_module(name) for name in MODULES)


def _module(name: str) -> str:
    text = IMPORT.sub("", _text(ASSETS / f"{name}.js"))
    return f"// {name}.js\n" + re.sub(r"^export (?=\w)", "", text, flags=re.MULTILINE)


def _policy(scripts: list[str], styles: list[str]) -> str:
    allowed = {
        "default-src": ["'none'"],
        "script-src": [_digest(text) for text in scripts],
        "style-src": [_digest(text) for text in styles],
        "img-src": ["data:"],
        "media-src": ["'self'", "file:", "data:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    return "; ".join(f"{name} {' '.join(values)}" for name, values in allowed.items())


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inert(text: str) -> str:
    """JSON inside a script element: nothing in it can end the element or begin a comment."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _compact(value: object) -> object:
    """Without what is empty, and figures with as many digits as anybody reads."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        kept = {str(key): _compact(one) for key, one in value.items()}
        return {key: one for key, one in kept.items() if one or (one == 0 and one is not False)}
    if isinstance(value, (list, tuple)):
        return [_compact(one) for one in value]
    return value


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
