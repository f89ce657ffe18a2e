"""What a run generated, on disk: one file for the videos of one call, never all in memory."""

from __future__ import annotations

from pathlib import Path

import torch

FOLDER = "outputs"  # in a run's folder


class Outputs:
    """Frames (n, f, 3, h, w) in [0, 1] and final latents (n, ...) by the number of the prompt.

    Frames are kept as float16: its error is 70 dB below and more, and a codec never comes near.
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
        """Keep the videos numbered from `first` on."""
        from safetensors.torch import save_file

        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {"frames": frames.half().cpu(), "latents": latents.float().cpu()}
        made = {name: value.contiguous() for name, value in tensors.items()}
        save_file(made, self._path(first, len(frames)))
        self._count[first] = len(frames)

    def read(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames (float16) and latents of the videos start to stop - 1."""
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

    def keep_features(self, key: str, features: dict[str, torch.Tensor]) -> None:
        """Keep what a network saw in these videos; `key` names network, protocol and prompts."""
        from safetensors.torch import save_file

        path = self._features(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in features.items()}, path)

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
