"""How fast ranks exchange, and what attention and the decode take when they are shared.

    torchrun --nproc-per-node 2 -m scripts.bench_ranks [--device cuda] [--tokens 17776] [--out FILE]

Times are the slowest rank's, each the median of `--repeats`; exchanges and attention are queued ten
in a row, as a step queues them, so that the host is ahead of the device where it can be. `trade` is
what Ulysses and ring send: each rank a tensor to every other. Attention and decode are compared
with those of one GPU on the same input; errors are relative, of the root mean square. `pieces` is
attention shared in other numbers of pieces than it is by default.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from qbench.meters.clock import sample
from qbench.optimizations import attention
from qbench.optimizations.changes import Changes
from qbench.optimizations.parallel import groups, partials, rows, tokens
from qbench.pipelines.attention import Kernel
from qbench.recipe.schema import Decode, Parallel
from scripts import bench

IN_A_ROW = 10
PIECES = (1, 4, 6)
SIZES = tuple(2**n for n in range(12, 29, 4))  # bytes to each other rank


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=17776)
    parser.add_argument("--text", type=int, default=226, help="of the tokens, the first")
    parser.add_argument("--heads", type=int, default=30)
    parser.add_argument("--latents", type=int, nargs=3, default=(13, 60, 90))
    parser.add_argument("--channels", type=int, default=128, help="of the VAE, at full resolution")
    parser.add_argument("--kernel", default="auto", help="of attention")
    parser.add_argument("--largest", type=int, default=2**28, help="bytes to each other rank")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    number = int(os.environ["RANK"])
    if args.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(groups.BACKENDS[args.device])
    world = dist.get_world_size()
    ranks = groups.Ranks(Parallel(ulysses=world), args.device)
    timed = Bench(ranks, args.device, args.repeats)
    found: dict[str, object] = {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "ranks": world,
        "in_a_row": IN_A_ROW,
        "exchange": [timed.exchange(size) for size in SIZES if size <= args.largest],
        "attention": timed.attention(args.tokens, args.text, args.heads, args.kernel),
        "decode": timed.decode(tuple(args.latents), args.channels),
    }
    if number == 0:
        print(json.dumps(found, indent=1), flush=True)
        if args.out:
            bench.save(args.out, found)
    dist.destroy_process_group()


class Bench:
    """What is timed on every rank, and the slowest of them."""

    def __init__(self, ranks: groups.Ranks, device: str, repeats: int) -> None:
        self.ranks, self.device, self.repeats = ranks, device, repeats

    def seconds(self, call: Callable[[], object], count: int = IN_A_ROW) -> float:
        def calls() -> None:
            for _ in range(count):
                call()

        dist.barrier()
        own = median(sample(calls, self.device, 2, self.repeats)) / count
        slowest = torch.tensor([own], device=self.device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        return float(slowest.item())

    def exchange(self, size: int) -> dict[str, float]:
        group = self.ranks.everyone
        others = [i for i in range(group.size) if i != group.index]
        outgoing = torch.zeros(size, dtype=torch.uint8, device=self.device)
        coming = [torch.empty_like(outgoing) for _ in others]
        sends = [(i, outgoing) for i in others]
        receives = list(zip(others, coming, strict=True))
        return {
            "bytes": size,
            "trade_s": self.seconds(lambda: group.trade(sends, receives)),
            "gather_s": self.seconds(lambda: group.gather(outgoing)),
            "total_s": self.seconds(lambda: group.total(outgoing[: size // 4].float())),
        }

    def attention(self, count: int, text: int, heads: int, kernel: str) -> dict[str, object]:
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        generator = torch.Generator().manual_seed(0)
        qkv = [torch.randn(2, count, heads, 64, generator=generator) for _ in range(3)]
        whole = [x.to(self.device, dtype) for x in qkv]
        group = self.ranks.tokens

        def share(x: torch.Tensor) -> torch.Tensor:
            both = x.split([text, count - text], 1)
            return torch.cat([part.tensor_split(group.size, 1)[group.index] for part in both], 1)

        def over(pieces: int) -> Kernel:
            made = tokens.Attention(self.ranks, pieces)
            made.begin((tuple(whole[0].shape),), text)
            return made.around(one, None)

        mine = [share(x) for x in whole]
        one = partials.plain if kernel == "auto" else attention.load(kernel)
        shared = over(tokens.PIECES)
        others = {n: over(n) for n in PIECES}
        expected = share(one(*whole))
        return {
            "one_s": self.seconds(lambda: one(*whole)),
            "shared_s": self.seconds(lambda: shared(*mine)),
            "pieces": [
                {"pieces": n, "shared_s": self.seconds(partial(other, *mine))}
                for n, other in others.items()
            ],
            "error": _error(shared(*mine), expected),
        }

    @torch.no_grad()
    def decode(self, latents: tuple[int, ...], channels: int) -> dict[str, float]:
        from diffusers import AutoencoderKLCogVideoX

        from qbench.optimizations.vae import patch

        torch.manual_seed(0)
        dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        with torch.device(self.device):
            widths = tuple(channels * n for n in (1, 2, 2, 4))
            vae: Any = AutoencoderKLCogVideoX(block_out_channels=widths)
            vae.to(dtype).eval().requires_grad_(False)
            x = torch.randn(1, vae.config.latent_channels, *latents, dtype=dtype)
        self.ranks.everyone.fill(x, 0)
        for parameter in vae.parameters():
            self.ranks.everyone.fill(parameter.data, 0)
        found: dict[str, float] = {}
        way = Decode(fused=self.device == "cuda", strips=self.device != "cuda")
        pipe = type("Pipe", (), {"vae": vae})()
        alone = patch.apply(pipe, way)
        expected = vae.decode(x).sample
        found["one_s"] = self.seconds(lambda: vae.decode(x), 1)
        alone.undo()
        shared: Changes = patch.apply(pipe, way, rows.Rows(self.ranks.everyone))
        found["error"] = _error(vae.decode(x).sample, expected)
        found["shared_s"] = self.seconds(lambda: vae.decode(x), 1)
        found["exchanges"] = self._exchanges(lambda: vae.decode(x))
        shared.undo()
        return found

    def _exchanges(self, call: Callable[[], object]) -> float:
        before = self.ranks.traffic.begun
        call()
        return float(self.ranks.traffic.begun - before)


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    off = (got.float() - expected.float()).square().mean().sqrt()
    return float(off / expected.float().square().mean().sqrt())


if __name__ == "__main__":
    main()
