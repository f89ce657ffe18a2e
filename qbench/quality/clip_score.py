"""CLIP score: how well frames fit their prompt, with any transformers CLIP (hub id or folder)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


class ClipScorer:
    """A CLIP model with its tokenizer and its own image preprocessing."""

    def __init__(self, source: str, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        local = Path(source).is_dir()
        load: dict[str, Any] = {"local_files_only": local}
        self._model = AutoModel.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, **load
        )
        self._model.eval().to(device)
        self._tokenizer = AutoTokenizer.from_pretrained(source, **load)
        self._device = device
        settings = _preprocessing(source)
        self._mean = torch.tensor(settings["image_mean"], device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(settings["image_std"], device=device).view(1, 3, 1, 1)
        self._size = self._model.config.vision_config.image_size
        self._tokens = self._model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def score(self, videos: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """max(100 cos, 0), mean over frames (Hessel et al. 2021, as torchmetrics scales it).

        videos: (batch, frames, 3, height, width) in [0, 1]; one prompt each. Returns (batch,),
        in [0, 100], higher fits better.
        """
        images = torch.cat([self._images(video) for video in videos])
        images = images.view(len(videos), videos.shape[1], -1)
        texts = self._texts(prompts).unsqueeze(1)
        return (100 * (images * texts).sum(-1)).clamp(min=0).mean(1).cpu()

    def cut(self, prompts: list[str]) -> int:
        """How many prompts are longer than the text tower reads."""
        lengths = [len(ids) for ids in self._tokenizer(prompts)["input_ids"]]
        return sum(length > self._tokens for length in lengths)

    def _images(self, frames: torch.Tensor) -> torch.Tensor:
        resized = _resize_and_crop(frames.to(self._device, torch.float32), self._size)
        pixels = (resized - self._mean) / self._std
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        return torch.nn.functional.normalize(self._model.visual_projection(pooled), dim=-1)

    def _texts(self, prompts: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self._tokens,
            return_tensors="pt",
        ).to(self._device)
        pooled = self._model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return torch.nn.functional.normalize(self._model.text_projection(pooled), dim=-1)


def _preprocessing(source: str) -> dict[str, Any]:
    if Path(source).is_dir():
        return json.loads((Path(source) / "preprocessor_config.json").read_text())
    from transformers.utils.hub import cached_file

    found = cached_file(source, "preprocessor_config.json")
    return json.loads(Path(str(found)).read_text())


def _resize_and_crop(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Shorter side to `size` by anti-aliased bicubic interpolation, then the centre square."""
    height, width = frames.shape[-2:]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        target = [max(size, round(height * scale)), max(size, round(width * scale))]
        frames = torch.nn.functional.interpolate(
            frames, size=target, mode="bicubic", antialias=True
        ).clamp(0, 1)
        top, left = (target[0] - size) // 2, (target[1] - size) // 2
        frames = frames[..., top : top + size, left : left + size]
    return frames
