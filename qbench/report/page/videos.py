"""The page's own copies of the videos, and how far each frame is from the reference's.

Players can show any frame at once only where every frame is a key frame, so a video that has
others is encoded anew: from the raw frames where they are still there, else from the video itself.
What lies in a run's folder may come from anywhere, so sizes are bounded, and what does not decode
is left out.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench import escape, media, prompts
from qbench.errors import InputError
from qbench.pipelines import known
from qbench.report.page import model
from qbench.results import store

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from qbench.quality.outputs import Outputs
    from qbench.results.ranking import Ranking
    from qbench.results.record import Record

    Pixels = NDArray[np.uint8]  # (frames, height, width, 3)

FOLDER = "videos"  # beside the page
FPS = 8  # as runs write them
LARGEST = 64 * 2**20  # bytes of a video
LONGEST, WIDEST = 1000, 4096  # frames, and pixels to a side, that are decoded
DECODED = 2**31  # bytes of a video, decoded
COMPARED = 2**16  # pixels of a frame that are compared, evenly spread, in videos of more
TEXT = 1000  # characters of a prompt
BESIDE, INSIDE = (256, 18), (128, 23)  # pixels that small videos are enlarged to, and x264's CRF
NAME = re.compile(rf"{FOLDER}/[\w.+-]+/\d{{3,6}}\.mp4")  # of a copy beside the page


@dataclass(frozen=True)
class Where:
    """Where copies go: into files below `out`, or into the page itself, `inside` bytes at most.

    count: prompts of a ranking that are shown at most.
    """

    out: Path
    count: int
    inside: int | None = None


@dataclass(frozen=True)
class _Run:
    """The videos of one run, as far as they are still there."""

    id: str
    record: Record
    folder: Path
    raw: Outputs | None

    def encoded(self, number: int) -> bytes | None:
        name = f"{self.record.files.get('videos', '')}/{number:03d}.mp4"
        return store.read_beside(self.folder, name, LARGEST)

    def frames(self, number: int, stride: int = 1) -> torch.Tensor | None:
        """Raw frames (frames, 3, height, width) in [0, 1], every so many pixels of them."""
        from qbench.quality.outputs import decoded

        if self.raw is None or number >= len(self.raw):
            return None
        try:
            stored, _ = self.raw.stored(number, number + 1)
            return decoded(stored[0, :, :, ::stride, ::stride])
        except Exception:  # a damaged file raises anything from safetensors to IndexError
            return None


def added(
    board: model.Board, ranking: Ranking, where: Where, name: str
) -> tuple[model.Board, list[str]]:
    """The board with its videos, and the names of the files written below `where.out`.

    name: of this board, as part of the names of folders.
    """
    runs = [
        run
        for variant, record, folder in zip(
            board.variants, ranking.records, ranking.folders, strict=False
        )
        if (run := _run(variant.id, record, folder))
    ]
    runs.sort(key=lambda run: run.record is not ranking.reference)
    clips: dict[str, dict[int, model.Clip]] = {run.id: {} for run in runs}
    written: list[str] = []
    used, left, raw = 0, 0, True
    for number in range(where.count if runs else 0):
        first: _Shown | None = None
        for run in runs:
            shown = _shown(run, number, where.inside is not None)
            if shown is None:
                continue
            used += len(shown.copy)
            if where.inside is not None and used > where.inside:
                left += 1
                continue
            place = f"{FOLDER}/{name}{run.id}-{run.record.recipe.plain_name}/{number:03d}.mp4"
            source = _placed(shown.copy, place, where, written)
            difference: tuple[float, ...] = ()
            if run.record is ranking.reference:
                first = shown
            elif first is not None:
                difference, exact = _difference(first, shown)
                raw = raw and exact
            clips[run.id][number] = model.Clip(
                source, shown.frames, shown.width, shown.height, difference
            )
    _decoded.cache_clear()
    numbers = sorted({number for found in clips.values() for number in found})
    variants = tuple(
        dataclasses.replace(variant, clips=made, scores=_scores(record, list(made)))
        for variant, record in zip(board.variants, ranking.records, strict=False)
        for made in (clips.get(variant.id, {}),)
    )
    texts = _prompts(ranking)
    changed = dataclasses.replace(
        board,
        variants=variants,
        prompts=tuple(model.Prompt(n, _text(texts, n)) for n in numbers),
        fps=FPS,
        raw=raw,
        left_out=f"{left} videos are left out, for this file would be too large." if left else "",
    )
    return changed, written


def inside_bytes(board: model.Board) -> int:
    """What the videos inside a page take, before they are written as text."""
    sources = (clip.source for variant in board.variants for clip in variant.clips.values())
    return sum(len(source) * 3 // 4 for source in sources if source.startswith("data:"))


def _run(id: str, record: Record, folder: Path) -> _Run | None:
    """None where nothing of the run's videos is there."""
    from qbench.quality.outputs import Outputs

    if record.status not in ("ok", "invalid") or not folder.is_dir():
        return None
    outputs = None
    name = record.files.get("outputs", "")
    try:
        place = (folder / name).resolve()
        if name and place.is_dir() and place.is_relative_to(folder.resolve()):
            outputs = Outputs(place)
    except (OSError, ValueError, RuntimeError):
        outputs = None
    run = _Run(id, record, folder, outputs)
    return run if outputs is not None or record.files.get("videos") else None


def _placed(copy: bytes, place: str, where: Where, written: list[str]) -> str:
    """Put a copy where it belongs. Returns what the page loads it by."""
    if where.inside is not None:
        return f"data:video/mp4;base64,{base64.b64encode(copy).decode()}"
    path = where.out / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(copy)
    written.append(place)
    return place


# Copies ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shown:
    """The page's copy of a video, and the run's own frames where they are still there."""

    run: _Run
    number: int
    copy: bytes
    frames: int
    width: int
    height: int


def _shown(run: _Run, number: int, inside: bool) -> _Shown | None:
    found = run.encoded(number)
    copy = None if inside and run.raw is not None else found
    if copy is None or _size(copy) is None:
        copy = _anew(run, number, found, INSIDE if inside else BESIDE)
    if copy is None or (size := _size(copy)) is None:
        return None
    return _Shown(run, number, copy, *size)


def _anew(run: _Run, number: int, found: bytes | None, how: tuple[int, int]) -> bytes | None:
    """The video with key frames alone, from its raw frames or else from what is encoded."""
    raw = run.frames(number)
    pixels = _decoded(found) if raw is None and found is not None else None
    if raw is not None:
        pixels = media.to_pixels(raw)
    if pixels is None or min(pixels.shape[1:3]) < 2:
        return None
    wanted, crf = how
    grow = max(1, -(-wanted // max(pixels.shape[1:3])))
    return media.mp4(pixels.repeat(grow, axis=1).repeat(grow, axis=2), FPS, crf)


def _size(video: bytes) -> tuple[int, int, int] | None:
    """Frames, width and height of a video as the page plays it; None of any other."""
    import av

    try:
        with av.open(io.BytesIO(video), "r", format="mp4") as container:
            stream = container.streams.video[0]
            codec = stream.codec_context
            if codec is None:  # of a kind that nobody here knows
                return None
            packets = [p for p in container.demux(stream) if p.size]
            if not 0 < len(packets) <= LONGEST or max(codec.width, codec.height) > WIDEST:
                return None
            plain = codec.name == "h264" and codec.pix_fmt == "yuv420p"
            if not (plain and stream.average_rate == FPS and all(p.is_keyframe for p in packets)):
                return None
            return len(packets), codec.width, codec.height
    except (av.error.FFmpegError, IndexError, ValueError):
        return None


@functools.lru_cache(maxsize=2)  # the reference is compared with one after the other
def _decoded(video: bytes) -> Pixels | None:
    import av
    import numpy as np

    frames: list[Pixels] = []
    try:
        with av.open(io.BytesIO(video), "r", format="mp4") as container:
            codec = container.streams.video[0].codec_context
            if codec is None or not 0 < max(codec.width, codec.height) <= WIDEST:
                return None  # before a frame of that size is decoded
            for frame in container.decode(video=0):
                size = 3 * frame.width * frame.height
                if len(frames) >= LONGEST or (len(frames) + 1) * size > DECODED:
                    return None
                frames.append(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False))
        return np.stack(frames) if frames else None
    except (av.error.FFmpegError, IndexError, ValueError):
        return None


def _difference(ours: _Shown, theirs: _Shown) -> tuple[tuple[float, ...], bool]:
    """Mean absolute difference by frame in levels of 255, and whether it is of raw frames."""
    stride = max(1, round(math.sqrt(ours.width * ours.height / COMPARED)))
    raw = [shown.run.frames(shown.number, stride) for shown in (ours, theirs)]
    if raw[0] is not None and raw[1] is not None:
        if raw[0].shape != raw[1].shape:
            return (), True
        levels = 255 * (raw[0] - raw[1]).nan_to_num(nan=1.0).abs().mean(dim=(1, 2, 3))
        return tuple(float(f"{level:.3g}") for level in levels), True
    first, second = (_decoded(shown.copy) for shown in (ours, theirs))
    if first is None or second is None or first.shape != second.shape:
        return (), False
    found = abs(first.astype("float32") - second).mean(axis=(1, 2, 3))
    return tuple(float(f"{level:.3g}") for level in found), False


# Prompts and scores ------------------------------------------------------------------------------


def _scores(record: Record, numbers: Sequence[int]) -> dict[str, dict[int, float]]:
    """Each metric's value of each video shown."""
    return {
        name: {n: metric.samples[n] for n in numbers if n < len(metric.samples)}
        for name, metric in record.quality.items()
        if metric.samples and not metric.scale and numbers
    }


def _prompts(ranking: Ranking) -> Sequence[str]:
    """What the videos were made from: as a run noted, or the shipped set that it names."""
    for record, folder in zip(ranking.records, ranking.folders, strict=True):
        text = store.read_beside(folder, record.files.get("prompts", ""), LARGEST)
        try:
            noted = json.loads(text) if text else None
        except (ValueError, RecursionError):
            continue
        if isinstance(noted, list) and noted and all(isinstance(one, str) for one in noted):
            return noted
    recipe = ranking.records[0].recipe
    if recipe.prompts.set is not None and recipe.prompts.set not in prompts.names():
        return ()  # a file, which a record is not asked to have read
    if recipe.model not in known.KNOWN:
        return ()
    try:
        chosen = prompts.chosen(recipe.prompts, known.KNOWN[recipe.model])
    except InputError:
        return ()
    same = chosen.digest() == ranking.records[0].fingerprints.prompts
    return chosen.prompts if same else ()


def _text(texts: Sequence[str], number: int) -> str:
    known = number < len(texts)
    return escape.clipped(escape.plain(texts[number]), TEXT) if known else f"prompt {number + 1}"
