"""What a pipeline's stages are given: settings with nothing left open, and a prompt's text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Resolved:
    """Generation with nothing left to default, as the record stores it."""

    frames: int
    height: int
    width: int
    steps: int
    guidance: float
    scheduler: str
    seed: int
    text_tokens: int
    surroundings: str  # dtype of the VAE, which is the same for every variant
    dynamic_cfg: bool = False

    @property
    def guided(self) -> bool:
        """Whether each step also denoises for the negative prompt (classifier-free guidance)."""
        return self.guidance > 1


@dataclass(frozen=True)
class Conditioning:
    """What the text encoders made of some prompts; the first axis of every tensor is the prompt.

    Negative parts are None without classifier-free guidance, masks and pooled vectors where the
    family has none.
    """

    positive: Tensor  # (prompts, tokens, channels)
    negative: Tensor | None = None
    positive_mask: Tensor | None = None  # (prompts, tokens)
    negative_mask: Tensor | None = None
    positive_pooled: Tensor | None = None  # (prompts, channels)
    negative_pooled: Tensor | None = None
