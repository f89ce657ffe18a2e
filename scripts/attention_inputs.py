"""FP8 attention on inputs that are hard to quantize: its error beside plain FP8's and BF16's.

    python -m scripts.attention_inputs [--channels 128] [--tokens 2222] [--device cuda]
        [--lengths 1 512 32760] [--out results/published/MACHINE/attention-inputs.json]

Errors are relative to attention in FP64. Plain FP8 has true exponentials, and one scale a head for
each of q, k and v, which is what FlashAttention 3 takes: what the format costs whatever the kernel.
Without a GPU the kernel's reference implementation is taken. BF16 is torch's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from qbench.optimizations.kernels import fp8_attention
from qbench.report import tables
from scripts import bench

CHECKED = 256  # queries
# Tokens; the last three are of CogVideoX-2B, Wan 2.1 and CogVideoX1.5.
LENGTHS = (1, 17, 226, 512, 2222, 17776, 32760, 45106)
Three = tuple[Tensor, Tensor, Tensor]  # q, k, v: (batch, tokens, heads, channels), float32


def _common_keys(q: Tensor, k: Tensor, v: Tensor) -> Three:
    return q, k + 6 * torch.randn(k.shape[-1], generator=_generator(1)), v


def _outlier_channels(q: Tensor, k: Tensor, v: Tensor) -> Three:
    loud = torch.ones(q.shape[-1])
    loud[[3, 17, 40]] = 30
    return q * loud, k * loud, v


def _outlier_values(q: Tensor, k: Tensor, v: Tensor) -> Three:
    loud = torch.ones(v.shape[-1])
    loud[5] = 300
    return q, k, v * loud


def _sink(q: Tensor, k: Tensor, v: Tensor) -> Three:
    """Every query gives the first key about half its weight, and its value is small."""
    k, v = k.clone(), v.clone()
    towards = functional.normalize(torch.randn(q.shape[-1], generator=_generator(1)), dim=0)
    q = q + 8 * towards
    k[:, 0] = towards * (q.shape[-1] ** 0.5 * torch.tensor(float(k.shape[1])).log() / 8)
    v[:, 0] *= 0.05
    return q, k, v


def _peaked(sigma: float) -> Callable[[Tensor, Tensor, Tensor], Three]:
    return lambda q, k, v: (q * sigma, k, v)


def _loud_token(q: Tensor, k: Tensor, v: Tensor) -> Three:
    """One query and one key ten thousand times the others; their scores pass FP16's range."""
    q, k = q.clone(), k.clone()
    q[:, 5] *= 1e4
    k[:, min(7, k.shape[1] - 1)] *= 1e4
    return q, k, v


def _tiny(q: Tensor, k: Tensor, v: Tensor) -> Three:
    return q * 1e-6, k * 1e-6, v * 1e-6


INPUTS: dict[str, Callable[[Tensor, Tensor, Tensor], Three]] = {
    "random": lambda q, k, v: (q, k, v),
    "keys with a common part of 6": _common_keys,
    "three channels of q and k times 30": _outlier_channels,
    "one channel of v times 300": _outlier_values,
    "a sink of half the weight": _sink,
    "scores of sigma 30": _peaked(30),
    "scores of sigma 300": _peaked(300),
    "scores of sigma 3,000": _peaked(3000),
    "one query and one key times 10,000": _loud_token,
    "all times a millionth": _tiny,
}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(name: str, queries: int, keys: int, channels: int, heads: int = 4) -> Three:
    """The inputs of this name, rounded to BF16 and in float32."""
    shapes = [(1, tokens, heads, channels) for tokens in (queries, keys, keys)]
    plain = [torch.randn(shape, generator=_generator(i)) for i, shape in enumerate(shapes)]
    q, k, v = INPUTS[name](*plain)
    return q.bfloat16().float(), k.bfloat16().float(), v.bfloat16().float()


def planted(
    shape: tuple[int, int, int, int],
    share: float,
    keys: int | None = None,
    apart: float = 30.0,
    own: bool = True,
) -> tuple[Three, Tensor]:
    """Inputs whose attention lies in a known share of the blocks, and which blocks these are.

    shape: of the queries, (batch, tokens, heads, channels). Blocks are those that sparse attention
    leaves out, (query blocks, key blocks), the same in every head and video. The first of a row is
    always among them, or what comes before the first would be computed too. apart: by how much the
    scores of the others lie below. own: whether queries have blocks of their own, or all the same.

    The first half of the channels says which blocks belong together: a key has there +1 or -1 by
    its block, and a query asks for one channel. The other half is noise.
    """
    batch, queries, heads, channels = shape
    keys, half = keys or queries, channels // 2
    tile = fp8_attention.SHAPES[channels].tile
    query_blocks, key_blocks = -(-queries // fp8_attention.QUERIES), -(-keys // tile)
    signs = torch.where(torch.rand(key_blocks, half, generator=_generator(7)) < share, 1.0, -1.0)
    signs[0] = 1
    asked = torch.arange(query_blocks) % (half if own else 1)
    q = torch.randn(shape, generator=_generator(8))
    k, v = (torch.randn(batch, keys, heads, channels, generator=_generator(i)) for i in (9, 10))
    q[..., :half], k[..., :half] = 0, signs.repeat_interleave(tile, 0)[:keys, None]
    rows = torch.arange(queries)
    q[:, rows, :, asked[rows // fp8_attention.QUERIES]] = apart * channels**0.5 / 2
    return (q, k, v), signs.T[asked] > 0


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first queries' attention in FP64."""
    q, k, v = (x.double().transpose(1, 2) for x in (q[:, :CHECKED], k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).transpose(1, 2)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first queries' attention of inputs and weights in FP8, with true exponentials."""
    q, k, v = _e4m3(q)[:, :CHECKED], _e4m3(k - k.mean(1, keepdim=True)), _e4m3(v)
    scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / q.shape[-1] ** 0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * 256
    weights = weights.to(torch.float8_e4m3fn).float()
    out = weights @ v.transpose(1, 2) / weights.sum(-1, keepdim=True)
    return out.transpose(1, 2)


def _e4m3(x: Tensor) -> Tensor:
    scale = x.abs().amax((1, 3), keepdim=True).clamp_min(1e-20) / 448
    return (x / scale).to(torch.float8_e4m3fn).float() * scale


def measured(name: str, queries: int, keys: int, channels: int, device: str) -> dict[str, object]:
    """One row of the table: relative errors, and how many results are not finite."""
    q, k, v = (x.to(device) for x in made(name, queries, keys, channels))
    true = exact(q, k, v)

    def error(found: Tensor) -> float:
        return float((found[:, :CHECKED].double() - true).norm() / true.norm())

    half = [x.bfloat16() for x in (q, k, v)]
    attend = fp8_attention.attend if device == "cuda" else fp8_attention.emulated
    ours = attend(*half)
    again = attend(*half)
    turned = [x.transpose(1, 2) for x in half]
    torchs = functional.scaled_dot_product_attention(turned[0], turned[1], turned[2])
    return {
        "input": name,
        "channels": channels,
        "queries": queries,
        "keys": keys,
        "fp8": error(ours),
        "plain_fp8": error(plain(q, k, v)),
        "bf16": error(torchs.transpose(1, 2)),
        "not_finite": int((~ours.isfinite()).sum()),
        "repeats": torch.equal(ours, again),
    }


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Markdown, from the JSON file's rows."""
    lines = [
        (
            str(row["channels"]),
            str(row["input"]),
            *(f"{row[name]:.2g}" for name in ("fp8", "plain_fp8", "bf16")),
            str(row["not_finite"]),
        )
        for row in rows
    ]
    return tables.grid(
        ("channels", "inputs", "`fp8`", "plain FP8", "BF16", "NaN or infinite"), lines
    )


def lengths_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Markdown, from the JSON file's lengths: random inputs."""
    lines = [
        (
            f"{row['queries']:,}",
            str(row["channels"]),
            f"{row['fp8']:.2g}",
            f"{row['plain_fp8']:.2g}",
            "yes" if row["repeats"] else "no",
        )
        for row in rows
    ]
    return tables.grid(("tokens", "channels", "`fp8`", "plain FP8", "repeats to the bit"), lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--tokens", type=int, default=2222)
    parser.add_argument("--keys", type=int, help="where there are not as many as queries")
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    args = parser.parse_args()
    keys = args.keys or args.tokens
    rows = [
        measured(name, args.tokens, keys, channels, args.device)
        for channels in args.channels
        for name in INPUTS
    ]
    lengths = [
        measured("random", tokens, tokens, channels, args.device)
        for channels in args.channels
        for tokens in args.lengths
    ]
    print(table(rows), lengths_table(lengths), sep="\n\n")
    if args.out:
        bench.write(args.out, args.device, rows=rows, lengths=lengths)


if __name__ == "__main__":
    main()
