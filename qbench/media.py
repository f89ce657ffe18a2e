"""What people look at: mp4 files and contact sheets. No metric ever reads these."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def to_pixels(video: Any) -> Any:
    """(frames, 3, height, width) in [0, 1] as a uint8 array (frames, height, width, 3)."""
    import torch

    clean = torch.nan_to_num(video.float(), nan=0.0, posinf=1.0, neginf=0.0).clamp(0, 1)
    return (clean * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def write_mp4(video: Any, path: Path, fps: int) -> None:
    """H.264, yuv420p; videos smaller than 256 pixels are enlarged by whole numbers."""
    import av

    pixels = to_pixels(video)
    height, width = pixels.shape[1:3]
    grow = max(1, -(-256 // max(height, width)))
    pixels = pixels.repeat(grow, axis=1).repeat(grow, axis=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = (n - n % 2 for n in pixels.shape[1:3])
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18"}
        for picture in pixels:
            even = picture[: stream.height, : stream.width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())


def contact_sheet(videos: Any, prompts: list[str], path: Path, columns: int = 6) -> None:
    """One row a video: `columns` frames spread over time, the prompt above them."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    height, width = videos.shape[-2:]
    scale = 128 / height
    cell = (round(width * scale), 128)
    label = 22
    sheet = Image.new("RGB", (cell[0] * columns, (cell[1] + label) * len(videos)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for row, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
        top = row * (cell[1] + label)
        draw.text((4, top + 3), prompt[:110], fill="black", font=font)
        times = np.linspace(0, len(video) - 1, columns).round().astype(int)
        for column, picture in enumerate(to_pixels(video[times])):
            tile = Image.fromarray(picture).resize(cell, Image.Resampling.NEAREST)
            sheet.paste(tile, (column * cell[0], top + label))
    sheet.save(path)
