"""CLIP score and consistency, with any transformers CLIP or SigLIP (hub id or folder)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from qbench.errors import InputError
from qbench.quality.metrics.base import Batch, Context, MetricSpec
from qbench.quality.metrics.catalogue import SMALL_WORLD
from qbench.quality.statistics import Metric

RESAMPLE = {2: "bilinear", 3: "bicubic"}  # the numbers that image processors write


def meter(specs: Sequence[MetricSpec], context: Context) -> Clip:
    return Clip(specs, context)


class Clip:
    """CLIP score and consistency, of the same embeddings."""

    def __init__(self, specs: Sequence[MetricSpec], context: Context) -> None:
        source = context.quality.clip or context.model.clip
        self._scorer = ClipScorer(source, context.device)
        self._note = SMALL_WORLD if context.model.world else f"by {source}, FP32 without TF32"
        self._samples: dict[MetricSpec, list[float]] = {spec: [] for spec in specs}
        self._by_frame: list[torch.Tensor] = []  # (batch, frames)
        if cut := self._scorer.cut(context.prompts):
            context.notes.append(
                f"clip_score: {cut} of {len(context.prompts)} prompts were cut at "
                f"{self._scorer.tokens} tokens, the end of the text tower"
            )

    def update(self, batch: Batch) -> None:
        frames = self._scorer.frames(batch.frames)
        for spec, samples in self._samples.items():
            if spec.name == "clip_score":
                scores = clip_score(frames, self._scorer.texts(batch.prompts)).cpu()
                self._by_frame.append(scores)
                values = scores.mean(1)
            elif spec.name == "clip_consistency":
                values = clip_consistency(frames)
            else:
                raise ValueError(f"CLIP computes no {spec.name}")
            samples += [float(value) for value in values]

    def result(self) -> dict[str, Metric]:
        made = {spec.name: spec.sampled(v, self._note) for spec, v in self._samples.items()}
        if "clip_score" in made:
            by_frame = torch.cat(self._by_frame).mean(0).tolist()
            made["clip_score"] = made["clip_score"].model_copy(update={"by_frame": by_frame})
        return made


class ClipScorer:
    """A CLIP or SigLIP model with its tokenizer and its own image preprocessing."""

    def __init__(self, source: str, device: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        local = Path(source).is_dir()
        self._model = AutoModel.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, local_files_only=local
        )
        self._model.eval().to(device)
        self._tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        self._device = device
        self._settings = _preprocessing(source)
        self._mean = torch.tensor(self._settings["image_mean"], device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(self._settings["image_std"], device=device).view(1, 3, 1, 1)
        self.tokens = int(self._model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def frames(self, videos: torch.Tensor) -> torch.Tensor:
        """Unit embeddings (batch, frames, d) of videos (batch, frames, 3, h, w) in [0, 1]."""
        images = torch.cat([self._images(video) for video in videos])
        return images.view(len(videos), videos.shape[1], -1)

    @torch.no_grad()
    def texts(self, prompts: list[str]) -> torch.Tensor:
        """Unit embeddings (batch, d); what is longer than `tokens` is cut."""
        tokens = self._tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokens,
            return_tensors="pt",
        ).to(self._device)
        # SigLIP's tokenizer gives no mask, and its model was trained without one.
        read = {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens}
        return functional.normalize(_pooled(self._model.get_text_features(**read)), dim=-1)

    def cut(self, prompts: list[str]) -> int:
        """How many prompts are longer than the text tower reads."""
        lengths = [len(ids) for ids in self._tokenizer(prompts)["input_ids"]]
        return sum(length > self.tokens for length in lengths)

    def _images(self, frames: torch.Tensor) -> torch.Tensor:
        resized = preprocess(frames.to(self._device, torch.float32), self._settings)
        pixels = (resized - self._mean) / self._std
        found = _pooled(self._model.get_image_features(pixel_values=pixels))
        return functional.normalize(found, dim=-1)


def clip_score(frames: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """max(100 cos, 0) of each frame (Hessel et al. 2021, as torchmetrics scales it).

    frames: unit embeddings (batch, frames, d); texts: (batch, d). Returns (batch, frames), in
    [0, 100], higher fits better. A video's score is the mean over its frames.
    """
    return (100 * (frames * texts.unsqueeze(1)).sum(-1)).clamp(min=0)


def clip_consistency(frames: torch.Tensor) -> torch.Tensor:
    """100 cos of consecutive frames' embeddings, mean over time (Esser et al. 2023).

    frames: unit embeddings (batch, frames, d). Returns (batch,); 100 for a single frame.
    """
    if frames.shape[1] < 2:
        return torch.full((len(frames),), 100.0)
    return (100 * (frames[:, 1:] * frames[:, :-1]).sum(-1)).mean(1)


def _pooled(output: object) -> torch.Tensor:
    """transformers 5 wraps what 4 returned as a tensor."""
    pooled = output if isinstance(output, torch.Tensor) else getattr(output, "pooler_output", None)
    if not isinstance(pooled, torch.Tensor):
        raise TypeError(f"no pooled embedding in {type(output).__name__}")
    return pooled


def _preprocessing(source: str) -> dict[str, Any]:
    if Path(source).is_dir():
        return json.loads((Path(source) / "preprocessor_config.json").read_text())
    from transformers.utils.hub import cached_file

    found = cached_file(source, "preprocessor_config.json")
    return json.loads(Path(str(found)).read_text())


def preprocess(frames: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """Resize and crop as an image processor with these settings does, but anti-aliased on tensors.

    CLIP's scales the shorter side and takes the centre; SigLIP's stretches to the square.
    frames: (n, 3, height, width) in [0, 1].
    """
    size = settings["size"]
    if isinstance(size, int):
        size = {"shortest_edge": size}
    height, width = frames.shape[-2:]
    if "shortest_edge" in size:
        short = size["shortest_edge"]
        scale = short / min(height, width)
        target = [max(short, int(height * scale)), max(short, int(width * scale))]
    else:
        target = [size["height"], size["width"]]
    if target != [height, width]:
        number = settings.get("resample", 3)
        if number not in RESAMPLE:
            raise InputError(
                f"quality.clip: its images are resized by Pillow's filter {number!r}; qbench has "
                f"{', '.join(f'{kind} ({name})' for kind, name in RESAMPLE.items())}"
            )
        mode = RESAMPLE[number]
        frames = functional.interpolate(frames, size=target, mode=mode, antialias=True).clamp(0, 1)
    if "shortest_edge" in size and settings.get("do_center_crop", True):
        crop = settings.get("crop_size", size["shortest_edge"])
        high, wide = (crop, crop) if isinstance(crop, int) else (crop["height"], crop["width"])
        top, left = (target[0] - high) // 2, (target[1] - wide) // 2
        frames = frames[..., top : top + high, left : left + wide]
    return frames
