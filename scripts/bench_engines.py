"""Every format in which a variant leaves qbench, at a model's full size, in one sitting.

    python -m scripts.bench_engines FOLDER [--model cogvideox-2b] [--only NAME ...]

Each export is a process of its own, `--at-once` of them side by side; then each folder is measured
beside the variants in Python, a step interleaved with the reference's: `qbench run` on what was
exported. What cannot be exported is a line with its reason. FOLDER gets `exports.json`, the runs,
and the engines themselves (large). The FP32 predictions along the trajectories are made once for
each dtype.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from scripts import bench

if TYPE_CHECKING:
    from qbench.engines.export import Plain
    from qbench.recipe.choices import ExportFormat
    from qbench.recipe.schema import Recipe

RECIPES = Path(__file__).parent.parent / "recipes"
# Recipe and format, most wanted first, by the name of the folder.
EXPORTS: dict[str, tuple[str, ExportFormat]] = {
    "fast": ("fast", "qbench"),
    "fp8-dynamic": ("fp8-dynamic", "diffusers"),
    "onnx-bf16": ("engine/onnx-bf16", "onnx"),
    "tensorrt-bf16": ("engine/tensorrt-bf16", "tensorrt"),
    "tensorrt-fp8": ("engine/tensorrt-fp8", "tensorrt"),
    "tensorrt-int8": ("engine/tensorrt-int8", "tensorrt"),
    "onnx-fp16": ("engine/onnx-fp16", "onnx"),
    "aoti": ("aoti", "aoti"),
    "aoti-blocks": ("engine/aoti-blocks", "aoti"),
    "aoti-fp8": ("fp8-dynamic", "aoti"),
}
PYTHON = ("bf16", "compile", "fast", "fp8-dynamic")
SETTINGS = (
    "reference=bf16", "measure.unit=step", "measure.interleave=true", "measure.repeats=10",
    "measure.warmup=2", "measure.timeout_s=200", "measure.warm_start=false",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="cogvideox-2b")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--steps", type=int, default=4, help="of the trajectories that are walked")
    parser.add_argument("--only", nargs="*", default=list(EXPORTS))
    parser.add_argument("--python", nargs="*", default=list(PYTHON))
    parser.add_argument("--limit", type=float, default=200, help="seconds for one export")
    parser.add_argument("--at-once", type=int, default=1, help="exports side by side")
    parser.add_argument("--profile", action="store_true", help="for qbench explain")
    parser.add_argument("--no-export", action="store_true", help="measure what lies there")
    parser.add_argument("--no-run", action="store_true", help="export, and measure nothing")
    parser.add_argument("--export", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.export:
        _export(args)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    wanted = [] if args.no_export else args.only
    with ThreadPoolExecutor(args.at_once) as pool:
        for row in pool.map(lambda name: _exported(name, args), wanted):
            path = args.folder / "exports.json"
            known = json.loads(path.read_text()) if path.is_file() else {}
            bench.save(path, {**known, **row})
    if args.no_run:
        return
    made = [str(args.folder / "engines" / name) for name in args.only]
    made = [path for path in made if Path(path).is_dir()]
    settings = [f"model={args.model}", f"weights={args.weights}", *SETTINGS]
    settings.append(f"measure.profile={str(args.profile).lower()}")
    line = [sys.executable, "-m", "qbench", "run", *args.python, *made, "--trust"]
    line += ["--out", str(args.folder / "runs"), "--quiet"]
    for setting in settings:
        line += ["--set", setting]
    sys.exit(subprocess.run(line).returncode)


def _exported(name: str, args: argparse.Namespace) -> dict[str, object]:
    """Export one in a process of its own, and print what came of it; its row of exports.json."""
    began, row = time.perf_counter(), {}
    line = [sys.executable, "-m", "scripts.bench_engines", *sys.argv[1:], "--export", name]
    try:
        done = subprocess.run(line, timeout=args.limit, capture_output=True, text=True)
        said = done.stdout if done.returncode == 0 else (done.stderr.strip() or "died")[-2000:]
        if done.returncode == 0:
            row = {name: json.loads(done.stdout.splitlines()[-1])}
    except subprocess.TimeoutExpired as error:
        said = f"not done after {args.limit:g} s: {(error.stderr or b'')[-2000:]!r}"
    print(f"{name}: {time.perf_counter() - began:.0f} s: {said.strip()}", flush=True)
    return row


def _export(args: argparse.Namespace) -> None:
    from qbench.engines import export
    from qbench.recipe.files import load, overrides

    name, form = EXPORTS[args.export]
    settings = [f"model={args.model}", f"weights={args.weights}", f"generation.steps={args.steps}"]
    recipe = load(RECIPES / f"{name}.yaml", overrides(settings))
    plain = _plain(recipe, args.folder)
    # What is measured are the model's own steps.
    whole = load(RECIPES / f"{name}.yaml", overrides(settings[:2]))
    began = time.perf_counter()

    def tell(said: str) -> None:
        print(f"{time.perf_counter() - began:.0f} s: {said}", file=sys.stderr, flush=True)

    out = args.folder / "engines" / args.export
    found = export.export(whole, out, form, force=True, plain=plain, tell=tell)
    facts = found.manifest
    row = {
        "format": facts.format, "build_s": round(facts.build_s, 1),
        "size_bytes": facts.size_bytes, "step_s": facts.step_s,
        "relative_l2_to_variant": facts.variant.relative_l2,
        "relative_l2_to_fp32": facts.fp32.relative_l2, "calls": facts.variant.calls,
    }  # fmt: skip
    print(json.dumps(row))


def _plain(recipe: Recipe, folder: Path) -> Plain:
    """What was captured for this dtype before, or is now."""
    import torch

    from qbench.engines import export
    from qbench.pipelines import specs

    path = folder / f"captured-{recipe.variant.dtype}.pt"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of exports side by side one captures
        if path.is_file():
            kept: Plain = torch.load(path, weights_only=False)  # ours, of a process before this one
            return kept
        found = export.captured(recipe, specs.find(recipe.model), export.device_of(recipe))
        partial = path.with_suffix(".partial")
        torch.save(found, partial)
        shutil.move(partial, path)
    return found


if __name__ == "__main__":
    main()
