"""What people look at, and no metric: the first videos as mp4, and a contact sheet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from qbench.quality.outputs import FOLDER, Outputs

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qbench.run.session import Session

SAMPLE_VIDEOS = 6  # kept as mp4 and on the contact sheet
VIDEOS = "videos"
PROMPTS = "prompts.json"  # of all videos, in their order


def save_samples(session: Session, outputs: Outputs) -> None:
    """Write them beside the record, with the prompts of all videos."""
    from qbench import media

    session.stages.enter("save")
    folder = session.job.folder
    kept = min(SAMPLE_VIDEOS, len(session.prompts))
    frames, _ = outputs.read(0, kept)
    if save_videos(frames, folder / VIDEOS):
        session.recorder.files(videos=VIDEOS)
    else:
        session.recorder.note("no videos to look at were saved: av is not installed")
    sheet = folder / "contact.png"
    media.contact_sheet(frames, session.prompts[:kept], sheet)
    (folder / PROMPTS).write_text(json.dumps(list(session.prompts), ensure_ascii=False))
    session.recorder.files(outputs=FOLDER, contact_sheet=sheet.name, prompts=PROMPTS)
    session.stages.leave("save")


def save_videos(frames: torch.Tensor, folder: Path) -> bool:
    """Write (n, f, 3, h, w) frames as mp4; False where there is no codec, which no figure needs."""
    from qbench import media

    folder.mkdir(exist_ok=True)
    try:
        for number, video in enumerate(frames):
            media.write_mp4(video, folder / f"{number:03d}.mp4", fps=8)
    except ImportError:
        folder.rmdir()
        return False
    return True
