"""What a run generated, on disk: one file for the videos of one call, never all in memory."""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from qbench import cache
from qbench.errors import InputError

if TYPE_CHECKING:
    import torch

FOLDER = "outputs"  # in a run's folder
# Frames are kept as 16-bit integers: LEVELS steps from 0 to 1, so the 256 levels of a display are
# among them, the middle at code 0; what is no number has a code of its own.
LEVELS, NOT_A_NUMBER = 255 * 256, -(2**15)


def video_bytes(frames: int, height: int, width: int) -> int:
    """About what one video takes: float16 frames, and latents of 5 % of that."""
    return round(frames * 3 * height * width * 2 * 1.05)


class Outputs:
    """Frames (n, f, 3, h, w) in [0, 1] and final latents (n, ...) by the number of the prompt.

    Rounding of the frames is 107 dB below: a true PSNR of 80 dB reads 80.0, and no codec comes
    near. Earlier versions kept float16, at 77 dB; its files are still read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count: dict[int, int] = {}  # first number of a file -> videos in it
        for path in sorted(folder.glob("*.safetensors")):
            first, count = path.stem.split("-")
            self._count[int(first)] = int(count)

    def __len__(self) -> int:
        """Videos from number 0 on without a gap."""
        end = 0
        for first, count in sorted(self._count.items()):
            if first > end:
                break
            end = max(end, first + count)
        return end

    def add(self, first: int, frames: torch.Tensor, latents: torch.Tensor) -> None:
        """Keep the videos numbered from `first` on; frames in [0, 1], or `encoded`; on the CPU."""
        from safetensors.torch import save_file

        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {"frames": encoded(frames), "latents": latents.float().cpu()}
        made = {name: value.contiguous() for name, value in tensors.items()}
        save_file(made, self._path(first, len(frames)))
        self._count[first] = len(frames)

    def take(self, folder: Path | None, first: int, count: int) -> bool:
        """Keep so many videos from `first` on that another run of this left in that folder.

        Whether it has them, all in one file. That is shared where the file system can: thousands
        of videos take longer to copy than a part of them to start.
        """
        path = self._path(first, count)
        if folder is None or not (folder / path.name).is_file():
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        try:
            os.link(folder / path.name, path)
        except OSError:  # another file system, or one without links
            shutil.copyfile(folder / path.name, path)
        self._count[first] = count
        return True

    def read(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames (float32) and latents of the videos start to stop - 1."""
        frames, latents = self.stored(start, stop)
        return decoded(frames), latents

    def stored(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `read`, the frames as they are kept: half as much to move to a GPU (`decoded`)."""
        import torch
        from safetensors import safe_open

        if not 0 <= start < stop <= len(self):
            raise ValueError(f"videos {start} to {stop - 1} asked for, {len(self)} are here")
        frames, latents = [], []
        for first, count in sorted(self._count.items()):
            low, high = max(start, first), min(stop, first + count)
            if low >= high:
                continue
            with safe_open(self._path(first, count), framework="pt") as file:
                rows = slice(low - first, high - first)
                frames.append(file.get_slice("frames")[rows])
                latents.append(file.get_slice("latents")[rows])
        return torch.cat(frames), torch.cat(latents)

    def digest(self) -> str:
        """SHA-256 over all videos as they are on disk, empty where there are none."""
        hashed = hashlib.sha256()
        paths = [self._path(first, count) for first, count in sorted(self._count.items())]
        with ThreadPoolExecutor() as pool:
            for path, digest in zip(paths, pool.map(cache.file_digest, paths), strict=True):
                hashed.update(f"{path.name}\0{digest}\n".encode())
        return hashed.hexdigest() if self._count else ""

    def verify(self, digest: str, videos: int) -> bool:
        """Whether these are the videos that a record speaks of; False where some are gone.

        Raises InputError where there are as many, but others: a figure against them would be of
        nothing that the record measured. digest: of the record, empty in those without one.
        """
        if len(self) < videos:
            return False
        if digest and self.digest() != digest:
            raise InputError(
                f"{self._folder}: not the videos that its record was made with; run the reference "
                "again with --fresh"
            )
        return True

    def keep_features(self, key: str, features: dict[str, torch.Tensor]) -> None:
        """Keep what a network saw in these videos; `key` names network, protocol and prompts."""
        from safetensors.torch import save_file

        path = self._features(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Runs beside each other are compared with one reference, and may read what another writes.
        new = path.with_name(f"{path.name}.{os.getpid()}")
        save_file({name: value.contiguous() for name, value in features.items()}, new)
        os.replace(new, path)

    def features(self, key: str) -> dict[str, torch.Tensor]:
        """What was kept under this key, empty where nothing was."""
        from safetensors.torch import load_file

        path = self._features(key)
        return load_file(path) if path.is_file() else {}

    def clear(self) -> None:
        """Remove what an earlier run of the same recipe left."""
        for path in self._folder.rglob("*.safetensors"):
            path.unlink()
        self._count.clear()

    def _features(self, key: str) -> Path:
        return self._folder / "features" / f"{key}.safetensors"

    def _path(self, first: int, count: int) -> Path:
        return self._folder / f"{first:05d}-{count}.safetensors"


def encoded(frames: torch.Tensor) -> torch.Tensor:
    """Frames in [0, 1] as 16-bit integers; what is not finite becomes NOT_A_NUMBER.

    Frames that are such integers already are returned as they are.
    """
    import torch

    if not frames.is_floating_point():
        return frames
    codes = (frames.float().clamp(0, 1) * LEVELS).round() - LEVELS // 2
    return torch.where(frames.isfinite(), codes, NOT_A_NUMBER).to(torch.int16)


def decoded(frames: torch.Tensor) -> torch.Tensor:
    """The inverse of `encoded`, float32; frames in float16, of an earlier version, as they are."""
    if frames.is_floating_point():
        return frames.float()
    values = (frames.float() + LEVELS // 2) / LEVELS
    return values.masked_fill(frames == NOT_A_NUMBER, float("nan"))
