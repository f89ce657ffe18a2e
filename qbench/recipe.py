"""The recipe: its schema, how a file becomes one, and errors that name file and line.

A recipe changes one thing on a shared base, so it is short; what a record stores is the resolved
form with every field, so nothing about a run is implicit. A field left null takes the model's own
default (steps, guidance, prompts ...), which the record shows too.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qbench.errors import InputError, nearest

Dtype = Literal["fp32", "fp16", "bf16"]
Metric = Literal[
    "clip_score", "fvd_reference", "fvd_rendered", "psnr", "ssim", "latent_error", "following"
]
SCHEMES: dict[str, tuple[str, ...]] = {
    "torchao": (
        "int8_weight_only",
        "int8_dynamic",
        "fp8_weight_only",
        "fp8_dynamic_row",
        "fp8_dynamic_tensor",
        "int4_weight_only",
        "int2_weight_only",
    ),
    "quanto": ("int8_weight_only", "int4_weight_only", "int2_weight_only", "fp8_weight_only"),
    "onnxruntime": ("int8_dynamic",),
}
MAX_BYTES = 65536  # a recipe is a page; anything larger is not one


class Strict(BaseModel):
    """Unknown keys and wrong types are errors: a typo must not silently change a measurement."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Quantize(Strict):
    """Which linears become what. `include` and `exclude` match parts of module names."""

    backend: Literal["torchao", "quanto", "onnxruntime"]
    scheme: str
    include: list[str] = []
    exclude: list[str] = []

    @model_validator(mode="after")
    def _known_scheme(self) -> Quantize:
        if self.scheme not in SCHEMES[self.backend]:
            hint = nearest(self.scheme, SCHEMES[self.backend])
            raise ValueError(f"@scheme: {self.backend} has no scheme {self.scheme!r}{hint}")
        return self


class Compile(Strict):
    """torch.compile: `blocks` compiles the repeated block once, `model` the whole denoiser."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    scope: Literal["blocks", "model"] = "blocks"


class Memory(Strict):
    """What is traded for memory outside the denoiser."""

    offload: Literal["model", "sequential"] | None = None
    vae_tiling: bool = False
    vae_slicing: bool = False


class Variant(Strict):
    """One variant of the denoiser, axis by axis."""

    dtype: Dtype = "fp32"
    quantize: Quantize | None = None
    attention: Literal["auto", "math", "flash", "efficient", "cudnn"] = "auto"
    compile: Compile | None = None
    memory: Memory = Memory()
    engine: Literal["onnxruntime", "tensorrt"] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Variant:
        if self.engine and self.compile:
            raise ValueError("@compile: an engine replaces the module, so there is none to compile")
        if self.engine and self.attention != "auto":
            raise ValueError("@attention: an engine brings its own attention kernel")
        if self.engine and self.memory.offload:
            raise ValueError("@memory: an engine's weights cannot be offloaded by diffusers")
        by_engine = self.quantize is not None and self.quantize.backend == "onnxruntime"
        if by_engine and self.engine != "onnxruntime":
            raise ValueError("@quantize: the onnxruntime backend needs 'engine: onnxruntime'")
        if self.engine and self.quantize and not by_engine:
            raise ValueError(
                f"@quantize: tensors of {self.quantize.backend} do not pass an ONNX export; "
                "quantize with backend onnxruntime, or leave out the engine"
            )
        return self


class Generation(Strict):
    """What is generated. A null takes the model's default."""

    frames: Annotated[int, Field(ge=1, le=1000)] | None = None
    height: Annotated[int, Field(ge=16, le=8192)] | None = None
    width: Annotated[int, Field(ge=16, le=8192)] | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    scheduler: Literal["ddim", "dpm"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Prompts(Strict):
    """A shipped set by name, or a text file with one prompt a line; null is the model's own set."""

    set: str | None = None
    count: Annotated[int, Field(ge=1, le=100_000)] = 12


class Measure(Strict):
    """How a run is timed: `repeats` videos one by one, after `warmup` more than the first call."""

    repeats: Annotated[int, Field(ge=1, le=10_000)] = 12
    warmup: Annotated[int, Field(ge=0, le=1000)] = 1
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0


class Quality(Strict):
    """What is computed on the videos. The videos past `measure.repeats` come `batch` at a time."""

    metrics: list[Metric] | None = None
    batch: Annotated[int, Field(ge=1, le=4096)] = 8
    clip: str | None = None  # a hub id or a folder; null is the model's own


class Recipe(Strict):
    """One variant of the denoiser, and how it is measured."""

    name: str
    about: str = ""
    reference: str | None = "fp32"
    model: str = "tiny-cogvideox"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    variant: Variant = Variant()
    generation: Generation = Generation()
    prompts: Prompts = Prompts()
    measure: Measure = Measure()
    quality: Quality = Quality()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", name):
            raise ValueError(
                f"{name!r} is not a plain name: letters, digits, '.', '_', '+' and '-', no path"
            )
        return name

    @property
    def is_reference(self) -> bool:
        return self.reference is None or self.reference == self.name

    def fingerprint(self) -> str:
        """Identifies what is measured: every field but the name and the description."""
        facts = self.model_dump(mode="json", exclude={"name", "about", "reference"})
        return digest(facts)

    def settings_fingerprint(self) -> str:
        """Identifies how it is measured. Only runs that share it may share a ranking."""
        facts = self.model_dump(mode="json", exclude={"name", "about", "variant", "reference"})
        return digest(facts)


def digest(facts: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the facts as canonical JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# From a file to a recipe -------------------------------------------------------------------------

Path_ = tuple[str | int, ...]
Places = dict[Path_, str]  # where each value was written: 'recipes/int8.yaml:5' or '--set'


def load(path: Path, overrides: dict[str, str] | None = None) -> Recipe:
    """The recipe of a file, its bases merged in and `overrides` ({'variant.dtype': 'bf16'}) last.

    Raises InputError: one line with file, line number and the nearest valid word.
    """
    values, places = _merged(path, ())
    for key, text in (overrides or {}).items():
        _override(values, places, key, text)
    values.setdefault("name", path.stem)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(_first(error, places, path)) from None


def overrides(pairs: list[str]) -> dict[str, str]:
    """['a.b=c'] as {'a.b': 'c'}."""
    found = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {pair}: expected field=value, as in variant.dtype=bf16")
        found[key.strip()] = value
    return found


def _merged(path: Path, chain: tuple[Path, ...]) -> tuple[dict[str, Any], Places]:
    resolved = path.resolve()
    values, places = _read(path)
    base_name = values.pop("extends", None)
    if base_name is None:
        return values, places
    where = places.get(("extends",), str(path))
    if not isinstance(base_name, str):
        raise InputError(f"{where}: 'extends' takes a file name, not {base_name!r}")
    base = path.parent / base_name
    if not base.resolve().is_relative_to(resolved.parent.parent):
        raise InputError(f"{where}: 'extends: {base_name}' leads out of the recipes' folder")
    if not base.is_file():
        there = [item.name for item in path.parent.glob("*.y*ml")]
        raise InputError(f"{where}: no file {base_name!r} to extend{nearest(base_name, there)}")
    lineage = (*chain, resolved)
    if base.resolve() in lineage:
        loop = " -> ".join(item.name for item in (*lineage, base.resolve()))
        raise InputError(f"{where}: 'extends' goes round in a circle: {loop}")
    below, below_places = _merged(base, lineage)
    below.pop("name", None)
    below.pop("about", None)
    return _layered(below, values), {**below_places, **places}


def _layered(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _layered(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _read(path: Path) -> tuple[dict[str, Any], Places]:
    import yaml

    if not path.is_file():
        there = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such recipe{nearest(path.name, there)}")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES} bytes, which no recipe is")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        for token in yaml.scan(text):
            kind = {
                yaml.TagToken: "YAML tags are",
                yaml.AliasToken: "YAML aliases are",
                yaml.AnchorToken: "YAML anchors are",
            }.get(type(token))
            if kind:
                line = token.start_mark.line + 1
                raise InputError(f"{path}:{line}: {kind} not accepted; write the value plainly")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    places: Places = {}
    values = {} if node is None else _plain(node, (), path, places)
    if not isinstance(values, dict):
        raise InputError(f"{path}:1: a recipe is a mapping of fields, as in 'name: int8'")
    return values, places


def _plain(node: Any, at: Path_, path: Path, places: Places) -> Any:
    """A YAML node as plain data, with the line of each value noted."""
    import yaml

    places.setdefault(at, f"{path}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*at, i), path, places) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in found:
                raise InputError(f"{path}:{line}: {key!r} stands twice")
            places[(*at, key)] = f"{path}:{line}"
            found[key] = _plain(value_node, (*at, key), path, places)
        return found
    if node.tag == "tag:yaml.org,2002:timestamp":
        return node.value
    return yaml.SafeLoader("").construct_object(node)


def _override(values: dict[str, Any], places: Places, key: str, text: str) -> None:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {key}={text}: the value is not YAML") from None
    parts = key.split(".")
    place: dict[str, Any] = values
    for part in parts[:-1]:
        inner = place.get(part)
        place[part] = dict(inner) if isinstance(inner, dict) else {}
        place = place[part]
    place[parts[-1]] = value
    for depth in range(1, len(parts) + 1):
        places.setdefault(tuple(parts[:depth]), f"--set {key}={text}")
    places[tuple(parts)] = f"--set {key}={text}"


def _first(error: ValidationError, places: Places, path: Path) -> str:
    """The first thing that is wrong, as one line."""
    detail = error.errors()[0]
    at: Path_ = tuple(part for part in detail["loc"] if part != "function-after")
    message, kind = detail["msg"], detail["type"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        message = f"unknown field{nearest(str(at[-1]), _fields(at[:-1]))}"
    elif kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        message = f"{detail['input']!r} is not a choice{nearest(str(detail['input']), choices)}"
    elif kind == "value_error":
        message = str(context["error"])
        if message.startswith("@"):  # raised for a whole section: the field at fault leads
            field, _, message = message[1:].partition(": ")
            at = (*at, field)
    elif kind == "missing":
        message = "this field is required"
    elif kind.endswith(("_type", "_parsing")):
        message = f"{message[0].lower()}{message[1:]}, not {detail['input']!r}"
    where = next((places[at[:n]] for n in range(len(at), -1, -1) if at[:n] in places), str(path))
    return f"{where}: {'.'.join(map(str, at)) or 'recipe'}: {message}"


def _fields(at: Path_) -> list[str]:
    """Names of the fields that the section at this place has."""
    model: Any = Recipe
    for part in at:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        inner = [annotation, *get_args(annotation)]
        found = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        if not found:
            return []
        model = found[0]
    return [*model.model_fields, "extends"] if model is Recipe else list(model.model_fields)
