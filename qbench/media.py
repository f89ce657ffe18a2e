"""What people look at: mp4 files and contact sheets. No metric ever reads these."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

Pixels = Any  # an array of numpy or a tensor

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont


def to_pixels(video: Pixels) -> Pixels:
    """(frames, 3, height, width) in [0, 1] as a uint8 array (frames, height, width, 3)."""
    import torch

    clean = torch.nan_to_num(video.float(), nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)
    return (clean * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def write_mp4(video: Pixels, path: Path, fps: int) -> None:
    """As `mp4`; videos smaller than 256 pixels are enlarged by whole numbers."""
    pixels = to_pixels(video)
    height, width = pixels.shape[1:3]
    grow = max(1, -(-256 // max(height, width)))
    path.write_bytes(mp4(pixels.repeat(grow, axis=1).repeat(grow, axis=2), fps))


def mp4(pixels: Pixels, fps: int, crf: int = 18) -> bytes:
    """uint8 (frames, height, width, 3) as H.264, yuv420p.

    Every frame is a key frame, so that players show exactly the one that is asked for, at once.
    """
    import io

    import av

    written = io.BytesIO()
    with av.open(written, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = (n - n % 2 for n in pixels.shape[1:3])
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "g": "1"}
        for picture in pixels:
            even = picture[: stream.height, : stream.width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())
    return written.getvalue()


# Fonts with more than Latin letters, by parts of their files' names, the widest first.
WIDE_FONTS = ("cjk", "unifont", "wqy", "droidsansfallback", "arphic", "notosans", "dejavusans.")


def font_for(text: str, size: int) -> FreeTypeFont | None:
    """A font that has every character of the text: Pillow's own, else one of this machine's."""
    from PIL import ImageFont

    plain = ImageFont.load_default(size)
    if isinstance(plain, ImageFont.FreeTypeFont) and _has_all(plain, text):
        return plain
    for path in _installed_fonts():
        try:
            font = ImageFont.truetype(path, size)
        except OSError:
            continue
        if _has_all(font, text):
            return font
    return None


def _has_all(font: FreeTypeFont, text: str) -> bool:
    """A font draws what it lacks as it draws U+FFFF, which is no character."""
    lacking = font.getmask("\uffff")
    nothing = (lacking.size, bytes(lacking))
    masks = (font.getmask(c) for c in set(text) if not c.isspace())
    return all((mask.size, bytes(mask)) != nothing for mask in masks)


@functools.cache
def _installed_fonts() -> tuple[str, ...]:
    from matplotlib import font_manager, get_data_path

    own = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    found = [*sorted(font_manager.findSystemFonts()), str(own)]
    ranked = [
        (rank, path)
        for path in found
        for rank, word in enumerate(WIDE_FONTS)
        if word in Path(path).name.lower()
    ]
    return tuple(dict.fromkeys(path for _, path in sorted(ranked)))


def contact_sheet(videos: Pixels, prompts: list[str], path: Path, columns: int = 6) -> None:
    """One row a video: `columns` frames spread over time, the prompt above them."""
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = videos.shape[-2:]
    scale = 128 / height
    cell = (round(width * scale), 128)
    label = 22
    sheet = Image.new("RGB", (cell[0] * columns, (cell[1] + label) * len(videos)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
        top = row * (cell[1] + label)
        text = prompt[:110]
        font = font_for(text, 13)
        if font is None:
            text, font = f"prompt {row}: no font here has its characters", font_for("", 13)
        draw.text((4, top + 3), text, fill="black", font=font)
        times = np.linspace(0, len(video) - 1, columns).round().astype(int)
        for column, picture in enumerate(to_pixels(video[times])):
            tile = Image.fromarray(picture).resize(cell, Image.Resampling.NEAREST)
            sheet.paste(tile, (column * cell[0], top + label))
    sheet.save(path)
