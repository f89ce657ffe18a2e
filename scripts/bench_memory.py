"""What measuring quality holds in memory, as videos grow in number: it must not grow with them.

    python -m scripts.bench_memory [--videos 64 256 2048]

Videos of the bundled model's shape, made up, written as a run writes them, then measured in full
against a reference. Prints the peak resident set over what it was before, one process a number.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path

BATCH = 64


def peak_mib(videos: int) -> tuple[float, float]:
    """Of one whole measurement: growth of the resident set, and the videos on disk, in MiB."""
    import torch

    from qbench import prompts, world
    from qbench.meters.memory import PeakMeter
    from qbench.pipelines import specs
    from qbench.quality import evaluate
    from qbench.quality.outputs import Outputs
    from qbench.recipe.schema import Prompts, Quality

    model = specs.find("tiny-cogvideox")
    texts = list(prompts.chosen(Prompts(set="world-2048-v1", count=videos), model).prompts)
    shape = (world.FRAMES, 3, world.SIDE, world.SIDE)
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (Outputs(Path(folder) / name) for name in ("variant", "reference"))
        scene = torch.tensor([world.parse(texts[0]).indices()])  # type: ignore[union-attr]
        clip = world.render(scene, world.jitter(1, 0))
        for start in range(0, videos, BATCH):
            count = min(BATCH, videos - start)
            for store in (ours, theirs):
                noise = 0.02 * torch.randn((count, *shape), generator=generator)
                store.add(start, (clip + noise).clamp(0, 1), torch.zeros(count, 1))
        wanted = Quality(batch=BATCH)

        def measured(count: int) -> None:
            evaluate.measure(ours, theirs, texts[:count], shape, model, wanted, "cpu")

        measured(BATCH)  # libraries and networks are loaded, and no part of what is asked
        meter = PeakMeter("cpu")
        before = meter.lap().resident_bytes or 0
        measured(videos)
        after = meter.lap().resident_bytes or 0
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
    return (after - before) / 2**20, stored / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[64, 256, 2048])
    for videos in parser.parse_args().videos:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            grown, stored = pool.apply(peak_mib, (videos,))
        print(
            f"{videos} videos, {stored:.0f} MiB on disk: {grown:+.0f} MiB at the peak", flush=True
        )


if __name__ == "__main__":
    main()
