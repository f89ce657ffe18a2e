"""What the paired figures that need no network see, and what they leave alone: a table.

    python -m scripts.separation RUNS REFERENCE --out separation.json

RUNS is a folder of runs that kept their videos (`outputs/`), REFERENCE the name of one. Every
other run is held against it, then its own videos after planted changes are.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional

from qbench.quality.metrics import catalogue, fidelity
from qbench.quality.metrics.base import Batch, Context
from qbench.quality.outputs import FOLDER, Outputs
from qbench.quality.statistics import summarise
from qbench.recipe.schema import Quality
from qbench.report import tables
from scripts import bench

NAMES = [
    spec.name for spec in catalogue.METRICS.own.values() if spec.better == "zero" and spec.margin
]


def blurred(videos: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of (n, f, 3, h, w), sigma in pixels."""
    window = torch.arange(-4, 5.0).square().div(-2 * sigma**2).exp()
    window = (window / window.sum()).view(1, 1, 1, 9).expand(3, 1, 1, 9)
    flat = functional.pad(videos.flatten(0, 1), (4, 4, 4, 4), mode="reflect")
    flat = functional.conv2d(flat, window, groups=3)
    return functional.conv2d(flat, window.transpose(2, 3), groups=3).view_as(videos)


def at_times(videos: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Frames at these times, in frames, interpolated between the two beside each."""
    times = times.clamp(0, videos.shape[1] - 1)
    low = times.long().clamp(max=videos.shape[1] - 2)
    share = (times - low).view(-1, 1, 1, 1)
    return videos[:, low] * (1 - share) + videos[:, low + 1] * share


def planted(v: torch.Tensor, other: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Changes of the reference's videos; other: those of another seed."""
    frames = torch.arange(v.shape[1])
    half = v.shape[1] // 2
    grey, middle = v.mean(2, keepdim=True), v.mean((1, 2, 3, 4), keepdim=True)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(v.shape, generator=generator)
    tint = torch.tensor([1.05, 1, 0.95]).view(3, 1, 1)
    made = {
        "red and blue swapped": v.flip(2),
        "blurred, sigma 0.5": blurred(v, 0.5),
        "blurred, sigma 1": blurred(v, 1.0),
        "sharpened, a quarter": v + 0.25 * (v - blurred(v, 1.0)),
        "sharpened, a half": v + 0.5 * (v - blurred(v, 1.0)),
        "contrast x0.9": middle + 0.9 * (v - middle),
        "contrast x1.1": middle + 1.1 * (v - middle),
        "saturation x0.8": grey + 0.8 * (v - grey),
        "saturation x1.2": grey + 1.2 * (v - grey),
        "brighter by 0.05": v + 0.05,
        "darker by 0.05": v - 0.05,
        "red x1.05, blue x0.95": v * tint,
        "noise, sigma 0.02": v + 0.02 * noise,
        "frozen": v[:, :1].expand_as(v),
        "half speed": at_times(v, frames / 2),
        "0.8 of the speed": at_times(v, frames * 0.8),
        "reversed": v.flip(1),
        "every second frame repeated": v[:, frames // 2 * 2],
        "second half stands still": v[:, frames.clamp(max=half)],
        "three frames dropped": v[:, (frames + 3 * (frames > half)).clamp(max=v.shape[1] - 1)],
        "frames shuffled": v[:, torch.randperm(v.shape[1], generator=generator)],
        "first half another prompt's": torch.cat([v.roll(1, 0)[:, :half], v[:, half:]], 1),
    }
    if other is not None:
        made["first half another seed's"] = torch.cat([other[:, :half], v[:, half:]], 1)
    return {name: videos.clamp(0, 1) for name, videos in made.items()}


def row(videos: torch.Tensor, reference: torch.Tensor, context: Context) -> dict[str, list[float]]:
    """Metric -> mean over the videos and the bounds of its interval; PSNR's mean alone."""
    batch = Batch(context.prompts, videos, torch.zeros(1), reference, torch.zeros(1))
    found = {"psnr": [fidelity.psnr(videos, reference).mean().item()]}
    for name in NAMES:
        spec = catalogue.find(name)
        meter = spec.load().meter([spec], context)
        meter.update(batch)
        summary = summarise(meter.result()[name].samples or [])
        found[name] = [summary.mean, summary.low or summary.mean, summary.high or summary.mean]
    return found


def table(rows: dict[str, dict[str, list[float]]]) -> str:
    """Markdown; bold where the interval of the mean lies beyond the margin."""
    margins = catalogue.margins(Quality(), {})
    lines = [["*margin*", "", *(f"{margins[name]:g}" for name in NAMES)]]
    for label, found in rows.items():
        cells = [f"{found['psnr'][0]:.1f}"]
        for name in NAMES:
            mean, low, high = found[name]
            text = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
            beyond = low > margins[name] or high < -margins[name]
            cells.append(f"**{text}**" if beyond else text)
        lines.append([label, *cells])
    return tables.grid(["", "PSNR", *NAMES], lines)


def main(words: Sequence[str] | None = None, say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("reference")
    parser.add_argument("--seed", default="floor-seed", help="the run from other noise")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    folders = {path.parent.name: path for path in sorted(args.runs.glob(f"*/{FOLDER}"))}
    stores = {name: Outputs(path) for name, path in folders.items()}
    count = min(map(len, stores.values()))
    videos = {name: store.read(0, count)[0] for name, store in stores.items()}
    reference = videos.pop(args.reference)
    context = Context([""] * count, tuple(reference.shape[1:]), None, Quality(), "cpu", None)  # type: ignore[arg-type]
    rows = {name: row(found, reference, context) for name, found in videos.items()}
    for name, found in planted(reference, videos.get(args.seed)).items():
        rows[name] = row(found, reference, context)
    say(table(rows))
    if args.out:
        bench.save(args.out, {"videos": count, "rows": rows})


if __name__ == "__main__":
    main()
