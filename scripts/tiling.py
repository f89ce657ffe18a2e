"""What a tiled decode costs in quality, and why: the bundled VAE, tile by tile against untiled.

    python -m scripts.tiling [--side 256] [--tiles 64,128,192] [--videos 4]
        [--out results/published/MACHINE/tiling-256.json]

Videos of the rendered world are enlarged to `side` pixels, encoded, and decoded whole and in tiles
(diffusers' own, a quarter of each overlapping the next). A tile differs from the same part of the
whole in two ways: convolutions see a border where there is none, and group norms take the moments
of the tile alone. In the last column they take the whole's, so what is left is the borders'.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from qbench import world
from qbench.optimizations.changes import Changes
from qbench.optimizations.vae import group_norm
from qbench.pipelines import specs
from qbench.quality.metrics.fidelity import psnr
from scripts import bench

Moments = dict[torch.nn.GroupNorm, list[tuple[torch.Tensor, torch.Tensor]]]


@contextmanager
def _norms(vae: Any, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Every group norm of the decoder computed by `forward(layer, x)`."""
    changes = Changes("decode")
    for layer in vae.decoder.modules():
        if isinstance(layer, torch.nn.GroupNorm):
            changes.compute(layer, forward)
    try:
        yield
    finally:
        changes.undo()


def moments_of(vae: Any, latents: torch.Tensor) -> Moments:
    """Of each group norm, call by call (the VAE decodes two latent frames at a time)."""
    seen: Moments = {}

    def note(layer: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        seen.setdefault(layer, []).append(group_norm.moments(layer, x))
        return torch.nn.GroupNorm.forward(layer, x)

    with _norms(vae, note):
        vae.decode(latents)
    return seen


def given(known: Moments) -> Callable[[torch.nn.GroupNorm, torch.Tensor], torch.Tensor]:
    """Group norm with moments from before, the same for each tile."""
    calls: dict[torch.nn.GroupNorm, int] = {}

    def forward(layer: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        turn = calls[layer] = calls.get(layer, -1) + 1
        return group_norm.normed(layer, x, *known[layer][turn % len(known[layer])])

    return forward


def tile(vae: Any, pixels: int, scale: int) -> None:
    vae.enable_tiling(
        tile_sample_min_height=pixels,
        tile_sample_min_width=pixels,
        tile_overlap_factor_height=1 / 4,
        tile_overlap_factor_width=1 / 4,
    )
    vae.tile_latent_min_height = vae.tile_latent_min_width = pixels // scale


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=256, help="pixels, a multiple of 64")
    parser.add_argument("--tiles", default="64,128,192", help="pixels, multiples of 32")
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    tiles = [int(text) for text in args.tiles.split(",")]
    if args.side % 64 or any(pixels % 32 for pixels in tiles):
        parser.error("sides are multiples of 64 and tiles of 32, or they do not add up")
    pipeline = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu").pipe
    vae = pipeline.vae.float()
    chosen = world.scenes()[:: len(world.scenes()) // args.videos][: args.videos]
    clips = world.render_scenes(chosen, seed=0)
    size = (args.side, args.side)
    frames = functional.interpolate(clips.flatten(0, 1).float(), size=size, mode="bilinear")
    video = frames.view(*clips.shape[:2], 3, *size).transpose(1, 2)
    latents = vae.encode(video * 2 - 1).latent_dist.mode()

    def decoded() -> torch.Tensor:
        return (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)

    whole, known = decoded(), moments_of(vae, latents)
    print(f"{args.videos} videos of {args.side}x{args.side}, PSNR to the untiled decode")
    print("| tiles | tiled | with the whole's moments |\n| --- | --- | --- |")
    rows = []
    for pixels in tiles:
        tile(vae, pixels, pipeline.vae_scale_factor_spatial)
        plain = psnr(decoded(), whole).mean()
        with _norms(vae, given(known)):
            shared = psnr(decoded(), whole).mean()
        vae.disable_tiling()
        print(f"| {pixels} | {plain:.1f} dB | {shared:.1f} dB |", flush=True)
        rows.append(
            {"tile": pixels, "psnr_db": float(plain), "whole_moments_psnr_db": float(shared)}
        )
    if args.out:
        bench.write(args.out, "cpu", videos=args.videos, side=args.side, rows=rows)


if __name__ == "__main__":
    main()
