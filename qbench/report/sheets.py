"""The contact sheets of a ranking side by side, as one picture."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from qbench import escape
from qbench.results import store
from qbench.results.ranking import Ranking, label

if TYPE_CHECKING:
    from PIL import Image

COLUMNS, WIDTH, MOST = 3, 640, 24
LARGEST = 64 * 2**20  # bytes of a sheet
PIXELS = 50_000_000


def side_by_side(ranking: Ranking, path: Path) -> Path | None:
    """Write the picture. Where the runs' sheets are gone, one drawn before stays; else None."""
    from PIL import Image, ImageDraw, ImageFont

    tiles: list[tuple[str, Image.Image]] = []
    for record, folder in zip(ranking.records, ranking.folders, strict=True):
        text = store.read_beside(folder, record.files.get("contact_sheet", ""), LARGEST)
        tile = _tile(text) if text is not None else None
        if tile is not None:
            tiles.append((escape.clipped(escape.plain(label(record, ranking)), 70), tile))
        if len(tiles) == MOST:
            break
    if not tiles:
        return path if path.is_file() else None
    title, gap = 30, 12
    tall = max(tile.height for _, tile in tiles) + title
    rows = -(-len(tiles) // COLUMNS)
    across = min(COLUMNS, len(tiles))
    whole = Image.new("RGB", (across * (WIDTH + gap), rows * (tall + gap)), "white")
    draw = ImageDraw.Draw(whole)
    for i, (name, tile) in enumerate(tiles):
        left, top = (i % COLUMNS) * (WIDTH + gap), (i // COLUMNS) * (tall + gap)
        draw.text((left + 4, top + 5), name, fill="black", font=ImageFont.load_default(18))
        whole.paste(tile, (left, top + title))
    whole.save(path, quality=85)  # as WebP an eighth of a PNG
    return path


def _tile(text: bytes) -> Image.Image | None:
    """The sheet at the width of a column; None where it is no picture, or no sheet's size."""
    from PIL import Image

    try:
        # Its own warning of large pictures comes before the limit here.
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(io.BytesIO(text), formats=("PNG", "WEBP", "JPEG")) as picture,
        ):
            height = round(picture.height * WIDTH / picture.width)
            if picture.width * picture.height > PIXELS or not 0 < height <= 16 * WIDTH:
                return None
            return picture.convert("RGB").resize((WIDTH, height))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
