"""Feature extraction from stored videos, against the bare network's forward at the same batch.

    python -m scripts.bench_features [--device cuda] [--videos 64] [--batch 8] [--frames 17] ...

Prints videos a second of both and their ratio, the median of --rounds interleaved rounds. What
extraction adds: reading files, float16 to float32, resizing to 224x224, the moments in float64.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from qbench.pipelines import known
from qbench.quality import evaluate
from qbench.quality.metrics import features, fvd
from qbench.quality.outputs import Outputs
from qbench.recipe.schema import Fvd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    for name, value in (("videos", 16), ("batch", 4), ("frames", 17), ("height", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    extractor = features.load(Fvd(network="i3d"), known.Model("any", "any"), args.device)
    with tempfile.TemporaryDirectory() as folder:
        outputs = Outputs(Path(folder))
        shape = (args.batch, args.frames, 3, args.height, args.width)
        for start in range(0, args.videos, args.batch):
            outputs.add(start, torch.rand(shape), torch.zeros(args.batch, 1))
        ready = extractor.prepare(torch.rand(shape, device=args.device))
        prompts = [""] * args.videos

        def sync() -> float:
            if args.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter()

        def bare() -> None:
            with torch.no_grad():
                for _ in range(args.videos // args.batch):
                    extractor.network(ready)

        def whole() -> None:
            moments = fvd.Moments(extractor.size)
            for batch in evaluate.batches(outputs, None, prompts, args.batch, args.device):
                moments.update(extractor(batch.frames))

        bare()
        rounds: list[list[float]] = []
        for _ in range(args.rounds):
            taken = []
            for work in (bare, whole):
                began = sync()
                work()
                taken.append(sync() - began)
            rounds.append(taken)
    alone, extraction = (statistics.median(column) for column in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    print(
        f"{extractor.protocol}\n{args.frames}x{args.height}x{args.width}, batch {args.batch}: "
        f"network {args.videos / alone:.2f}, extraction {args.videos / extraction:.2f} videos a "
        f"second, {ratio:.1%} (n = {args.rounds} rounds of {args.videos})"
    )


if __name__ == "__main__":
    main()
