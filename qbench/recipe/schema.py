"""The recipe: its schema. How a file becomes one is in `files`.

A recipe changes one thing on a shared base, so it is short; what a record stores is the resolved
form with every field, so nothing about a run is implicit. A field left null takes the model's own
default (steps, guidance, prompts ...), which the record shows too.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qbench.errors import brief, nearest

MAX_NAME = 80
SET_COUNT = 12  # prompts of a set where a recipe says no number

Dtype = Literal["fp32", "fp16", "bf16"]
Weights = Literal["pretrained", "random"]  # random: true size, no download, no quality
Attention = Literal[
    "auto", "math", "flash", "efficient", "cudnn", "flash-3", "flash-4", "sage", "xformers", "fp8"
]
Verdict = Literal["indistinguishable", "drift", "unverified", "degraded", "broken"]
Fault = Literal[
    "scale_doubled",
    "block_skipped",
    "norms_fp8",
    "last_frames_repeated",
    "channels_swapped",
    "black",
    "reversed",
    "mirrored",
    "half_speed",
    "second_frames_repeated",
    "frames_out_of_order",
    "frozen",
    "first_half_other_seed",
    "blurred",
    "sharpened",
    "contrast_lowered",
    "contrast_raised",
    "darkened",
    "desaturated",
    "tinted",
    "grainy",
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
    "qbench": ("fp8_dynamic_row",),
    "onnxruntime": ("int8_dynamic",),
}


class Strict(BaseModel):
    """Unknown keys and wrong types are errors: a typo must not silently change a measurement."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Quantize(Strict):
    """Which linears become what. `include` and `exclude` match parts of module names."""

    backend: Literal["torchao", "quanto", "qbench", "onnxruntime"]
    scheme: str
    include: list[str] = []
    exclude: list[str] = []
    # torchao's configs switch on inductor's autotuning for the whole process. Its published
    # recipes run so; here it made the first call with FP8 take minutes and gained nothing.
    tune: bool = False

    @model_validator(mode="after")
    def _known_scheme(self) -> Quantize:
        if self.scheme not in SCHEMES[self.backend]:
            hint = nearest(self.scheme, SCHEMES[self.backend])
            raise ValueError(f"@scheme: {self.backend} has no scheme {brief(self.scheme)}{hint}")
        return self


class Compile(Strict):
    """torch.compile: `blocks` compiles the repeated block once, `model` the whole denoiser."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    scope: Literal["blocks", "model"] = "blocks"
    fullgraph: bool = False

    @property
    def captures_graphs(self) -> bool:
        """Whether CUDA graphs are captured: they replay in memory that torch counts as free."""
        return self.mode in ("reduce-overhead", "max-autotune")


class Cache(Strict):
    """Reuse of what earlier denoise steps computed, by diffusers' hooks.

    `taylorseer` and `pab` compute every `interval`-th step in full; `first_block` skips a step
    where the first block's residual moved by less than `threshold`; `faster` also predicts the
    unconditional half of the batch. All but `first_block` compute the last step in full.
    """

    kind: Literal["first_block", "pab", "faster", "taylorseer"]
    interval: Annotated[int, Field(ge=2, le=100)] | None = None
    threshold: Annotated[float, Field(gt=0, le=10)] | None = None

    @model_validator(mode="after")
    def _own_field(self) -> Cache:
        needed, other = "interval", "threshold"
        if self.kind == "first_block":
            needed, other = other, needed
        if getattr(self, needed) is None:
            raise ValueError(f"@kind: {self.kind} needs a field '{needed}'")
        if getattr(self, other) is not None:
            raise ValueError(f"@{other}: {self.kind} has no such field; it has '{needed}'")
        return self

    @property
    def by_content(self) -> bool:
        """Whether the latents decide which steps are skipped: all that is in a batch, together."""
        return self.kind == "first_block"


class Memory(Strict):
    """What is traded for memory outside the denoiser."""

    offload: Literal["model", "sequential", "group"] | None = None
    vae_tiling: bool = False
    vae_slicing: bool = False
    # torch's allocator grows its segments instead of adding others: fragments are not lost.
    expandable_segments: bool = False


class Decode(Strict):
    """What is changed about the VAE's decode, which every variant ends with.

    `fused` computes CogVideoX's decoder with qbench's own kernels, in a quarter of the time and
    less than half of the memory; the VAE of another family decodes as without it. `split_norms`
    reduces each group of a group norm in parts: torch gives a group one block of threads, so the 32
    groups of a VAE leave most of a large GPU idle. `strips` has each layer work through its rows in
    strips, which takes less memory on any GPU and, unlike tiles, makes the same video.
    """

    fused: bool = False
    split_norms: bool = False
    strips: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Decode:
        if self.fused and self.strips:
            raise ValueError("@strips: fused decodes in as little memory; choose one of the two")
        return self


class Variant(Strict):
    """One variant of the denoiser, axis by axis."""

    dtype: Dtype = "fp32"
    fuse_qkv: bool = False  # one linear for query, key and value
    quantize: Quantize | None = None
    attention: Attention = "auto"
    cache: Cache | None = None
    compile: Compile | None = None
    memory: Memory = Memory()
    decode: Decode = Decode()
    # The honest control of every speed-up: this share of the reference's denoise steps.
    step_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    # Video n gets the initial noise of video n + seed_offset: the noise floor of another seed,
    # and, as a planted fault, the pairing off by one.
    seed_offset: Annotated[int, Field(ge=0, lt=2**31)] = 0
    fault: Fault | None = None  # damage on purpose, to see that it is caught
    engine: Literal["onnxruntime", "tensorrt"] | None = None

    def arithmetic(self) -> set[str]:
        """The dtypes in which products are computed: fp32, fp16, bf16, fp8, int8."""
        kinds = {str(self.dtype)}
        if self.attention == "fp8" or (self.quantize and "fp8_dynamic" in self.quantize.scheme):
            kinds.add("fp8")
        if self.quantize and self.quantize.scheme == "int8_dynamic":
            kinds.add("int8")
        return kinds

    @model_validator(mode="after")
    def _possible(self) -> Variant:
        if self.engine and self.compile:
            raise ValueError("@compile: an engine replaces the module, so there is none to compile")
        if self.engine and self.attention != "auto":
            raise ValueError("@attention: an engine brings its own attention kernel")
        if self.engine and (self.fuse_qkv or self.cache or self.fault):
            field = "fuse_qkv" if self.fuse_qkv else "cache" if self.cache else "fault"
            raise ValueError(f"@{field}: an engine replaces the modules that this one changes")
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
    # CogVideoX's pipeline can raise guidance from 1 to `guidance` over the steps.
    dynamic_cfg: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Prompts(Strict):
    """A shipped set by name, or a file of prompts; null is the model's own set.

    A null count is the first twelve prompts of a set, and all prompts of a file.
    """

    set: str | None = None
    count: Annotated[int, Field(ge=1, le=100_000)] | None = None


class Measure(Strict):
    """How a run is timed: `repeats` videos or denoise steps one by one, after `warmup` more.

    `interleave` has the reference take its turn before each of them, in a process of its own on
    the same device, so that drift of the machine cancels. Without `timing` the machine does other
    things besides, so reports show no latency.
    """

    unit: Literal["video", "step"] = "video"
    repeats: Annotated[int, Field(ge=1, le=900)] = 12
    warmup: Annotated[int, Field(ge=0, le=99)] = 1
    interleave: bool = False
    timing: bool = True
    profile: bool = True  # one more step under torch's profiler, for `qbench explain`
    # A smaller card, simulated: what torch may take is this less what CUDA itself takes of a card.
    memory_limit_gib: Annotated[float, Field(gt=1, le=65_536)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=31_536_000)] = 3600.0  # at most a year


class Fvd(Strict):
    """The protocol of FVD and KVD, for the value changes with every part of it.

    network: `i3d` (after `qbench weights fetch i3d`), `probe` (the bundled world's own), or the
    path of a TorchScript I3D; `auto` is the probe for the bundled model, else i3d.
    """

    network: str = "auto"
    layer: Literal["logits", "features"] = "logits"
    frames: Annotated[int, Field(ge=2, le=1000)] | None = None  # the first so many; null is all
    stride: Annotated[int, Field(ge=1, le=100)] = 1
    resize: Literal["bilinear", "bilinear-antialias", "bicubic-antialias"] = "bilinear"
    crop: Literal["none", "centre"] = "none"  # none stretches to the square, as FVD's authors do


class Margin(Strict):
    """A difference that does not matter.

    size is in the metric's unit (`unit`), or a share of the reference's mean (`reference`) or of
    the standard deviation over the reference's videos (`spread`).
    """

    size: Annotated[float, Field(gt=0)]
    of: Literal["unit", "reference", "spread"] = "unit"


# What metrics and margins were called in recipes and records of earlier versions.
RENAMED = {"following": "adherence", "psnr_db": "psnr"}


class Quality(Strict):
    """What is computed on the videos. The videos past `measure.repeats` come `batch` at a time.

    The names of metrics and margins are those of the table of metrics, which checks them
    (`catalogue.check`). A margin that is a number alone is in the metric's unit; flicker's is a
    share of the reference's mean.
    """

    metrics: list[str] | None = None  # null is all of qbench's own
    batch: Annotated[int, Field(ge=1, le=4096)] = 8
    clip: str | None = None  # CLIP or SigLIP, a hub id or a folder; null is the model's own
    lpips: Literal["alex", "vgg"] = "alex"
    fvd: Fvd = Fvd()
    margins: dict[str, Annotated[float, Field(gt=0)] | Margin] = {}  # those left out: the table's
    trajectories: Annotated[int, Field(ge=0, le=64)] = 2  # videos whose error is followed by step

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
_UNMEASURED: dict[str, bool | set[str]] = {
    **dict.fromkeys(_LABELS, True),
    "measure": {"timeout_s"},
}


class Recipe(Strict):
    """One variant of the denoiser, and how it is measured."""

    name: str
    about: str = ""
    reference: str | None = "fp32"
    # The reference in another guise (compiled, another kernel, another seed): its distance from
    # the reference is what no difference looks like.
    noise_floor: bool = False
    expects: Verdict | None = None  # what a planted fault, or a control, deserves
    model: str = "tiny-cogvideox"
    weights: Weights = "pretrained"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    variant: Variant = Variant()
    generation: Generation = Generation()
    prompts: Prompts = Prompts()
    measure: Measure = Measure()
    quality: Quality = Quality()

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
    def is_reference(self) -> bool:
        return self.reference is None or self.reference == self.name

    def fingerprint(self) -> str:
        """Identifies what is measured: every field that a figure depends on."""
        return digest(self._measured(_UNMEASURED))

    def settings_fingerprint(self) -> str:
        """Identifies how it is measured. Only runs that share it may share a ranking."""
        return digest(self._measured({**_UNMEASURED, "variant": True}))

    def _measured(self, left_out: dict[str, bool | set[str]]) -> dict[str, object]:
        facts: dict[str, object] = self.model_dump(mode="json", exclude=left_out)
        if self.prompts.count is None:  # which prompts these are has a digest of its own
            facts["prompts"] = {"set": self.prompts.set, "count": SET_COUNT}
        return facts


def digest(facts: object) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the facts as canonical JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
