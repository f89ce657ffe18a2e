"""What is here, what is not, and why: the text of `qbench ls` and `qbench doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qbench import textfile, units
from qbench.errors import InputError, nearest, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from qbench.optimizations.rules import Machine


DEVICES = ("auto", "cpu", "cuda")


def show(console: Console, folder: Path | None = None, why: bool = False) -> None:
    """Recipes of `folder` or the shipped ones, models, schemes, metrics, prompts: and why not."""
    from qbench import prompts, support
    from qbench.pipelines import known
    from qbench.quality.metrics import catalogue
    from qbench.recipe import files, schema, shipped
    from qbench.recipe.choices import CALIBRATED

    if folder is not None and not textfile.is_folder(folder):
        raise InputError(textfile.lacking(folder, "no such folder"))
    machine = support.this_machine()
    _head(console, f"recipes in {folder}" if folder else "recipes (qbench run NAME)")
    paths = shipped.files(folder or shipped.FOLDER)
    if not paths:
        _say(console, "  none; name another folder: qbench ls FOLDER")
    rows = []
    for path in paths:
        try:
            found = files.load(path)
            reason = support.why_not(found.variant, machine) or ""
            rows.append((found.name, found.about, reason))
        except InputError as error:
            rows.append((path.stem, "", ", and ".join(error.lines)))
    width = max((len(name) for name, _, _ in rows), default=0)
    for row in rows:
        _line(console, *row, width=width)
    if why:
        _rules_here(console, machine)
        _head(console, "choices that exclude each other, on any machine")
        for rule in support.RULES:
            if rule.excludes:
                _rule(console, "x", rule.about, rule.reason)
        _head(console, "what some models or numbers of GPUs exclude, and what is said then")
        for rule in support.RULES:
            if not rule.excludes and not rule.by_machine:
                _rule(console, "?", rule.about, rule.reason)
    _head(console, "models (or any hub id or folder of such a pipeline)")
    for name, model in known.KNOWN.items():
        _line(console, name, model.about, "" if model.local else _hub(model.source))
    _head(console, "quantization schemes")
    for backend, schemes in schema.SCHEMES.items():
        for scheme in schemes:
            methods = [name for name, fits in CALIBRATED.items() if (backend, scheme) in fits]
            how = f"calibrated by {', '.join(methods)}" if methods else ""
            why_not = _why_not(machine, _scheme(backend, scheme))
            _line(console, f"{backend} {scheme}", how, why_not)
    _head(console, "metrics")
    bundled, other = known.KNOWN["tiny-cogvideox"], known.Model("any", "any")
    plain = schema.Quality()
    ours, others = catalogue.lacking(plain, bundled), catalogue.lacking(plain, other)
    for name, about in catalogue.METRICS.items():
        why_not = ours[name] or (f"bundled models only: {others[name]}" if others[name] else "")
        best = "0 is as the reference" if about.better == "zero" else f"{about.better} is better"
        said = f"{about.what} ({about.unit}, {about.range}, {best})"
        _line(console, name, said, why_not)
    _head(console, "prompt sets")
    for name in prompts.names():
        _line(console, name, f"{len(prompts.load(name).prompts)} prompts", "")


def doctor(console: Console, device: str) -> None:
    """The machine and what can run on it."""
    from qbench import support
    from qbench.run import machines

    if device not in DEVICES:
        raise InputError(f"--device {device}: no such device{nearest(device, DEVICES)}")
    environment = machines.read_environment(device)
    _head(console, "machine")
    _line(console, "device", f"{environment.device}: {environment.device_name}", "")
    _line(console, "memory", units.bytes_text(environment.device_memory_bytes), "")
    _line(console, "threads", f"{environment.threads} of {environment.cpu_count} CPUs", "")
    for name, value in (("driver", environment.driver), ("CUDA", environment.cuda)):
        if value:
            _line(console, name, value, "")
    _head(console, "software")
    _line(console, "python", environment.python, "")
    for name, version in environment.libraries.items():
        _line(console, name, version, "")
    _choices_here(console, support.this_machine(environment.device))
    _say(console, "every rule, and which choices exclude each other anywhere: qbench ls --why")


def _choices_here(console: Console, machine: Machine) -> None:
    """Axis by axis what a recipe can choose, each by itself; those that lack the same together."""
    _head(console, "what can run on this machine (+), and what cannot and why (-)")
    for axis, choices in _choices().items():
        _say(console, f"  {axis}")
        found: dict[str, list[str]] = {"": []}
        for name, fields in choices.items():
            found.setdefault(_why_not(machine, fields), []).append(name)
        for reason, names in found.items():
            if names:
                _rule(console, "-" if reason else "+", ", ".join(names), reason, indent=4)


def _choices() -> dict[str, dict[str, dict[str, object]]]:
    """Axis -> what it offers -> the fields of a variant that choose it."""
    from typing import get_args

    from qbench.recipe import schema
    from qbench.recipe.choices import ENGINES, Attention, CacheKind
    from qbench.recipe.variant import Cache, Compile, Decode, Memory

    offloads = get_args(Memory.model_fields["offload"].annotation)[0]
    return {
        **{
            f"quantization by {backend}": {scheme: _scheme(backend, scheme) for scheme in schemes}
            for backend, schemes in schema.SCHEMES.items()
        },
        "attention": {kind: {"attention": kind} for kind in get_args(Attention) if kind != "auto"},
        "cache": {  # unchecked: that each needs a field besides is no reason
            kind: {"cache": Cache.model_construct(kind=kind)} for kind in get_args(CacheKind)
        },
        "compilation": {
            "compile": {"compile": Compile()},
            "cuda_graph": {"cuda_graph": True},
            **{f"engine {name}": {"engine": name} for name in ENGINES},
        },
        "memory": {
            **{f"offload {kind}": {"memory": Memory(offload=kind)} for kind in get_args(offloads)},
            **{
                name: {"memory": Memory.model_validate({name: True})}
                for name, field in Memory.model_fields.items()
                if field.annotation is bool
            },
        },
        "decode": {
            name: {"decode": Decode.model_validate({name: True})} for name in Decode.model_fields
        },
    }


def _rules_here(console: Console, machine: Machine) -> None:
    from qbench import support

    _head(console, "what recipes need of this machine: what it has (+), and what it lacks (-)")
    for rule in support.RULES:
        if rule.by_machine:
            here = rule.holds(machine)
            _rule(console, "+" if here else "-", rule.about, "" if here else rule.reason)


def _scheme(backend: str, scheme: str) -> dict[str, object]:
    """The fields of a variant with this scheme, unchecked: some need a calibration."""
    from qbench.recipe.choices import ENGINES
    from qbench.recipe.schema import Quantize

    quantize = Quantize.model_construct(backend=backend, scheme=scheme)  # type: ignore[arg-type]
    return {"quantize": quantize, "engine": backend if backend in ENGINES else None}


def _why_not(machine: Machine, fields: dict[str, object]) -> str:
    """Why this machine cannot run a variant with these fields in any dtype; empty where it can."""
    from typing import get_args

    from qbench import support
    from qbench.recipe.schema import Variant
    from qbench.recipe.variant import Dtype

    reasons = [
        support.why_not(Variant.model_construct(**{"dtype": dtype, **fields}), machine)
        for dtype in reversed(get_args(Dtype))  # few kernels take FP32: that is no reason to give
    ]
    return "" if None in reasons else str(reasons[0])


def _hub(source: str) -> str:
    """Why a hub model is not here, empty where its files are in the cache."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "model_index.json")
    return "" if isinstance(cached, str) else f"not downloaded; fetched from the hub ({source})"


def _head(console: Console, text: str) -> None:
    _say(console, text, "bold")


def _rule(console: Console, mark: str, about: str, reason: str, indent: int = 2) -> None:
    """A rule's name, or choices, and the reason that a skipped row shows."""
    from rich.text import Text

    colour = "green" if mark == "+" else "yellow"
    said = (f": {one_line(reason)}", colour) if reason else ""
    console.print(
        Text.assemble(" " * indent, (mark, colour), f" {one_line(about)}", said), soft_wrap=True
    )


def _line(console: Console, name: str, about: str, why_not: str, width: int = 28) -> None:
    from rich.text import Text

    mark = ("-", "yellow") if why_not else ("+", "green")
    name = f"{one_line(name):<{width}}"
    parts: list[str | tuple[str, str]] = ["  ", mark, f" {name} {one_line(about)}"]
    if why_not:
        said = one_line(why_not)
        parts.append((f" ({said})" if about else said, "yellow"))
    console.print(Text.assemble(*parts), soft_wrap=True)


def _say(console: Console, text: str, style: str = "") -> None:
    from rich.text import Text

    console.print(Text(text, style=style), soft_wrap=True)
