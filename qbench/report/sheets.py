"""The contact sheets of a ranking side by side, as one picture."""

from __future__ import annotations

from pathlib import Path

from qbench.results.ranking import Ranking, label

COLUMNS, WIDTH, MOST = 3, 640, 24


def side_by_side(ranking: Ranking, path: Path) -> Path | None:
    """Write the picture. Where the runs' sheets are gone, one drawn before stays; else None."""
    from PIL import Image, ImageDraw, ImageFont

    found = []
    for record, folder in zip(ranking.records, ranking.folders, strict=True):
        sheet = folder / record.files.get("contact_sheet", "contact.png")
        # A record is data from elsewhere: it may not point out of its own folder.
        if "contact_sheet" in record.files and sheet.is_file() and sheet.parent == folder:
            found.append((label(record, ranking), sheet))
    if not found:
        return path if path.is_file() else None
    tiles = []
    for name, sheet in found[:MOST]:
        with Image.open(sheet) as picture:
            height = round(picture.height * WIDTH / picture.width)
            tiles.append((name, picture.convert("RGB").resize((WIDTH, height))))
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
