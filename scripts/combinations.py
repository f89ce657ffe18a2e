"""Run every choice of every axis, alone and in pairs, and hold `support.py` against what happened.

    python -m scripts.combinations OUT.json.xz [--device auto] [--jobs 2] [--only quantize,memory]
        [--without PUBLISHED.json.xz]

Each combination is one process: the bundled model in BF16 makes latents in eight denoise steps,
twice, with the support rules put aside, and they are compared with those of the plain BF16 model;
where it is about the decode, the frames are. Where it fails, what it makes has nothing to do with
the plain model's, or its cache left nothing out, the rules must have refused it, and the other way
round: what is printed last are those that disagree. tests/test_support.py holds the rules against
the published files. What OUT has already is not run again, nor what another machine's file has that
is named.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import lzma
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qbench import support
from qbench.meters.environment import Environment
from qbench.recipe import schema
from qbench.recipe.choices import ENGINES, FIXED, CacheKind
from qbench.recipe.schema import Variant
from qbench.run import machines, processes
from qbench.run.failures import named

MODEL, STEPS, SEED, LIMIT_S = "tiny-cogvideox", 8, 5, 240.0
SAID = 300  # characters kept of an error; a compiler's runs to pages
UNRELATED = 0.9  # relative error of latents from which on nothing is left of the plain ones
# In pairs, one scheme stands for those that are stored and computed alike.
ALIKE = {
    ("torchao", "fp8_weight_only"), ("torchao", "fp8_dynamic_tensor"),
    ("torchao", "int4_weight_only"), ("torchao", "int2_weight_only"),
    ("quanto", "int2_weight_only"), ("quanto", "fp8_weight_only"),
    *(("qbench", f"int{bits}_weight_only") for bits in (8, 6, 5, 3, 2)),
}  # fmt: skip


# Calibrated schemes that store what no plain one does.
CALIBRATED = (
    ("smoothquant", ("torchao", "int8_static")),
    ("awq", ("torchao", "int4_weight_only")),
    ("svdquant", ("qbench", "int4_weight_only")),
)
LITTLE = {"prompts": 1, "steps": 1, "samples": 64}
CACHES: dict[CacheKind, dict[str, Any]] = {
    "first_block": {"threshold": 0.5},
    "pab": {"interval": 2},
    "faster": {"interval": 2},
    "taylorseer": {"interval": 2},
    "mag": {"threshold": 1.0, "prompts": 1},
    "sea": {"threshold": 0.3},
    "dbcache": {"threshold": 0.5, "front": 1, "first": 2},
}
# Axes of which nothing is tried: what several processes or a folder make, and what says how much.
LEFT_OUT = (
    "sparse_attention", "parallel", "step_share", "seed_offset", "fault", "engine_options",
    "exported",
)  # fmt: skip


def choices() -> dict[str, list[Any]]:
    """Axis -> its values, none of them the default."""
    import typing

    schemes: list[dict[str, Any]] = [
        {"backend": backend, "scheme": scheme}
        for backend, names in schema.SCHEMES.items()
        for scheme in names
        if (backend, scheme) not in FIXED  # which needs calibration
    ]
    schemes += [
        {"backend": backend, "scheme": scheme, "calibration": {"method": method, **LITTLE}}
        for method, (backend, scheme) in CALIBRATED
    ]
    return {
        "dtype": [dtype for dtype in typing.get_args(schema.Dtype) if dtype != "bf16"],
        "fuse_qkv": [True],
        "quantize": schemes,
        "attention": [kind for kind in typing.get_args(schema.Attention) if kind != "auto"],
        "cache": [{"kind": kind, **CACHES[kind]} for kind in typing.get_args(CacheKind)],
        "compile": [{"scope": "blocks"}, {"scope": "model"}],
        "cuda_graph": [True],
        "memory": [{"offload": kind} for kind in ("model", "sequential", "group")],
        "decode": [{kind: True} for kind in schema.Decode.model_fields],
        "engine": [one for one in ENGINES if one != "aoti"],  # which compiles for minutes
    }


def combinations(only: set[str]) -> Iterator[dict[str, Any]]:
    """Every choice alone, then every pair of two axes; what the schema refuses is left out."""
    axes = choices()
    single = [{axis: value} for axis, values in axes.items() for value in values]
    pairs = [
        {a: x, b: y}
        for a, b in itertools.combinations(axes, 2)
        for x, y in itertools.product(axes[a], axes[b])
        if not any(_alike(value) for value in (x, y))
    ]
    for fields in [*single, *pairs]:
        if only and not only & fields.keys():
            continue
        try:
            Variant.model_validate({"dtype": "bf16", **fields})
        except ValidationError:
            continue
        yield fields


def _alike(value: Any) -> bool:
    return isinstance(value, dict) and (value.get("backend"), value.get("scheme")) in ALIKE


def attempt(job: str, connection: Connection) -> None:
    """In a process of its own: two videos beside the plain model's; sends what came."""
    import torch

    facts = json.loads(job)
    if facts["gpu"] is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = facts["gpu"]  # read as the driver starts, below
    torch.set_num_threads(facts["threads"])  # jobs that take all cores each stand in line
    try:
        error = _relative_error(Variant.model_validate(facts["variant"]), facts["device"])
        connection.send({"relative_error": error})
    except Exception as error:
        connection.send({"error": named(error)[:SAID]})


def _relative_error(variant: Variant, device: str) -> float:
    import tempfile

    import torch

    from qbench import engines
    from qbench.optimizations import axes
    from qbench.optimizations.caching.computed import Share
    from qbench.optimizations.calibration import Occasion
    from qbench.pipelines import specs
    from qbench.quality.metrics.fidelity import latent_error
    from qbench.recipe.schema import Decode, Generation, Recipe

    model = specs.find(MODEL)

    def made(changed: Variant | None) -> list[torch.Tensor]:
        dtype = changed.dtype if changed else "bf16"
        offloaded = changed is not None and changed.memory.offload is not None
        pipeline = specs.load(model, dtype, device, offloaded=offloaded)  # as a run does
        run = pipeline.resolve(model, Generation(steps=STEPS))
        noise, cached = pipeline.noise(run, SEED), None
        if changed:
            occasion = Occasion(run, model, tests=())
            cached = axes.apply(pipeline, changed, device, STEPS, occasion).cached
        embeddings = pipeline.encode(run, ["a red star moves left on a navy background"])
        if changed and changed.engine:
            recipe = Recipe(name="combination", variant=changed)
            with tempfile.TemporaryDirectory() as folder:
                engines.build(pipeline, run, embeddings, noise, recipe, Path(folder))
        if cached:
            cached.counter.mark()
        videos, decoded = [], variant.decode != Decode()
        for _ in range(2 if changed else 1):
            latents = pipeline.denoise(
                run, embeddings, noise, lambda _: None, generators=pipeline.generators([SEED])
            )
            videos.append(pipeline.decode(run, latents) if decoded else latents)
        if cached and cached.counter.mark() in (Share(1.0), Share(1.0, 1.0)):
            raise ValueError("the cache left nothing out, so this says nothing of it")
        return [video.float().cpu() for video in videos]

    plain, found = made(None)[0], made(variant)
    errors = [latent_error(one, plain).item() for one in found]
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


def tried(fields: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """One row: the combination, whether it works, and what came of it."""
    from scripts import combinations  # in the child this program is no main module

    variant = Variant.model_validate({"dtype": "bf16", **fields})
    job = json.dumps({"variant": variant.model_dump(mode="json"), **facts})
    log = Path("/dev/null")
    child = processes.Child(combinations.attempt, job, log)
    outcome: dict[str, Any] = {"error": "the process died"}
    try:
        if child.connection.poll(LIMIT_S):
            outcome = child.connection.recv()
            child.wait()
        else:
            child.end()
            outcome = {"error": f"took longer than {LIMIT_S:g} s"}
    except (EOFError, ConnectionError):
        child.wait()
    error = outcome.get("relative_error")
    works = error is not None and error < UNRELATED  # false where it is NaN
    return {"variant": fields, "works": works, **outcome}


def disagreement(row: dict[str, Any], machine: support.Machine) -> str | None:
    """What the rules say of a combination and what came of it, where the two do not agree."""
    variant = Variant.model_validate({"dtype": "bf16", **row["variant"]})
    rules = support.refusing(variant, dataclasses.replace(machine, model=_model()))
    if rules and not any(rule.fails for rule in rules):
        return None  # it would run, as something else
    if row["works"] == (not rules):
        return None
    came = row.get("error") or f"relative error {row['relative_error']:.3g}"
    return f"{came}; the rules say: {rules[0].reason if rules else 'runs'}"


@functools.cache
def _model() -> support.ModelFacts:
    """Of the model that all of them ran on."""
    from qbench.pipelines import specs
    from qbench.recipe.schema import Generation

    model = specs.find(MODEL)
    video = specs.load(model, "bf16", "cpu")
    run = video.resolve(model, Generation())
    return support.model_facts(video, run.guided, run.frames)


def _gpus(device: str) -> list[str | None]:
    """The GPUs to spread processes over, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if device != "cuda":
        return [None]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(named.split(",") if named else map(str, range(torch.cuda.device_count())))


def read(path: Path) -> dict[str, Any]:
    with lzma.open(path, "rt") as file:
        made: dict[str, Any] = json.load(file)
    return made


def write(made: dict[str, Any], path: Path) -> None:
    with lzma.open(path, "wt", preset=9 | lzma.PRESET_EXTREME) as file:
        json.dump(made, file, separators=(",", ":"))


def begun(out: Path, environment: Environment, machine: support.Machine) -> dict[str, Any]:
    """What the file holds, or an empty one. Raises SystemExit where it is another machine's."""
    new: dict[str, Any] = {
        "environment": environment.model_dump(),
        "machine": {
            **dataclasses.asdict(machine),
            "capability": list(machine.capability),
            "packages": sorted(machine.packages),
        },
        "rows": [],
    }
    if not out.exists():
        return new
    old = read(out)
    theirs = Environment.model_validate(old["environment"])
    places = [(each.hardware(), each.software()) for each in (theirs, environment)]
    if places[0] != places[1] or old["machine"] != new["machine"]:
        raise SystemExit(f"{out} was made on another machine, or with other packages: name another")
    return old


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="axes, with commas between; all by default")
    parser.add_argument("--without", type=Path, help="leave out what is in this file")
    args = parser.parse_args()
    environment = machines.read_environment(args.device)
    machine = support.this_machine(environment.device)
    processes.prepare()
    made = begun(args.out, environment, machine)
    rows = made["rows"]
    others = read(args.without)["rows"] if args.without else []
    done = [row["variant"] for row in [*rows, *others]]
    asked = combinations(set(filter(None, args.only.split(","))))
    wanted = [fields for fields in asked if fields not in done]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, min((os.cpu_count() or 1) // args.jobs, environment.threads))
    one = {"device": environment.device, "threads": threads}
    places = [one | {"gpu": gpu} for gpu in _gpus(environment.device)]
    with ThreadPoolExecutor(args.jobs) as pool:
        for count, row in enumerate(pool.map(tried, wanted, itertools.cycle(places)), 1):
            rows.append(row)
            if count % 5 == 0 or count == len(wanted):
                print(f"{count} of {len(wanted)}", flush=True)
                write(made, args.out)
    print(f"{len(rows)} combinations, {sum(row['works'] for row in rows)} work, in {args.out}")
    for row in rows:
        if said := disagreement(row, machine):
            print(f"- {json.dumps(row['variant'])}: {said}")


if __name__ == "__main__":
    main()
