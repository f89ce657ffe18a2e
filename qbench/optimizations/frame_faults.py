"""Damage to decoded frames: each takes and returns (batch, frames, 3, height, width) in [0, 1].

There is at least one of every kind that a verdict has to see: of motion (speed, direction, rhythm),
of the picture (sharpness, contrast, colour, noise), of what is shown. They are as strong as a
viewer notices at once when both videos lie side by side, and no stronger.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def last_frames_repeated(video: Tensor) -> Tensor:
    """The last quarter of the frames stands still."""
    count = video.shape[1]
    kept = count - max(1, count // 4)
    return video[:, [min(i, kept - 1) for i in range(count)]]


def half_speed(video: Tensor) -> Tensor:
    """Everything takes twice as long; frames between two are their mean, the last half is lost."""
    import torch

    count = video.shape[1]
    at = torch.arange(count, device=video.device) / 2
    before, share = at.floor().long(), (at % 1).view(1, -1, 1, 1, 1)
    after = (before + 1).clamp(max=count - 1)
    return video[:, before] * (1 - share) + video[:, after] * share


def second_frames_repeated(video: Tensor) -> Tensor:
    """Every second frame is the one before it again: half the frame rate, in jerks."""
    return video[:, [i - i % 2 for i in range(video.shape[1])]]


def frames_out_of_order(video: Tensor) -> Tensor:
    """Neighbouring frames change places, so that motion goes back and forth."""
    count = video.shape[1]
    return video[:, [min(i + 1 - 2 * (i % 2), count - 1) for i in range(count)]]


def frozen(video: Tensor) -> Tensor:
    """The first frame from beginning to end."""
    return video[:, :1].expand_as(video).clone()


def blurred(video: Tensor) -> Tensor:
    """A box of three pixels, as a decode at half the size leaves."""
    from torch.nn import functional

    flat = functional.pad(video.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    return functional.avg_pool2d(flat, 3, stride=1).view_as(video)


def sharpened(video: Tensor) -> Tensor:
    """An unsharp mask: what blurring takes away is added once more."""
    return (2 * video - blurred(video)).clamp(0, 1)


def contrast_lowered(video: Tensor) -> Tensor:
    """A fifth less about mid-grey: black becomes 0.1, white 0.9."""
    return (video - 0.5) * 0.8 + 0.5


def contrast_raised(video: Tensor) -> Tensor:
    """A quarter more about mid-grey, and clipped."""
    return ((video - 0.5) * 1.25 + 0.5).clamp(0, 1)


def darkened(video: Tensor) -> Tensor:
    """A gamma of 1.3, as a transfer curve applied twice over does."""
    return video**1.3


def desaturated(video: Tensor) -> Tensor:
    """Half of every colour is grey."""
    return (video + video.mean(2, keepdim=True)) / 2


def tinted(video: Tensor) -> Tensor:
    """A tenth more red and a tenth less blue."""
    return (video * video.new_tensor([1.1, 1.0, 0.9]).view(1, 1, 3, 1, 1)).clamp(0, 1)


def grainy(video: Tensor) -> Tensor:
    """Noise of three per cent, the same in every frame: no flicker gives it away."""
    import torch

    noise = torch.randn(video.shape[2:], generator=torch.Generator().manual_seed(0))
    return (video + 0.03 * noise.to(video.device)).clamp(0, 1)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "black": lambda video: video * 0,
    "channels_swapped": lambda video: video.flip(2),
    "reversed": lambda video: video.flip(1),
    "mirrored": lambda video: video.flip(4),
    "last_frames_repeated": last_frames_repeated,
    "half_speed": half_speed,
    "second_frames_repeated": second_frames_repeated,
    "frames_out_of_order": frames_out_of_order,
    "frozen": frozen,
    "blurred": blurred,
    "sharpened": sharpened,
    "contrast_lowered": contrast_lowered,
    "contrast_raised": contrast_raised,
    "darkened": darkened,
    "desaturated": desaturated,
    "tinted": tinted,
    "grainy": grainy,
}
