"""The decode of CogVideoX's VAE split over ranks by rows: the video of one GPU, in less time.

Every rank has the same latents and works on its rows of them, from the first layer to the last.
Two kinds of layer see more than their own rows. A 3 x 3 convolution sees one row to either side,
which the neighbours send; beyond the frame it sees the zeros that it is padded with on one GPU. A
group norm takes the moments of whole frames, which ranks add up. Scales and shifts come from the
latents of the same rows, and upsampling keeps rows in order.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qbench.errors import Unsupported
from qbench.optimizations.changes import Changes, Forward
from qbench.optimizations.vae import group_norm

if TYPE_CHECKING:
    from qbench.optimizations.parallel.groups import Group
    from qbench.pipelines.base import Module

ROWS = 3  # of (batch, channels, frames, height, width), and of blocked activations alike


class Rows:
    """How many rows of a frame each rank has, and what they exchange about them."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.of_latents: list[int] = []  # of each rank; deeper layers have a multiple of them

    def apply(self, vae: Module, fused: bool, changes: Changes) -> None:
        """Split the decoder, whose layers may have been changed before (`fused`, in strips)."""
        from diffusers.models.autoencoders import autoencoder_kl_cogvideox as kinds
        from diffusers.models.upsampling import CogVideoXUpsample3D

        for layer in vae.decoder.modules():
            grown = isinstance(layer, CogVideoXUpsample3D)
            causal = isinstance(layer, kinds.CogVideoXCausalConv3d) and layer.height_pad
            if grown or causal:
                # qbench's own kernels make no output for the rows that were lent.
                lent = 0 if fused else 2 if grown else 1
                changes.replace(layer, "forward", _Bordered(layer.forward, self, lent))
            elif isinstance(layer, torch.nn.GroupNorm) and _whole(layer):
                changes.compute(layer, self._normed)
        decode = functools.partial(self._decode, vae.decoder.forward)
        changes.replace(vae.decoder, "forward", decode)

    def _decode(self, inner: Forward, sample: Tensor, *args: object, **kwargs: object) -> object:
        """The decoder's call: this rank's rows in, everybody's out."""
        height, count = sample.shape[ROWS], self.group.size
        if height < count:
            raise Unsupported(
                f"variant.parallel.decode: latents of {height} rows cannot be split over {count} "
                "GPUs"
            )
        parts = sample.tensor_split(count, ROWS)
        self.of_latents = [part.shape[ROWS] for part in parts]
        out, caches = inner(parts[self.group.index].contiguous(), *args, **kwargs)
        each = out.shape[ROWS] // self.of_latents[self.group.index]
        sizes = [rows * each for rows in self.of_latents]
        return torch.cat(self.group.gather_uneven(out, sizes, ROWS), ROWS), caches

    def bordered(self, x: Tensor) -> Tensor:
        """`x` with a row of each neighbour's above and below, or of zeros at the frame's edges."""
        group, height = self.group, x.shape[ROWS]
        sends, receives = [], []
        above, below = torch.zeros_like(x[:, :, :, :1]), torch.zeros_like(x[:, :, :, :1])
        above, below = above.contiguous(), below.contiguous()
        if group.index > 0:
            sends.append((group.index - 1, x[:, :, :, :1].contiguous()))
            receives.append((group.index - 1, above))
        if group.index + 1 < group.size:
            sends.append((group.index + 1, x[:, :, :, height - 1 :].contiguous()))
            receives.append((group.index + 1, below))
        group.trade(sends, receives)
        return torch.cat([above, x, below], ROWS)

    def moments(self, layer: torch.nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each group over all ranks' rows, (batch * groups,), FP32."""
        mean, variance = group_norm.moments(layer, x)
        # By the law of total variance. FP64: squares of means cancel.
        mean, variance = mean.double(), variance.double()
        found = self.group.gather(torch.stack([mean, variance]))
        shares = [rows / sum(self.of_latents) for rows in self.of_latents]
        whole = sum(part * one[0] for part, one in zip(shares, found, strict=True))
        spread = sum(
            part * (one[1] + (one[0] - whole).square())
            for part, one in zip(shares, found, strict=True)
        )
        assert isinstance(whole, Tensor)
        assert isinstance(spread, Tensor)
        return whole.float(), spread.float()

    def _normed(self, layer: torch.nn.GroupNorm, x: Tensor) -> Tensor:
        return group_norm.normed(layer, x, *self.moments(layer, x))

    # qbench's own kernels take moments in parts of as many pixels each ----------------------------

    def common(self, of_row: int, height: int) -> tuple[int, int]:
        """Pixels that divide those of every rank, and how often they go into the largest's.

        of_row: pixels of one of this rank's rows, all frames.
        """
        each = height // self.of_latents[self.group.index]
        alike = math.gcd(*self.of_latents)
        return of_row * each * alike, max(self.of_latents) // alike

    def parts(self, moments: Tensor, count: int) -> Tensor:
        """(planes, parts, ...) of all ranks, from those of this one, `count` of them."""
        mine = self.of_latents[self.group.index]
        sizes = [count * rows // mine for rows in self.of_latents]
        return torch.cat(self.group.gather_uneven(moments, sizes, 1), 1)


def _whole(layer: torch.nn.GroupNorm) -> bool:
    """Whether the layer takes its moments itself: torch's own, or in parts."""
    forward = vars(layer).get("forward")
    return forward is None or forward.func is group_norm.split


class _Bordered:
    """A layer that is given the rows next to its own; what it makes of those is cut off."""

    def __init__(self, inner: Forward, rows: Rows, lent: int) -> None:
        self._inner, self._rows, self._lent = inner, rows, lent

    def __call__(self, x: Tensor, *args: object, **kwargs: object) -> object:
        made = self._inner(self._rows.bordered(x), *args, **kwargs)
        if not self._lent:
            return made
        cut = slice(self._lent, -self._lent)
        if isinstance(made, tuple):
            return made[0][:, :, :, cut], made[1]
        return made[:, :, :, cut]
