"""What ranks do with tiny pipelines: run in a process each, for the tests in test_parallel."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from pipelines import tiny

from qbench.optimizations import axes
from qbench.optimizations.caching import magnitudes
from qbench.optimizations.calibration import Occasion
from qbench.optimizations.kernels import fp8_attention
from qbench.optimizations.parallel import groups, partials, rows, tokens
from qbench.optimizations.vae import patch
from qbench.pipelines import specs
from qbench.recipe.schema import Decode, Parallel, Variant

STEPS = 10
FAMILIES = {
    "cogvideox": ({"cfg": 2}, {"ulysses": 2}, {"ring": 2}),
    "cogvideox-rotary": ({"ulysses": 2}, {"ring": 2}),
    "cogvideox-1.5": ({"ulysses": 2},),
    "wan": ({"cfg": 2}, {"ulysses": 2}, {"ring": 2}),
    "unet": ({"cfg": 2},),
}
CACHES = (
    ({"kind": "first_block", "threshold": 0.7}, {"cfg": 2}),
    ({"kind": "first_block", "threshold": 0.7}, {"ulysses": 2}),
    ({"kind": "mag", "threshold": 0.1, "ratios": [0.95] * STEPS}, {"ulysses": 2}),
    ({"kind": "taylorseer", "interval": 2}, {"cfg": 2}),
    ({"kind": "taylorseer", "interval": 2}, {"ring": 2}),
    ({"kind": "pab", "interval": 2}, {"ulysses": 2}),
    ({"kind": "faster", "interval": 2}, {"ulysses": 2}),
)
# Videos, heads, channels and pieces: uneven pieces, more than there are, rows of odd bytes.
SHAPES = ((1, 6, 16, 2), (1, 2, 16, 2), (3, 4, 16, 2), (2, 6, 8, 4), (1, 4, 3, 3), (2, 2, 16, 1))
WAYS: dict[str, dict[str, bool]] = {
    "plain": {}, "split norms": {"split_norms": True}, "strips": {"strips": True},
    "fused": {"fused": True},
}  # fmt: skip


def work(rank: int, meeting: str, world: int, results: Connection) -> None:
    """Join the other ranks, do what is below, and send what came of it by name."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    pair = (families, caches, calibrated, fast, decodes, attention, waits, other_weights)
    found: dict[str, Any] = {}
    try:
        for check in pair if world == 2 else (seen_by_each,):
            found |= check(rank)
    except Exception:
        found["failed"] = traceback.format_exc()
    results.send(found)
    dist.destroy_process_group()


def _pipeline(name: str) -> Any:
    return tiny.build(name, Path(tempfile.mkdtemp(prefix="tiny-")))


def families(_: int) -> dict[str, Any]:
    """By family and split: the largest difference from one process, and whether undo undoes."""
    found = {}
    for name, splits in FAMILIES.items():
        video = _pipeline(name)
        # 9 frames of 32x48 and 24 of text come to 42 tokens; of 32x80 to 54; Wan's have no text.
        run = tiny.settings(video, width=80) if name == "cogvideox-rotary" else tiny.settings(video)
        plain = tiny.denoised(video, run, [0, 1])
        for split in splits:
            variant = Variant.model_validate({"parallel": split})
            applied = axes.apply(video, variant, "cpu", run.steps)
            shared = tiny.denoised(video, run, [0, 1])
            applied.undo()
            again = tiny.denoised(video, run, [0, 1])
            error = (shared - plain).abs().max().item() / plain.std().item()
            found[f"{name} {split}"] = (error, torch.equal(again, plain))
    return found


def caches(_: int) -> dict[str, Any]:
    """By cache and split: blocks computed on one process and on two, and the difference."""
    found = {}
    video = _pipeline("cogvideox")
    run = tiny.settings(video, steps=STEPS)
    computed = [0]
    last = video.denoiser.transformer_blocks[-1].attn1.to_out[0]
    last.register_forward_hook(lambda *_: computed.__setitem__(0, computed[0] + 1))

    def made(fields: dict[str, Any]) -> tuple[int, torch.Tensor]:
        applied = axes.apply(video, Variant.model_validate(fields), "cpu", run.steps)
        computed[0] = 0
        latents = tiny.denoised(video, run, [0])
        applied.undo()
        return computed[0], latents

    for cache, split in CACHES:
        one, plain = made({"cache": cache})
        two, shared = made({"cache": cache, "parallel": split})
        error = (shared - plain).abs().max().item() / plain.std().item()
        found[f"{cache['kind']} {split}"] = (one, two, error)
    return found


def calibrated(rank: int) -> dict[str, Any]:
    """MagCache's ratios in effect, where each rank's own lie further apart than they ever do."""
    video = _pipeline("cogvideox")
    run = tiny.settings(video, steps=STEPS)
    fields = {"cache": {"kind": "mag", "threshold": 0.5, "prompts": 1}, "parallel": {"ring": 2}}
    plain = magnitudes.ratios
    magnitudes.ratios = lambda *given: [x + 0.2 * rank for x in plain(*given)]
    try:
        occasion = Occasion(run, specs.find("tiny-cogvideox"), ())
        applied = axes.apply(video, Variant.model_validate(fields), "cpu", STEPS, occasion)
    finally:
        magnitudes.ratios = plain
    latents = tiny.denoised(video, run, [0])
    applied.undo()
    assert applied.cached is not None
    alone = plain(video, occasion, 1)
    return {"calibrated": (applied.cached.ratios, alone, latents.sum().item())}


def fast(_: int) -> dict[str, Any]:
    """FP8 linears of qbench's own with fused projections, on one process and on two."""
    fields = {
        "dtype": "bf16", "fuse_qkv": True, "step_share": 0.5,
        "quantize": {"backend": "qbench", "scheme": "fp8_dynamic_row", "exclude": ["proj_out"]},
    }  # fmt: skip
    latents = []
    for more in ({}, {"parallel": {"ulysses": 2}}):
        scratch = Path(tempfile.mkdtemp(prefix="tiny-"))
        video = tiny.build("cogvideox", scratch, torch.bfloat16)
        run = tiny.settings(video)
        axes.apply(video, Variant.model_validate(fields | more), "cpu", run.steps)
        latents.append(tiny.denoised(video, run, [0]).float())
    one, two = latents
    return {"fast": (two - one).square().mean().sqrt().item() / one.std().item()}


def decodes(_: int) -> dict[str, Any]:
    """By way and rows of latents, which two ranks may not share evenly: the largest difference."""
    ranks = groups.Ranks(Parallel(ring=2), "cpu")
    vae = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu").pipe.vae.float()
    latents = torch.randn(1, 16, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = {}

    def decoded(way: dict[str, bool], shared: rows.Rows | None) -> torch.Tensor:
        changes = patch.apply(SimpleNamespace(vae=vae), Decode(**way), shared)
        with torch.no_grad():
            video: torch.Tensor = vae.decode(latents).sample
        changes.undo()
        return video

    plain = decoded({}, None)
    for name, way in WAYS.items():
        one = decoded(way, None)
        two = decoded(way, rows.Rows(ranks.everyone))
        found[f"decode {name}"] = (two - one).abs().max().item()
    found["decode undone"] = torch.equal(decoded({}, None), plain)
    return found


def attention(rank: int) -> dict[str, Any]:
    """The difference of attention over uneven shares from that in FP64, by kernel or shape."""
    ranks = groups.Ranks(Parallel(ring=2), "cpu")
    generator = torch.Generator().manual_seed(0)
    whole = [3 * torch.randn(2, 13, 3, 16, generator=generator) for _ in range(3)]
    exact = partials.plain(*(x.double() for x in whole)).split([9, 4], 1)[rank]
    mine = [x.split([9, 4], 1)[rank] for x in whole]
    found = {}
    for kernel in ("auto", "math", "flash"):
        over = tokens.Attention(ranks)
        out = over.around(partials.plain, partials.with_lse(kernel))(*mine)
        found[f"ring {kernel}"] = (out - exact).abs().max().item()
    ranks = groups.Ranks(Parallel(ulysses=2), "cpu")
    for shape in SHAPES:
        videos, heads, channels, pieces = shape
        over = tokens.Attention(ranks, pieces).around(_each_head, None)
        made = []
        for _ in range(3):  # layers, whose messages travel in the same memory
            # As one tensor's parts, as a linear gives them that makes all three.
            qkv = torch.randn(videos, 13, 3, heads, channels, generator=generator).unbind(2)
            one = _each_head(*qkv).split([9, 4], 1)[rank]
            made.append((over(*(x.split([9, 4], 1)[rank] for x in qkv)), one))
        found[f"ulysses {shape}"] = all(torch.equal(*both) for both in made)
    return found | in_order(rank, ranks)


def in_order(rank: int, ranks: groups.Ranks) -> dict[str, Any]:
    """Whether text and video, each shared, are attended to by tiles as they lie on one process."""
    generator = torch.Generator().manual_seed(1)
    text = 20 * torch.randn(2, 29, 3, 2, 64, generator=generator)  # decides its tile's scale
    video = torch.randn(2, 181, 3, 2, 64, generator=generator)

    def share(text: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        return torch.cat([text.split([15, 14], 1)[rank], video.split([120, 61], 1)[rank]], 1)

    one = fp8_attention.reference(*torch.cat([text, video], 1).bfloat16().unbind(2))
    expected = share(one[:, :29], one[:, 29:])
    found = {}
    for told in (29, 0):
        over = tokens.Attention(ranks)
        over.begin(((told,),), told)
        attend = over.around(fp8_attention.reference, None)
        made = attend(*share(text, video).bfloat16().unbind(2))
        found[f"ulysses, {told} of text"] = torch.equal(made, expected)
    return found


def seen_by_each(rank: int) -> dict[str, Any]:
    """What the kernel of each of three or four ranks was given, beside what it should have been.

    Three share tokens by Ulysses. Four are two rows of two: between rows keys go round the ring.
    """
    world = dist.get_world_size()
    across = {3: 3, 4: 2}[world]
    ranks = groups.Ranks(Parallel(ulysses=across, ring=world // across), "cpu")
    generator = torch.Generator().manual_seed(2)
    text, video = (torch.randn(1, n, 3, 6, 8, generator=generator) for n in (11, 29))
    # Text as evenly as can be, as `Attention` takes it to be; a video's rows need not be even.
    texts, videos = ([4, 4, 3], [12, 9, 8]) if world == 3 else ([3, 3, 3, 2], [9, 8, 8, 4])

    def shared(text: torch.Tensor, video: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        return list(zip(text.split(texts, 1), video.split(videos, 1), strict=True))

    shares = shared(text, video)
    seen: list[torch.Tensor] = []

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        seen.append(torch.stack([k, v], 2))
        return partials.plain(q, k, v)

    def partial(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(torch.stack([k, v], 2))
        return with_lse(q, k, v)

    with_lse = partials.with_lse("math")
    over = tokens.Attention(ranks, 1)
    over.begin(((11,),), 11)
    made = over.around(kernel, partial)(*torch.cat(shares[rank], 1).unbind(2))
    whole = partials.plain(*torch.cat([text, video], 1).unbind(2))
    mine = torch.cat(shared(whole[:, :11], whole[:, 11:])[rank], 1)
    heads = slice(6 // across * ranks.ulysses.index, 6 // across * (ranks.ulysses.index + 1))
    rows = [shares[i : i + across] for i in range(0, world, across)]
    turns = [rows[(ranks.ring.index - turn) % len(rows)] for turn in range(len(rows))]
    expected = [torch.cat([x for part in zip(*row, strict=True) for x in part], 1) for row in turns]
    same = [
        torch.equal(one, all_heads[:, :, 1:, heads])
        for one, all_heads in zip(seen, expected, strict=True)
    ]
    return {"order": all(same), "error": (made - mine).abs().max().item()}


def _each_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention whose result for a head does not depend, to the bit, on what else is computed."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for video in range(q.shape[0]):
        for head in range(q.shape[2]):
            one = (x[video : video + 1, :, head : head + 1].contiguous() for x in (q, k, v))
            out[video, :, head] = partials.plain(*one)[0, :, 0]
    return out


def waits(rank: int) -> dict[str, Any]:
    """Seconds in exchanges of a rank that the other, which is slow, keeps waiting."""
    import time

    ranks = groups.Ranks(Parallel(cfg=2), "cpu")
    ranks.cfg.gather(torch.zeros(1))
    ranks.traffic.seconds()
    if rank == 1:
        time.sleep(0.5)
    ranks.cfg.gather(torch.zeros(1))
    return {"waited": ranks.traffic.seconds(), "begun": ranks.traffic.begun}


def other_weights(rank: int) -> dict[str, Any]:
    """What is raised where one rank has other weights than the other."""
    video = _pipeline("cogvideox")
    if rank == 1:
        next(video.denoiser.parameters()).data.view(-1)[0] += 1
    return {"other weights": raised(lambda: _parallel(video, {"cfg": 2}))}


def _parallel(video: Any, split: dict[str, int]) -> None:
    axes.apply(video, Variant.model_validate({"parallel": split}), "cpu", 3)


def raised(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
