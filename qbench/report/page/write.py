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

from qbench import __version__, escape, textfile
from qbench.report.page import data, videos
from qbench.report.page.model import Board, Page
from qbench.results.ranking import Ranking

FILE = "index.html"
ASSETS = Path(__file__).parent / "assets"
# In the order in which they build on each other.
MODULES = (
    "format",
    "select",
    "chart",
    "table",
    "variant",
    "frames",
    "player",
    "blind",
    "videos",
    "main",
)
VENDORED = ASSETS / "vendor" / "uplot"
IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
SHOWN = 6  # prompts, as many as runs keep videos of
INSIDE = 24 * 2**20  # bytes of videos in a single file
NAMED = 100  # unreadable records that are named
DIGITS = 6  # significant, of a figure


@dataclasses.dataclass(frozen=True)
class Options:
    """single_file: videos inside the page instead of beside it, INSIDE bytes of them at most.

    videos: prompts of which a ranking's videos are shown, 0 for none.
    """

    single_file: bool = False
    videos: int = SHOWN


def write(
    made: list[Ranking], unreadable: list[str], out: Path, options: Options | None = None
) -> list[str]:
    """The page of these rankings into the folder `out`.

    Returns the names of the files that lie beside it, below `out`.
    """
    options = options or Options()
    where = videos.Where(out, options.videos, INSIDE if options.single_file else None)
    boards: list[Board] = []
    names, room = [], data.MOST
    for i, ranking in enumerate(made):
        if boards and room < len(ranking.records):
            break
        board = data.board(ranking)
        room -= len(board.variants)
        if options.videos:
            board, written = videos.added(board, ranking, where, f"{i + 1}" if i else "")
            names += written
            if where.inside is not None:  # the limit is of the whole page
                left = max(0, where.inside - videos.inside_bytes(board))
                where = dataclasses.replace(where, inside=left)
        boards.append(board)
    lines = [escape.clipped(escape.plain(line), data.TEXT) for line in unreadable[:NAMED]]
    if len(boards) < len(made):
        lines.append(f"{len(made) - len(boards)} smaller rankings are in report.md alone")
    page = html(Page(tuple(boards), tuple(lines), __version__))
    textfile.replace(out / FILE, page)
    return names


def html(page: Page) -> str:
    """The whole page."""
    library = _text(VENDORED / "uPlot.iife.min.js").rstrip()
    licence = _text(VENDORED / "LICENSE").strip()
    styles = [_text(VENDORED / "uPlot.min.css"), _text(ASSETS / "page.css")]
    scripts = [f"/*\nuPlot\n\n{licence}\n*/\n{library}", bundled()]
    parts = {
        "policy": _policy(scripts, styles),
        "styles": "\n".join(f"<style>{text}</style>" for text in styles),
        "data": _inert(_json(page)),
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


def _json(value: object) -> str:
    """Without what is empty, boards and variants one by one: a copy of all would be as large."""
    own = vars(value) if isinstance(value, (Page, Board)) else {}
    found = []
    for key, one in own.items():
        if key in ("boards", "variants"):
            text = f"[{','.join(map(_json, one))}]" if one else ""
        else:
            kept = _compact({key: one})
            text = _dumped(kept[key]) if isinstance(kept, dict) and kept else ""
        found += [f'"{key}":{text}'] if text else []
    return f"{{{','.join(found)}}}" if own else _dumped(_compact(value))


_dumped = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _compact(value: object) -> object:
    """Without what is empty, and figures with as many digits as anybody reads."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, (list, tuple)):
        return [_compact(one) for one in value]
    items = value if isinstance(value, dict) else getattr(value, "__dict__", None)
    if items is None:
        return value
    kept = {str(key): _compact(one) for key, one in items.items()}
    return {key: one for key, one in kept.items() if one or (one == 0 and one is not False)}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
