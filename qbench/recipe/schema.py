"""The recipe: its schema. How a file becomes one is in `files`, the axes of a variant in `variant`.

A recipe changes one thing on a shared base, so it is short; what a record stores is the resolved
form with every field, so nothing about a run is implicit. A field left null takes the model's own
default (steps, guidance, prompts ...), which the record shows too.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from qbench.errors import brief
from qbench.recipe.choices import SCHEMES
from qbench.recipe.quantize import Calibration, Quantize
from qbench.recipe.strict import Named, Strict
from qbench.recipe.variant import (
    Attention,
    Cache,
    Compile,
    Decode,
    Dtype,
    EngineOptions,
    Exported,
    Fault,
    Memory,
    Parallel,
    SparseAttention,
    Variant,
)

__all__ = [
    "SCHEMES",
    "Attention",
    "Cache",
    "Calibration",
    "Compile",
    "Decode",
    "Dtype",
    "EngineOptions",
    "Exported",
    "Fault",
    "Fvd",
    "Generation",
    "Margin",
    "Measure",
    "Memory",
    "Outliers",
    "Parallel",
    "Prompts",
    "Quality",
    "Quantize",
    "Recipe",
    "SparseAttention",
    "Strict",
    "Variant",
    "Verdict",
    "Weights",
    "digest",
]

MAX_NAME = 80
SET_COUNT = 12  # prompts of a set where a recipe says no number

Weights = Literal["pretrained", "random"]
Verdict = Literal["indistinguishable", "drift", "unverified", "degraded", "broken"]


class Outliers(Strict):
    """Outlier channels for weights that have none.

    Channels of activations are multiplied and the weights that read them divided, so that the FP32
    denoiser computes the same. Trained transformers have such channels, and the bundled model,
    which is small, has not: on it methods against outliers would show nothing.
    """

    factor: Annotated[float, Field(gt=1, le=100_000)]
    """The largest factor; the others lie between a third of it and it."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.01
    """Of the channels of each activation; one at least."""


class Generation(Strict):
    """What is generated. A null takes the model's default."""

    frames: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Frames of a video."""
    height: Annotated[int, Field(ge=16, le=8192)] | None = None
    """In pixels."""
    width: Annotated[int, Field(ge=16, le=8192)] | None = None
    """In pixels."""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Denoise steps."""
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None
    """Scale of classifier-free guidance; at 1 and below there is none."""
    scheduler: Literal["ddim", "dpm"] | None = None
    """The sampler."""
    dynamic_cfg: bool = False
    """Raise guidance from 1 to `guidance` over the steps, as CogVideoX's pipeline can."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the first video; video n has seed + n."""


class Prompts(Strict):
    """Which prompts videos are generated from."""

    set: Named | None = None
    """A shipped set by name, `vbench`, or a file: text with a prompt a line, JSON or JSON lines.
    Null is the model's own set."""
    count: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """The first so many. Null is twelve of a set, and all of a file."""


class Measure(Strict):
    """How a run is timed."""

    unit: Literal["video", "step"] = "video"
    """Whole videos, or denoise steps alone, which say nothing about quality."""
    repeats: Annotated[int, Field(ge=1, le=900)] = 12
    """Timed videos or steps, one by one."""
    warmup: Annotated[int, Field(ge=0, le=99)] = 1
    """Videos or steps before them, after the first call."""
    interleave: bool = True
    """Have the reference take its turn beside each of them, in a process of its own on the same
    device, so that drift of the machine cancels. Where memory has no room for both, the record says
    so."""
    timing: bool = True
    """False where the machine does other things besides: reports then show no latency."""
    profile: bool = True
    """Run one more step under a profiler, torch's or the engine's own, for `qbench explain`."""
    memory_limit_gib: Annotated[float, Field(gt=1, le=65_536)] | None = None
    """Simulate a smaller card: torch may take this less what CUDA itself takes of a card."""
    timeout_s: Annotated[float, Field(gt=0, le=31_536_000)] = 3600.0
    """A run that takes longer is ended and recorded as `timeout`."""
    load_timeout_s: Annotated[float, Field(gt=0, le=31_536_000)] = 900.0
    """The same for the loading of a model from a folder."""
    warm_start: bool = True
    """Time the first call of a compiled variant again, in a second process that finds the
    compilers' caches filled."""


class Fvd(Strict):
    """The protocol of FVD and KVD, for the value changes with every part of it."""

    network: str = "auto"
    """`i3d` (after `qbench weights fetch i3d`), `probe` (the bundled world's own), or the path of a
    TorchScript I3D; `auto` is the probe for the bundled model, else i3d."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    """Of that TorchScript file: a program that runs as it is loaded, so only a known one is."""
    layer: Literal["logits", "features"] = "logits"
    """The 400 logits, or the 1,024 pooled features."""
    frames: Annotated[int, Field(ge=2, le=1000)] | None = None
    """The first so many; null is all."""
    stride: Annotated[int, Field(ge=1, le=100)] = 1
    """Every so many of them."""
    resize: Literal["bilinear", "bilinear-tf1", "bilinear-antialias", "bicubic-antialias"] = (
        "bilinear"
    )
    """How frames come to 224x224. `bilinear-tf1` samples at corners of pixels, as the authors'
    TensorFlow 1 does, the others at centres; `-antialias` after a low-pass."""
    crop: Literal["none", "centre"] = "none"
    """`none` stretches to the square, as FVD's authors do."""


class Margin(Strict):
    """A difference that does not matter."""

    size: Annotated[float, Field(gt=0)]
    """How large it is."""
    of: Literal["unit", "reference", "spread"] = "unit"
    """In the metric's unit, or as a share of the reference's mean, or of the standard deviation
    over the reference's videos."""


# What metrics and margins were called in recipes and records of earlier versions.
RENAMED = {"following": "adherence", "psnr_db": "psnr"}


class Quality(Strict):
    """What is computed on the videos.

    The names of metrics and margins are those of the table of metrics, which checks them
    (`catalogue.check`).
    """

    metrics: list[str] | None = None
    """Metrics by name (`qbench ls`); null is all of qbench's own."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 8
    """Videos generated at a time past the timed ones."""
    clip: Named | None = None
    """CLIP or SigLIP, a hub id or a folder; null is the model's own."""
    lpips: Literal["alex", "vgg"] = "alex"
    """The network of LPIPS."""
    fvd: Fvd = Fvd()
    """The protocol of FVD and KVD."""
    margins: dict[str, Annotated[float, Field(gt=0)] | Margin] = Field(default={})
    """Differences that do not matter, by metric, in its unit or as `size` and `of`; those left out
    have the metric's own."""
    trajectories: Annotated[int, Field(ge=0, le=64)] = 2
    """Videos whose latents are compared with the reference's after every step."""

    @field_validator("metrics", "margins", mode="before")
    @classmethod
    def _renamed(cls, names: object) -> object:
        if isinstance(names, list):
            return [RENAMED.get(n, n) if isinstance(n, str) else n for n in names]
        if isinstance(names, dict):
            return {RENAMED.get(name, name): value for name, value in names.items()}
        return names


# What a recipe says about itself, where it is asked to run and for how long: it changes nothing
# that is measured. (The machine that it ran on has a fingerprint of its own.)
_LABELS = ("name", "about", "reference", "noise_floor", "expects", "device")
Left = bool | set[str] | dict[str, set[str]]
_UNMEASURED: dict[str, Left] = {
    **dict.fromkeys(_LABELS, True),
    "variant": {"exported": {"folder"}},  # its SHA-256 says what it is
    "measure": {"timeout_s", "load_timeout_s", "warm_start"},
}


class Recipe(Strict):
    """One variant of the denoiser, and how it is measured."""

    name: str
    """Words joined by '/'. A file that says none has its path below the folder of its base."""
    about: str = ""
    """One line for tables and lists."""
    reference: str | None = "fp32"
    """Name of the recipe that this one is compared with; null, or its own name, where it is one."""
    noise_floor: bool = False
    """The reference in another guise (compiled, another kernel, another seed): its distance from
    the reference is what no difference looks like."""
    expects: Verdict | None = None
    """The verdict that a planted fault, or a control, has to get."""
    model: str = "tiny-cogvideox"
    """A known name (`qbench ls`), a hub id, or a folder in diffusers' layout."""
    weights: Weights = "pretrained"
    """`random` makes the model at its true size without a download: latency and memory alone."""
    weights_variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,40}$")] | None = None
    """Of the weights' files: `fp16` reads `diffusion_pytorch_model.fp16.safetensors`."""
    outliers: Outliers | None = None
    """Outlier channels that the denoiser's weights are given as they are loaded."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; `auto` is the GPU where there is one."""
    variant: Variant = Variant()
    """What is changed about the model."""
    generation: Generation = Generation()
    """What is generated."""
    prompts: Prompts = Prompts()
    """From which prompts."""
    measure: Measure = Measure()
    """How it is timed."""
    quality: Quality = Quality()
    """What is computed on the videos."""

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        word = "[A-Za-z0-9][A-Za-z0-9._+-]*"
        if len(name) > MAX_NAME or not re.fullmatch(f"{word}(/{word})*", name):
            raise ValueError(
                f"{brief(name)} is not a recipe's name: letters, digits, '.', '_', '+' and '-', "
                f"in words joined by '/', {MAX_NAME} characters at most, and no path"
            )
        return name

    @property
    def plain_name(self) -> str:
        """The name as part of a file's name."""
        return self.name.replace("/", "-")

    @property
    def mixes_steps(self) -> bool:
        """Whether steps are timed one by one and a cache makes them of two kinds.

        Pairs of such steps say nothing about a video.
        """
        return self.measure.unit == "step" and self.variant.cache is not None

    @property
    def is_reference(self) -> bool:
        return self.reference is None or self.reference == self.name

    def fingerprint(self) -> str:
        """Identifies what is measured: every field that a figure depends on."""
        return self.both_fingerprints()[0]

    def settings_fingerprint(self) -> str:
        """Identifies how it is measured. Only runs that share it may share a ranking."""
        return self.both_fingerprints()[1]

    def both_fingerprints(self) -> tuple[str, str]:
        """`fingerprint` and `settings_fingerprint`, for half the time that they take apart."""
        facts = self._measured()
        return digest(facts), digest({k: v for k, v in facts.items() if k != "variant"})

    def measured_settings(self) -> dict[str, object]:
        """The fields that runs must share to be compared: all that is measured but the variant."""
        return {k: v for k, v in self._measured().items() if k != "variant"}

    def _measured(self) -> dict[str, object]:
        facts: dict[str, object] = self.model_dump(mode="json", exclude=_UNMEASURED)
        variant = facts["variant"]
        assert isinstance(variant, dict)
        _as_before(self, facts, "outliers")
        _as_before(self.variant, variant, "sparse_attention", "cuda_graph")
        _as_before(self.variant.quantize, variant["quantize"], "group", "calibration", "layers")
        options = self.variant.engine_options
        _as_before(options, variant["engine_options"], "compute_capability", "cache")
        if self.prompts.count is None:  # which prompts these are has a digest of its own
            facts["prompts"] = {"set": self.prompts.set, "count": SET_COUNT}
        return facts


def _as_before(model: Strict | None, facts: dict[str, object], *later: str) -> None:
    """Take fields that came later out of the model's facts, where they have their defaults."""
    if model is None:
        return
    fields = type(model).model_fields
    for name in later:
        if getattr(model, name) == fields[name].get_default(call_default_factory=True):
            del facts[name]


def digest(facts: object) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the facts as canonical JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
