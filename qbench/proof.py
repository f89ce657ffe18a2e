"""What an export shows beside the parity of single calls: a chart of it, and whole videos.

The videos are the engine's own, paired with those that the variant makes in Python, and judged as
every variant is. An engine that quantizes by rules of its own has no variant in Python: there it is
the plain denoiser in the same dtype. Both are compiled or neither is, wherever that can be chosen:
what a compiler fuses it rounds less often, which is no fault of an export and hides one.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qbench.engines import exported, manifest
from qbench.engines.export import PARITY, Differs
from qbench.engines.parity import by_own_rules
from qbench.errors import Unsupported
from qbench.recipe.choices import AS_MODULE
from qbench.recipe.schema import EngineOptions, Recipe, Variant

if TYPE_CHECKING:
    from qbench.pipelines.base import VideoPipeline
    from qbench.pipelines.values import Resolved

VIDEOS, CHART = "videos.json", "parity.png"
REFUSED = ("degraded", "broken")
Compiled = Literal["neither", "both", "engine"]
SAID: dict[Compiled, str] = {
    "neither": "neither compiled",
    "both": "both compiled",
    "engine": "which is not compiled",
}
QUICK = {"measure.timing": "false", "measure.profile": "false", "measure.repeats": "1"}


def check_machine(recipe: Recipe, form: manifest.Format) -> None:
    """Raises Unsupported where the variant cannot run here: what is exported is held against it.

    TensorRT itself says where it plans without a GPU, and FP8 linears of qbench's own are computed
    in plain operations where there is none.
    """
    from qbench import support
    from qbench.engines.export import device_of

    variant, device = _held(recipe.variant, form), device_of(recipe)
    if form == "tensorrt":
        return
    if form == "qbench" and device == "cpu":
        variant = variant.model_copy(update={"quantize": None, "fuse_qkv": False})
    support.check(variant, support.this_machine(device))


def check_model(recipe: Recipe, form: manifest.Format, video: VideoPipeline, run: Resolved) -> None:
    """Raises Unsupported where the machine could run the variant, and the live model cannot."""
    from qbench import support
    from qbench.engines.export import device_of

    variant, machine = _held(recipe.variant, form), support.this_machine(device_of(recipe))
    anywhere = support.refusing(variant, machine)
    whole = replace(machine, model=support.model_facts(video, run.guided, run.frames))
    for rule in support.refusing(variant, whole):
        if rule not in anywhere:
            raise Unsupported(rule.reason)


def _held(variant: Variant, form: manifest.Format) -> Variant:
    """The variant as a folder of this format holds it: AOTInductor compiles all of any."""
    if form != "aoti":
        return variant
    return variant.model_copy(update={"engine": form, "compile": None})


def prove(folder: Path, recipe: Recipe, count: int) -> str:
    """Put chart and videos' evidence into a folder that was just exported; what they say in a line.

    Raises Differs where the videos are settled to be worse than those of the variant in Python.
    """
    # The videos first: a folder that holds more than its manifest names is refused.
    seen, said = {}, "no whole videos: none were asked for"
    written, _ = manifest.read(folder)
    if written.proved_by == "graph":
        said = "no whole videos: it was built without the GPU that it runs on; verify it there"
    elif recipe.weights == "random":
        said = "no whole videos: random weights make none that could be judged"
    elif count:
        seen = _videos(folder, written.format, recipe, count)
        (folder / VIDEOS).write_text(json.dumps(seen, indent=1) + "\n")
        way = SAID[compiled(recipe.variant, written.format)]
        said = f"{seen['videos']} whole videos beside the variant in Python, {way}: "
        said += str(seen["verdict"])
        if seen["identical"]:
            said += ", equal to the bit"
        elif isinstance(seen.get("psnr"), float):
            said += f", PSNR {seen['psnr']:.1f} dB"
    parity = json.loads((folder / PARITY).read_text())
    draw(parity["by_call"], parity["limit"]["relative_l2"], folder / CHART)
    if seen.get("verdict") in REFUSED:  # without a question mark
        raise Differs(f"the engine's videos are not the variant's: {said}; {seen['because']}")
    return said


def draw(calls: Sequence[Mapping[str, float]], allowed: float, path: Path) -> None:
    """Relative L2 of every captured call over its time step, against both, and what is allowed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for key, text, mark in (
        ("relative_l2_to_fp32", "to FP32", "o"),
        ("relative_l2_to_variant", "to the variant in Python", "x"),
    ):
        values = [max(call[key], 1e-8) for call in calls]
        axes.plot([call["timestep"] for call in calls], values, mark, label=text)
    axes.axhline(allowed, color="0.5", linestyle="--", label=f"allowed: {allowed:g}")
    axes.set_yscale("log")
    axes.invert_xaxis()  # a trajectory begins at the largest
    axes.set_xlabel("time step")
    axes.set_ylabel("relative L2 of a call")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def compiled(variant: Variant, form: manifest.Format) -> Compiled:
    """Which of the two sides runs compiled: the folder of this format, the variant in Python.

    A folder that leaves compiling open is run without, which spares minutes on a CPU. One that
    compiles as it is opened is held against the variant compiled. A program that was compiled ahead
    of time has no equal in Python, and is held against what it was made of.
    """
    if form not in AS_MODULE:
        return "engine"
    return "both" if variant.compile and "compile" not in exported.free(form) else "neither"


def twin(recipe: Recipe, form: manifest.Format) -> Recipe:
    """The variant in Python that an engine of the recipe, in this format, is held against."""
    variant = recipe.variant
    changes: dict[str, object] = {
        "engine": None,
        "engine_options": EngineOptions(),
        "compile": variant.compile if compiled(variant, form) == "both" else None,
        "quantize": None if by_own_rules(variant) else variant.quantize,
    }
    plain = Variant.model_validate(variant.model_dump() | changes)
    return recipe.model_copy(update={"variant": plain, "noise_floor": False, "expects": None})


def _videos(folder: Path, form: manifest.Format, recipe: Recipe, count: int) -> dict[str, object]:
    from qbench.results.ranking import rankings
    from qbench.run import plan, sweep

    way = compiled(recipe.variant, form)
    reference = twin(recipe, form)
    with tempfile.TemporaryDirectory(prefix="qbench-") as scratch:
        path = Path(scratch) / "variant.yaml"
        path.write_text(reference.model_dump_json(), encoding="utf-8")  # JSON is YAML too
        fields = {**QUICK, "reference": json.dumps(recipe.name), "prompts.count": str(count)}
        if way == "neither" and recipe.variant.compile:
            fields["variant.compile"] = "null"  # of the folder: a reference keeps what it has
        vouched = plan.Vouched(all=True)  # it was written by this very process
        planned = plan.plan([path, folder], fields, vouched=vouched)
        swept = sweep.run(planned, Path(scratch) / "runs", sweep.Silent())
        if swept.interrupted:
            raise KeyboardInterrupt
        if swept.stopped:
            raise Differs(f"whole videos could not be made: {swept.stopped}")
        records = [record for _, record in swept.finished]
        for record in records:
            if record.status not in ("ok", "invalid"):  # the latter is judged broken
                raise Differs(f"whole videos of {record.recipe.name}: {record.reason}")
        made = next(record for record in records if record.recipe.variant.exported)
        judged = next(
            ranking.judged[made.run]
            for ranking in rankings(swept.finished)
            if made.run in ranking.judged
        )
    quality = {name: metric.value for name, metric in made.quality.items()}
    return {
        "videos": made.videos,
        "beside": "the variant in Python, the same prompts and noise",
        "compiled": way,
        "identical": len({record.outputs_sha256 for record in records}) == 1,
        "verdict": judged.text,
        "because": judged.because,
        "distance": judged.distance,
        "missing": list(judged.missing),
        **quality,
    }
