"""The published matrices, part by part, within a time limit; what is complete is not run again.

    python -m scripts.matrix PART [--out FOLDER] [--limit 540] [--only RECIPE...] [--shard 1/2]
        [--device cuda] [--set FIELD=VALUE] [--no-floors] [--dry]

Parts are below. After `--limit` seconds the sweep is stopped as Ctrl-C does: the run under way
leaves an `interrupted` record, finished ones stay, and the same command goes on where it stopped.
Recipes stand in the order of interest. `python -m scripts.publish` makes of the runs what
results/published/ holds. `--shard` takes every n-th recipe, for a part whose latency nobody reads:
start as many as pay (CUDA_VISIBLE_DEVICES says on which GPU), each into a FOLDER of its own, for in
one they would wait for each other's reference; then publish all. Noise floors that a part does not
name are measured by its first shard.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"
RANDOM = ("weights=random", "reference=bf16")
FULL = ("model=cogvideox-2b", *RANDOM)
# Several runs share a GPU, so no latency is to be read.
BUNDLED = (
    "measure.timing=false", "measure.repeats=2", "measure.profile=false", "quality.batch=64",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """Recipes, most wanted first, and the overrides that they share."""

    about: str
    settings: tuple[str, ...]
    recipes: tuple[str, ...]
    then: str = ""  # a part that is run after it
    beside: bool = False  # that part is comparable, and goes into the same folder


INTERLEAVED = (
    "measure.unit=step", "measure.interleave=true", "measure.repeats=10", "measure.warmup=2",
    "measure.timeout_s=200",
)  # fmt: skip
STEP = (*FULL, *INTERLEAVED)
# Trajectories to calibrate on are of 4 steps; the compiler's warm first call is not asked for.
CALIBRATED_STEP = (
    *STEP, "measure.timeout_s=500", "measure.warm_start=false", "measure.repeats=8",
    "generation.steps=4",
)  # fmt: skip
VIDEO = (*FULL, "measure.repeats=1", "measure.warmup=0", "measure.profile=false")
CALIBRATED = (
    "fp32", "bf16", "calibrated/plain-int8-dynamic", "calibrated/smoothquant-int8",
    "calibrated/smoothquant-int8-static", "calibrated/plain-int4", "calibrated/awq-int4",
    "calibrated/gptq-int4", "calibrated/awq-gptq-int4", "calibrated/svdquant-int4",
    "calibrated/svdquant-int4-rank-8", "calibrated/packed-int4", "fast", "calibrated/fast-gptq",
    "fp8-dynamic", "fp8-tensor", "calibrated/gptq-fp8", "calibrated/smoothquant-fp8",
    "calibrated/smoothquant-fp8-tensor", "int8", "calibrated/awq-int8", "calibrated/gptq-int8",
    "calibrated/vidit-q-int8",
)  # fmt: skip
# Quality alone: compiled, the videos are the same but for rounding, and each run 20 s longer.
CALIBRATED_QUALITY = (
    *BUNDLED, "prompts.count=256", "quality.batch=128", "variant.compile=null",
)  # fmt: skip
# A batch of 16 decodes in 12 GiB at the longest, so that several programs share a GPU.
LENGTH = (*BUNDLED, "prompts.count=256", "quality.batch=16", "measure.warm_start=false")
ATTENTION = (
    "fp32", "bf16", "attention/fp8", "fast", "exact", "fp8-dynamic", "floor/kernel", "floor/seed",
)  # fmt: skip


def _sized(frames: int, side: int) -> tuple[str, ...]:
    return (
        f"generation.frames={frames}", f"generation.height={side}", f"generation.width={side}",
    )  # fmt: skip


# Caches at equal numbers of computed steps, in FP32: rounding to BF16 is larger than their errors.
PEER_CACHES = (
    "fp32", "peers/taylorseer-20", "peers/mag-20", "peers/sea-20", "peers/first-block-20",
    "peers/dbcache-20", "peers/dbcache-taylor-20", "peers/steps-20", "peers/taylorseer-25",
    "peers/mag-25", "peers/sea-25", "peers/first-block-25", "peers/dbcache-25",
    "peers/dbcache-taylor-25", "cache/half-steps", "peers/taylorseer-16",
    "peers/taylorseer-16-order-2", "peers/mag-16", "peers/sea-16", "peers/first-block-16",
    "peers/dbcache-taylor-16", "cache/pab", "cache/faster", "peers/taylorseer-authors",
    "peers/mag-authors", "peers/sea-authors", "peers/first-block-authors",
    "peers/dbcache-authors", "peers/faster-authors", "peers/steps-16", "cache/four-fifths-steps",
)  # fmt: skip
FAST_CACHED = (
    "fast-cached", "cache/fast-cached-4", "peers/fast-cached-order-2", "peers/fast-cached-mag",
    "peers/fast-cached-sea", "peers/fast-cached-dbcache",
)  # fmt: skip
PARTS = {
    "calibrated": Part(
        "quality of calibrated schemes beside plain ones: the bundled model, then its outlier form",
        CALIBRATED_QUALITY,
        CALIBRATED,
        then="calibrated-outliers",
    ),
    "calibrated-outliers": Part(
        "the same on the bundled model with outlier channels",
        (*CALIBRATED_QUALITY, "outliers.factor=100"),
        CALIBRATED,
        then="calibrated-outliers-1000",
    ),
    "calibrated-outliers-1000": Part(
        "FP8 on outliers of a thousand, the least at which one scale a tensor loses by them",
        (*CALIBRATED_QUALITY, "outliers.factor=1000"),
        (
            "fp32", "fp8-tensor", "calibrated/smoothquant-fp8-tensor", "fp8-dynamic",
            "calibrated/smoothquant-fp8", "calibrated/gptq-fp8",
        ),
    ),
    "zeroscope-quality": Part(
        "quality of plain schemes on tiny-zeroscope, a UNet, 256 videos; read no latency from it",
        ("model=tiny-zeroscope", *CALIBRATED_QUALITY),
        (
            "fp32", "bf16", "int8", "int8-dynamic", "fp8", "fp8-dynamic", "int8-quanto", "fp16",
            "ladder/int4", "ladder/int8-quanto-conv", "ladder/int4-quanto-conv", "fp8-tensor",
            "ladder/int4-quanto", "floor/kernel", "ladder/fp8-quanto", "ladder/fp8-quanto-conv",
            "ladder/int2", "floor/seed", "cache/half-steps", "fast",
        ),
        then="calibrated-zeroscope",
        beside=True,
    ),
    "calibrated-zeroscope": Part(
        "the same of calibrated schemes, in the folder of the plain ones",
        ("model=tiny-zeroscope", *CALIBRATED_QUALITY),
        ("fp32", *(name for name in CALIBRATED if name.startswith("calibrated/"))),
    ),
    "calibrated-steps": Part(
        "one denoise step of CogVideoX-2B with calibrated schemes, first what they stand beside",
        CALIBRATED_STEP,
        ("bf16", "fast", "fp8-dynamic", "calibrated/plain-int8-dynamic", "calibrated/plain-int4"),
        then="calibrated-steps-fitted",
        beside=True,
    ),
    "calibrated-steps-fitted": Part(
        "the calibrated ones, calibrated on next to nothing",
        (
            *CALIBRATED_STEP, "variant.quantize.calibration.prompts=1",
            "variant.quantize.calibration.steps=2", "variant.quantize.calibration.samples=256",
        ),
        (
            "calibrated/smoothquant-int8", "calibrated/svdquant-int4", "calibrated/fast-gptq",
            "calibrated/awq-int4", "calibrated/smoothquant-int8-static",
            "calibrated/smoothquant-fp8", "calibrated/gptq-fp8", "calibrated/gptq-int8",
            "calibrated/awq-int8",
        ),
    ),
    "calibrated-cost": Part(
        "time and memory of calibrating CogVideoX-2B as the recipes say, within 15 minutes each",
        (*STEP, "measure.timeout_s=1800", "measure.interleave=false", "measure.warm_start=false"),
        ("calibrated/smoothquant-int8", "calibrated/fast-gptq", "calibrated/svdquant-int4"),
    ),
    "steps": Part(
        "one denoise step of CogVideoX-2B, interleaved with BF16; full size, one GPU",
        STEP,
        (
            "bf16", "fast", "fp8-dynamic", "attention/flash-3-fp8", "attention/flash-3-compile",
            "attention/fp8", "attention/flash-3", "attention/sage", "compile", "fp8-tensor",
            "int8-dynamic", "compile/compile-model", "fp16", "fp8", "int8", "attention/cudnn",
            "attention/flash", "attention/efficient", "attention/xformers", "ladder/int4",
            "int8-quanto", "ladder/fp8-quanto", "ladder/int4-quanto", "attention/math", "fp32",
        ),
    ),
    "kernels": Part(
        "attention kernels whose packages are large, beside ours; a sitting of their own",
        STEP,
        ("bf16", "attention/flash-4", "attention/xformers", "attention/flash-3", "fast"),
    ),
    "peers": Part(
        "quality of every cache at 50 steps on the bundled model, in FP32; read no latency from it",
        (
            "measure.timing=false", "measure.repeats=1", "measure.warmup=0",
            "measure.profile=false", "quality.batch=16", "quality.trajectories=0",
            "generation.steps=50", "variant.dtype=fp32",
        ),
        PEER_CACHES,
    ),
    "peers-videos": Part(
        "the same caches at full size, whole videos of CogVideoX-2B",
        VIDEO,
        ("bf16", *FAST_CACHED, "fast", *PEER_CACHES[1:]),
    ),
    "peers-fast-cached": Part(
        "what fast-cached may become: quality on the bundled model at 50 steps, 256 videos",
        (*CALIBRATED_QUALITY, "generation.steps=50"),
        ("fp32", "bf16", "fast", *FAST_CACHED),
    ),
    "peers-steps": Part(
        "others' recipes beside ours; their first call takes minutes, so run nothing beside it",
        (*STEP, "measure.timeout_s=3000"),
        ("bf16", "fast", "peers/diffusers-torchao", "peers/diffusers"),
    ),
    "videos": Part(
        "whole videos of 50 steps and the decode, one after the first call",
        VIDEO,
        (
            "bf16", "fast", "fast-cached", "exact", "offload/fused", "fp8-dynamic",
            "cache/half-steps", "int8-dynamic", "int8", "offload/strips", "offload/tiling",
            "offload/fast-tiling", "attention/flash-3-compile", "cache/fast-cached-4",
            "cache/fast-cached-2",
        ),
    ),
    "caches": Part(
        "every cache at full size, and its honest control: whole videos",
        VIDEO,
        (
            "bf16", "cache/taylorseer", "cache/first-block", "cache/pab", "cache/faster",
            "cache/half-steps", "fast-cached",
        ),
    ),
    "memory": Part(
        "the peaks of every stage, with and without what lowers them",
        (*VIDEO, "generation.steps=4"),
        (
            "bf16", "offload/tiling", "offload/model", "offload/group", "offload/sequential",
            "offload/expandable", "fast", "offload/fast-tiling", "offload/fast-group",
            "fp8-dynamic", "offload/fp8-tiling", "int8", "offload/int8-tiling", "offload/strips",
            "offload/fp8-strips", "offload/fused",
        ),
    ),
    "cards": Part(
        "does it fit? With --set measure.memory_limit_gib=8, for a card of 8 GiB",
        (*VIDEO, "generation.steps=2"),
        (
            "bf16", "offload/expandable", "fast", "offload/tiling", "offload/fast-tiling",
            "offload/fp8-tiling", "offload/int8-tiling", "offload/model", "offload/group",
            "offload/fast-group", "offload/sequential", "offload/strips", "offload/fp8-strips",
            "offload/fused",
        ),
    ),
    "large": Part(
        "one denoise step of CogVideoX-5B, whose published figures are of an H100",
        ("model=cogvideox-5b", *RANDOM, *INTERLEAVED),
        ("bf16", "fast", "fp8-dynamic", "compile", "attention/flash-3-compile", "int8-dynamic"),
    ),
    "largest": Part(
        "one denoise step of CogVideoX1.5-5B at 81x768x1360",
        ("model=cogvideox1.5-5b", *RANDOM, *INTERLEAVED, "measure.warmup=1"),
        ("bf16", "fast", "fp8-dynamic"),
    ),
    "zeroscope": Part(
        "one denoise step of Zeroscope v2 XL, a UNet, at 24x576x1024",
        ("model=zeroscope-v2-xl", *RANDOM, *INTERLEAVED),
        (
            "bf16", "fast", "compile", "fp8-dynamic", "int8-dynamic", "fp16", "int8", "fp8",
            "int8-quanto",
        ),
    ),
    "wan": Part(
        "one denoise step of Wan 2.1 1.3B, two calls of its denoiser, at 81x480x832",
        ("model=wan2.1-1.3b", *RANDOM, *INTERLEAVED),
        (
            "bf16", "fast", "attention/fast-flash-3", "fp8-dynamic", "attention/flash-3-compile",
            "compile",
        ),
    ),
    "wan-14b": Part(
        "one denoise step of Wan 2.1 14B at 81x480x832; few, for one in BF16 takes seven seconds",
        (
            "model=wan2.1-14b", *RANDOM, *INTERLEAVED, "measure.repeats=3", "measure.warmup=1",
            "measure.timeout_s=600",
        ),
        ("bf16", "fast"),
    ),
    "quality": Part(
        "quality on the bundled model, 256 videos; read no latency from it",
        (*BUNDLED, "prompts.count=256"),
        (
            "fp32", "peers/diffusers-torchao", "floor/seed", "floor/kernel", "floor/compiled",
            "bf16", "fast", "exact", "offload/fused", "fp8-dynamic",
            "int8-dynamic", "attention/fp8", "fast-cached", "cache/fast-cached-2",
            "cache/fast-cached-4", "compile", "cache/taylorseer", "cache/pab", "cache/faster",
            "cache/first-block", "cache/half-steps", "fp16", "int8",
            "fp8", "fp8-tensor", "ladder/int4", "ladder/int2", "attention/sage",
            "attention/cudnn", "attention/flash", "attention/efficient", "attention/math",
            "int8-quanto", "ladder/fp8-quanto", "ladder/int4-quanto", "compile/compile-model",
            "attention/flash-3", "attention/flash-3-compile", "attention/flash-3-fp8",
            "attention/xformers", "attention/flash-4",
        ),
    ),
    "quality-2048": Part(
        "the protocol's number of videos, the reference and the main variants",
        (
            *BUNDLED, "prompts.set=world-2048-v1", "prompts.count=2048", "quality.batch=256",
            "quality.fvd.network=i3d",
        ),
        (
            "fp32", "floor/seed", "floor/kernel", "fast", "fp8-dynamic", "bf16", "fast-cached",
            "int8-dynamic", "fp16", "int8", "ladder/int4", "floor/compiled",
        ),
    ),
    "length": Part(
        "quality at 49x256x256, 3,352 tokens, 256 videos of the bundled model; then shorter ones",
        (*LENGTH, *_sized(49, 256)),
        (
            *ATTENTION, "fast-cached", "offload/fused", "offload/tiling-128", "offload/tiling",
            "cache/half-steps", "int8-dynamic", "fp16", "int8", "offload/strips", "compile",
            "attention/flash-3", "attention/flash-3-fp8", "attention/cudnn", "fp8", "ladder/int4",
        ),
        then="length-49x192",
    ),
    "length-49x192": Part(
        "attention in FP8 against length: 1,896 tokens", (*LENGTH, *_sized(49, 192)), ATTENTION,
        then="length-33x128",
    ),
    "length-33x128": Part(
        "attention in FP8 against length: 600 tokens", (*LENGTH, *_sized(33, 128)), ATTENTION,
        then="length-17x64",
    ),
    "length-17x64": Part(
        "attention in FP8 against length: 104 tokens", (*LENGTH, *_sized(17, 64)), ATTENTION,
    ),
    "length-caches": Part(
        "every cache at 50 steps and 49x256x256, against BF16, with their honest control",
        (*LENGTH, *_sized(49, 256), "generation.steps=50", "reference=bf16"),
        (
            "bf16", "cache/taylorseer", "cache/first-block", "cache/pab", "cache/faster",
            "cache/half-steps", "fast", "fast-cached", "cache/fast-cached-2", "cache/fast-cached-4",
            "peers/fast-cached-sea", "peers/fast-cached-sea-0.2", "peers/fast-cached-sea-0.5",
            "peers/fast-cached-mag", "peers/fast-cached-order-2", "peers/fast-cached-dbcache",
            "floor/kernel",
        ),
    ),
    "sparse": Part(
        "quality against density of sparse attention at 49x256x256, beside fewer steps and caches "
        "that save as much; other sizes by --set generation.height=, .width= and .frames=",
        (*LENGTH, *_sized(49, 256)),
        (
            "fp32", "bf16", "attention/fp8", "attention/sparse-0.01", "attention/sparse-0.1",
            "attention/sparse-0.001", "attention/sparse-0.1-dense-first", "attention/sparse-0.0001",
            "cache/four-fifths-steps", "cache/first-block", "cache/taylorseer", "cache/half-steps",
        ),
    ),
    "sparse-reference": Part(
        "the same by the reference implementation, on any device; slow, so at 17x64x64, whose 104 "
        "tokens are one block of keys and say nothing of what is left out",
        (*LENGTH, *_sized(17, 64), "prompts.count=12"),
        (
            "fp32", "bf16", "attention/fp8-reference", "attention/sparse-reference",
            "cache/four-fifths-steps", "cache/first-block",
        ),
    ),
    "faults": Part(
        "planted faults and their controls: does each get the verdict that it deserves?",
        ("measure.repeats=2", "measure.profile=false", "prompts.count=128", "quality.batch=16"),
        ("floor", "faults"),
    ),
}  # fmt: skip


def command(
    part: Part,
    out: Path,
    device: str,
    recipes: Sequence[str],
    more: Sequence[str],
    floors: bool = True,
) -> list[str]:
    settings = [f"--set={setting}" for setting in [*part.settings, *more]]
    named = [RECIPES / name for name in recipes]
    files = [path.with_name(f"{path.name}.yaml") for path in named]
    paths = [str(a if a.is_file() else b) for a, b in zip(files, named, strict=True)]
    words = [f"--out={out}", f"--device={device}", "--quiet", *([] if floors else ["--no-floors"])]
    return [sys.executable, "-m", "qbench", "run", *paths, *settings, *words]


def chosen(part: Part, only: Sequence[str], shard: tuple[int, int]) -> list[str]:
    """The recipes of a part that are asked for, the first one in every shard."""
    recipes = [name for name in part.recipes if not only or name in only]
    if shard == (1, 1):
        return recipes
    return [*recipes[:1], *recipes[1:][shard[0] - 1 :: shard[1]]]


def _shard(text: str) -> tuple[int, int]:
    one, _, of = text.partition("/")
    if not (one.isdigit() and of.isdigit() and 1 <= int(one) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard such as 1/2")
    return int(one), int(of)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=float, default=0.0, help="seconds; 0 is none")
    parser.add_argument("--only", nargs="+", default=[], metavar="RECIPE", help="of the part's")
    parser.add_argument("--shard", type=_shard, default=(1, 1), help="such as 1/2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[], help="besides the part's own")
    parser.add_argument("--no-floors", action="store_true", help="measure no floors besides")
    parser.add_argument("--dry", action="store_true", help="only print the command")
    args = parser.parse_args()
    # Shells have what runs in the background ignore it, and programs inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began, code, name = time.monotonic(), 0, args.part
    out = top = args.out or Path("results/runs") / args.part
    while name:
        part = PARTS[name]
        if recipes := chosen(part, args.only, args.shard):
            floors = args.shard[0] == 1 and not args.no_floors
            words = command(part, out, args.device, recipes, args.set, floors)
            if args.dry:
                print(" ".join(words))
            else:
                left = args.limit - (time.monotonic() - began) if args.limit else None
                code = max(code, _swept(words, left))
        name = part.then
        out = out if part.beside else top / name
    raise SystemExit(code)


def _swept(words: list[str], limit: float | None) -> int:
    """The exit code of the command, which is interrupted after so many seconds."""
    if limit is not None and limit <= 0:
        return 130
    process = subprocess.Popen(words)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        return process.wait()


if __name__ == "__main__":
    main()
