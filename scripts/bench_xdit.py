"""A denoise step of CogVideoX-2B by xDiT's `xfuser`, by diffusers and by qbench, on two GPUs.

    python -m scripts.bench_xdit --out results/published/MACHINE/xdit.json
        [--frames 49 --height 480 --width 720] [--steps 8 --warmup 2] [--only ROW ...]
        [--limit SECONDS] [--row-limit SECONDS] [--attention NAME] [--set FIELD=VALUE]

Each row has processes of its own, one a GPU, and runs the pipeline's whole loop on the weights,
embeddings and noise that `qbench run --set weights=random` has, in BF16. A step's seconds are those
of the slowest rank, from one step's end to the next, with the device idle at both. xfuser runs by
its own pipeline class, wrapped as its example wraps it; with `-compile` it is its own
`use_torch_compile`, for diffusers the same call of torch.compile, for qbench its compiled blocks.
xfuser chooses its own kernel of attention unless --attention names one; where it splits guidance
alone, or has one GPU, diffusers' processors stay, and so does torch's choice of a kernel.

The first row is the reference: how far the denoiser's output of one step, and the latents that come
of it, are from its own is in every other row, relative, of the root mean square. For this step,
which is not timed, attention is made to matter: random weights would hide one that is wrong. A row
that fails, or takes longer than --row-limit, is a line with the reason.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from qbench import textfile
from qbench.errors import one_line, shortened
from qbench.meters import environment
from qbench.meters.clock import Clock
from qbench.report import tables
from scripts import bench

MODEL = "cogvideox-2b"
PACKAGES = ("xfuser", "yunchang", "distvae", "einops", "peft", "flash-attn")
HEADS = (
    "", "GPUs", "compiled", "attention", "step", "fastest to slowest", "speed-up",
    "error of the denoiser", "n",
)  # fmt: skip
REFERENCE = "diffusers"
TORCHS = "torch's choice"
# Attention by random weights is the mean over all tokens, or nearly, and is lost in what it is
# added to: half of it missing would not be seen. Powers of two are taken back without a trace.
LOUDER_QUERIES, LOUDER_ATTENTION = 4, 8


@dataclass(frozen=True)
class Way:
    """Who computes a step, what is split over two GPUs, and whether torch.compile is there."""

    who: str
    split: str = ""
    compiled: bool = False

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.who, self.split, "compile" * self.compiled) if part)

    @property
    def gpus(self) -> int:
        return 2 if self.split else 1

    def degree(self, split: str) -> int:
        return self.gpus if self.split == split else 1


SPLITS = ("cfg", "ulysses", "ring")
WAYS = [
    Way(who, split, compiled)
    for compiled in (False, True)
    for who in ("diffusers", "xfuser", "qbench")
    for split in (("",) if who == "diffusers" else ("", *SPLITS) if who == "xfuser" else SPLITS)
]


def _of_xfuser(pipe: Any, way: Way, args: argparse.Namespace) -> tuple[Any, str]:
    """xfuser's own pipeline around diffusers', and the kernel that its attention has."""
    from xfuser import xFuserArgs, xFuserCogVideoXPipeline
    from xfuser.core.distributed import get_runtime_state

    config, _ = xFuserArgs(
        use_cfg_parallel=way.split == "cfg",
        ulysses_degree=way.degree("ulysses"),
        ring_degree=way.degree("ring"),
        use_torch_compile=way.compiled,
        height=args.height,
        width=args.width,
        num_frames=args.frames,
        attention_backend=args.attention,
    ).create_config()
    wrapped = xFuserCogVideoXPipeline(pipe, config)
    chosen = str(get_runtime_state().attention_backend.name).lower()
    return wrapped, chosen if way.split in ("ulysses", "ring") else TORCHS


def _of_qbench(pipe: Any, way: Way, args: argparse.Namespace) -> tuple[Any, str]:
    import qbench

    fields = dict(setting.split("=", 1) for setting in args.set)
    if way.compiled:
        fields |= {"variant.compile.scope": "blocks"}
    recipe = qbench.load_recipe(f"parallel/{way.split}", fields)
    return qbench.apply(pipe, recipe), recipe.variant.attention.replace("auto", TORCHS)


def _of_diffusers(pipe: Any, way: Way, args: argparse.Namespace) -> tuple[Any, str]:
    if way.compiled:
        pipe.transformer.forward = torch.compile(pipe.transformer.forward)
    return pipe, TORCHS


WRAP: dict[str, Callable[[Any, Way, argparse.Namespace], tuple[Any, str]]] = {
    "diffusers": _of_diffusers,
    "xfuser": _of_xfuser,
    "qbench": _of_qbench,
}


def _meet(way: Way, rank: int, device: str, folder: Path) -> None:
    """Join the row's process group, by the way that who computes it joins one."""
    where = f"file://{folder / 'meeting'}"
    if way.who == "xfuser":
        from xfuser.core.distributed import init_distributed_environment

        backend = "gloo" if device == "cpu" else None
        init_distributed_environment(way.gpus, rank, where, rank, backend)
    elif way.who == "qbench":
        from qbench.optimizations.parallel.groups import BACKENDS

        limit = timedelta(minutes=10)
        dist.init_process_group(BACKENDS[device], where, limit, way.gpus, rank)


def pipeline(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The model at true size with `weights: random`, and the keywords of its call."""
    from qbench.pipelines import families, random_weights, specs
    from qbench.pipelines.cogvideox import CogVideoX
    from qbench.recipe.schema import Generation

    model = specs.find(MODEL)
    configs: dict[str, Any] = dict(CogVideoX.random_configs(MODEL) or {})
    given = {"num_layers": args.layers, "num_attention_heads": args.heads}
    configs["transformer"] = configs["transformer"] | {k: v for k, v in given.items() if v}
    dtypes = specs.part_dtypes(model, "bf16", CogVideoX.part, args.device)
    pipe = random_weights.pipeline(CogVideoX, configs, dtypes, args.device)
    pipe.set_progress_bar_config(disable=True)
    video = families.wrap(pipe)
    size = {"frames": args.frames, "height": args.height, "width": args.width}
    run = video.resolve(model, Generation(**size))
    call = video.arguments(run, video.encode(run, [""]))
    latents = video.noise(run, run.seed).to(args.device, video.latents_dtype())
    return pipe, call | {"latents": latents}


@torch.no_grad()
def _run(way: Way, rank: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What one rank measures: each step's seconds, and its part's distance to the reference."""
    _meet(way, rank, args.device, folder)
    pipe, call = pipeline(args)
    as_before = louder(pipe.transformer)
    pipe, attention = WRAP[way.who](pipe, way, args)
    found: dict[str, Any] = {"attention": attention}
    began = time.monotonic()
    got = first_step(pipe, call)
    found["first_s"] = time.monotonic() - began
    kept = folder.parent / "reference.pt"
    if way.name == REFERENCE:
        torch.save(got, kept)
    elif kept.exists():
        wanted = torch.load(kept)
        found |= {name: distance(one, wanted[name], rank) for name, one in got.items()}
    as_before()
    clock, laps = Clock(args.device), []

    def ended(_: object, __: object, ___: object, values: dict[str, Any]) -> dict[str, Any]:
        laps.append(clock.lap())
        return values

    steps = args.warmup + args.steps
    pipe(**call, num_inference_steps=steps, callback_on_step_end=ended, output_type="latent")
    clock.lap()
    found |= {"seconds": laps[args.warmup :], "warmup_s": laps[: args.warmup]}
    if args.device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    if way.compiled:
        from torch._dynamo.utils import counters

        found["graphs"] = counters["stats"]["unique_graphs"]
        found["graph_breaks"] = sum(counters["graph_break"].values())
    return found


def louder(denoiser: Any) -> Callable[[], None]:
    """Have each block's attention say more, until what is returned is called."""
    heard = [block.attn1 for block in denoiser.transformer_blocks]
    scaled = [(attn.norm_q.weight, LOUDER_QUERIES) for attn in heard]
    scaled += [(attn.to_out[0].weight, LOUDER_ATTENTION) for attn in heard]
    for weight, by in scaled:
        weight.mul_(by)

    def as_before() -> None:
        for weight, by in scaled:
            weight.div_(by)

    return as_before


def first_step(pipe: Any, call: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A loop of one step: what the denoiser gives, and the latents that come of it."""
    outputs: list[torch.Tensor] = []
    hook = pipe.transformer.register_forward_hook(
        lambda _, __, output: outputs.append(output[0].cpu())
    )
    latents = pipe(**call, num_inference_steps=1, output_type="latent").frames
    hook.remove()
    found = {"denoiser": outputs[0]}
    if isinstance(latents, torch.Tensor):  # of xfuser's ranks the last one alone has them
        found["latents"] = latents.cpu()
    return found


def distance(got: torch.Tensor, wanted: torch.Tensor, rank: int) -> tuple[float, float]:
    """Squares of what is off, and of what is wanted, summed over this rank's part.

    The part is the whole, a row of the batch, or half of the latents' height.
    """
    for dim in (0, -2):
        if got.shape[dim] < wanted.shape[dim]:
            wanted = wanted.chunk(wanted.shape[dim] // got.shape[dim], dim)[rank]
    if got.shape != wanted.shape:
        raise ValueError(f"{tuple(got.shape)} is no part of {tuple(wanted.shape)}")
    off = got.double() - wanted.double()
    return float(off.square().sum()), float(wanted.double().square().sum())


def _rank(way: Way, rank: int, args: argparse.Namespace, folder: Path) -> None:
    """One process of a row: its figures, or the reason why there are none, in a file."""
    os.environ.setdefault("LOG_LEVEL", "error")  # xfuser's
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    if args.device == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    try:
        found = _run(way, rank, args, folder)
    except Exception as error:
        found = {"reason": f"{type(error).__name__}: {one_line(error, 300)}"}
    textfile.replace(folder / f"{rank}.json", json.dumps(found))
    time.sleep(20)  # the other one may still read what this one sends; `measured` ends both
    os._exit(0)


def measured(way: Way, args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Of a row: what its processes found, or the reason of the first that failed."""
    folder = Path(tempfile.mkdtemp(prefix=f"{way.name}-", dir=work))
    spawn = multiprocessing.get_context("spawn")
    began = time.monotonic()
    processes = [
        spawn.Process(target=_rank, args=(way, rank, args, folder), daemon=True)
        for rank in range(way.gpus)
    ]
    found: dict[int, dict[str, Any]] = {}
    for process in processes:
        process.start()
    try:
        while len(found) < way.gpus and not any("reason" in one for one in found.values()):
            for rank, process in enumerate(processes):
                process.join(0.1)
                path = folder / f"{rank}.json"
                if path.exists():
                    found[rank] = json.loads(path.read_text())
                elif process.exitcode is not None:
                    found[rank] = {"reason": f"rank {rank} ended with {process.exitcode}"}
            if time.monotonic() - began > args.row_limit:
                found[way.gpus] = {"reason": f"not done after {args.row_limit:.0f} s"}
                break
    finally:
        for process in processes:
            process.kill()
            process.join()
    whole_s = time.monotonic() - began
    return {"s": whole_s, **combined(found)}


def combined(found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The ranks' figures as the row's: the slowest rank of each step, errors over all parts."""
    for one in found.values():
        if "reason" in one:
            return {"reason": one["reason"]}
    ranks = [found[rank] for rank in sorted(found)]
    row = dict(ranks[0])
    row["seconds"] = [max(step) for step in zip(*(one["seconds"] for one in ranks), strict=True)]
    row["step_s"] = statistics.median(row["seconds"])
    for name in ("first_s", "peak_bytes"):
        if name in row:
            row[name] = max(one[name] for one in ranks)
    for name in ("denoiser", "latents"):
        if parts := [one[name] for one in ranks if name in one]:
            off, wanted = (sum(column) for column in zip(*parts, strict=True))
            row[f"{name}_relative_error"] = (off / wanted) ** 0.5
            row.pop(name, None)
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, from the file's rows: the speed-up is over diffusers as it comes, on one GPU."""
    lines = []
    alone = {row["name"]: row["step_s"] for row in rows if "step_s" in row}.get(REFERENCE)
    for row in rows:
        what = " ".join(part for part in (row["who"], row["split"]) if part)
        shown = [what, str(row["gpus"]), "yes" if row["compiled"] else "no"]
        if "step_s" in row:
            step, of = row["step_s"], row["seconds"]
            error = row.get("denoiser_relative_error")
            shown += [
                row["attention"],
                f"{step * 1e3:.0f} ms",
                f"{min(of) * 1e3:.0f} to {max(of) * 1e3:.0f} ms",
                f"{alone / step:.2f}x" if alone else "",
                "" if error is None else f"{error:.2g}",
                str(len(of)),
            ]
        else:
            shown += ["", f"failed: {shortened(row['reason'], 80)}", "", "", "", "0"]
        lines.append(shown)
    return tables.grid(HEADS, lines)


def main() -> None:
    names = [way.name for way in WAYS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    for name, value in (("frames", 49), ("height", 480), ("width", 720), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--warmup", type=int, default=2, help="steps before those, at least one")
    for name in ("layers", "heads"):
        parser.add_argument(f"--{name}", type=int, help="of the denoiser, to try the script")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="ROW")
    parser.add_argument("--limit", type=float, default=1e9, help="s, after which no row begins")
    parser.add_argument("--row-limit", type=float, default=240, help="s that a row may take")
    parser.add_argument("--attention", help="xfuser's attention_backend, such as sdpa_flash")
    parser.add_argument("--set", action="append", default=[], help="fields of qbench's recipes")
    args = parser.parse_args()
    if args.warmup < 1 or args.steps < 1:
        parser.error("--warmup and --steps: at least one")
    began, rows = time.monotonic(), []
    facts = {
        "model": MODEL,
        "size": {name: getattr(args, name) for name in ("frames", "height", "width")},
        "changed": {k: v for k in ("layers", "heads", "attention", "set") if (v := vars(args)[k])},
        "versions": environment.libraries(PACKAGES),
    }
    with tempfile.TemporaryDirectory(prefix="bench-xdit-") as work:
        for way in WAYS:
            if way.name not in args.only:
                continue
            if time.monotonic() - began > args.limit:
                found = {"reason": f"not begun after {args.limit:.0f} s"}
            else:
                found = measured(way, args, Path(work))
            row = {**vars(way), "name": way.name, "gpus": way.gpus, **found}
            rows.append(row)
            bench.write(args.out, args.device, **facts, rows=rows)
            print(table([row]).splitlines()[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
