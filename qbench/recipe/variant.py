"""The schema of a variant: what a recipe changes about the denoiser and what surrounds it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from qbench.recipe.choices import (
    AS_MODULE,
    BY_CONTENT,
    CACHE_FIELDS,
    ENGINES,
    SPARSE,
    Attention,
    CacheKind,
    EngineName,
    ExportFormat,
)
from qbench.recipe.quantize import Quantize
from qbench.recipe.strict import Strict

Dtype = Literal["fp32", "fp16", "bf16"]
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


class Compile(Strict):
    """torch.compile."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        "default"
    )
    """torch.compile's own."""
    scope: Literal["blocks", "model"] = "blocks"
    """`blocks` compiles the repeated block once, `model` the whole denoiser."""
    fullgraph: bool = False
    """Fail where the graph breaks."""

    @property
    def captures_graphs(self) -> bool:
        """Whether torch captures CUDA graphs of what it compiled."""
        return self.mode in ("reduce-overhead", "max-autotune")


class SparseAttention(Strict):
    """Attention that leaves out blocks of keys which weigh next to nothing.

    A block is 64 queries and 128 keys (192 in heads of 128 channels). Its scores are computed, its
    weights and what they would add are not where all of them are below `threshold` times the
    largest of their row so far.
    """

    threshold: Annotated[float, Field(ge=0, lt=1)]
    """0 leaves out nothing, and up to 0.00003 only what FP8 rounds to zero."""
    dense_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """This share of the denoise steps, the first ones, leaves out nothing."""


class Cache(Strict):
    """Reuse of what earlier denoise steps computed.

    `taylorseer` predicts all but every `interval`-th step, `pab` reuses attention there and
    `faster` also predicts the unconditional half of the batch. The others skip steps up to a
    `threshold`: `first_block` by how far the first block's residual moved, `dbcache` (cache-dit) by
    that of several, `sea` by how far the filtered latents did, `mag` by magnitudes that were
    calibrated. Null is each method's own default.
    """

    kind: CacheKind
    """The method."""
    interval: Annotated[int, Field(ge=2, le=100)] | None = None
    """Every so many steps one is computed in full; for `taylorseer`, `pab` and `faster`."""
    threshold: Annotated[float, Field(gt=0, le=10)] | None = None
    """Relative change, or accumulated error, below which steps are skipped; for the others."""
    first: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Steps at the start that are computed in full; null is 3 for `taylorseer`, a fifth of all for
    `mag`, 1 for `sea` and 8 for `dbcache`."""
    last: bool = True
    """Compute the last step in full, whose output is the video; false leaves it to the method."""
    longest: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Steps that are skipped one after another, at most; null is 3 for `mag`, 2 for `sea` and any
    number for `dbcache`."""
    order: Annotated[int, Field(ge=0, le=3)] | None = None
    """Of the prediction, 0 being reuse; null is 1 for `taylorseer` and `sea`, 0 for `dbcache`."""
    front: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Blocks that `dbcache` computes in every step, by which it decides; null is 8."""
    back: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Blocks at the end that `dbcache` computes in every step; null is none."""
    ratios: Annotated[list[Annotated[float, Field(gt=0, le=10)]], Field(min_length=1)] | None = None
    """Of each step's residual to the step before, for `mag`, one a step; null calibrates them along
    the recipe's trajectories."""
    prompts: Annotated[int, Field(ge=1, le=256)] | None = None
    """That `mag` is calibrated with, none of which is measured with; null is 4."""

    @model_validator(mode="after")
    def _own_fields(self) -> Cache:
        needed, others = CACHE_FIELDS[self.kind]
        if getattr(self, needed) is None:
            raise ValueError(f"@kind: {self.kind} needs a field '{needed}'")
        for field, info in type(self).model_fields.items():
            if field in ("kind", needed, *others) or getattr(self, field) == info.default:
                continue
            has = ", ".join(f"'{one}'" for one in (needed, *others))
            raise ValueError(f"@{field}: {self.kind} has no such field; it has {has}")
        if self.ratios and self.prompts:
            raise ValueError("@prompts: are to calibrate the ratios, which are given")
        if self.kind == "sea" and (self.order or 0) > 1:
            raise ValueError("@order: sea predicts by order 0 or 1")
        return self

    @property
    def by_content(self) -> bool:
        """Whether the latents decide which steps are skipped: all that is in a batch, together."""
        return self.kind in BY_CONTENT


class Memory(Strict):
    """What is traded for memory outside the denoiser."""

    offload: Literal["model", "sequential", "group"] | None = None
    """diffusers' offloading to the CPU's memory: whole models, single layers, or groups of them."""
    vae_tiling: bool = False
    """Decode in overlapping tiles. The video differs at their borders."""
    vae_tile: int | None = Field(None, ge=32, multiple_of=32)
    """Side of a tile in pixels, a quarter of which is whole latents; null is the VAE's own, half of
    the size that it was made for."""
    vae_slicing: bool = False
    """Decode the videos of a batch one after the other."""
    expandable_segments: bool = False
    """torch's allocator grows its segments instead of adding others, so that less is lost to
    fragments."""

    @model_validator(mode="after")
    def _tile_of_tiles(self) -> Memory:
        if self.vae_tile and not self.vae_tiling:
            raise ValueError("@vae_tile: sizes tiles, and 'vae_tiling' is false")
        return self


class Decode(Strict):
    """How the VAE decodes, which every variant ends with."""

    fused: bool = False
    """Decode CogVideoX's latents with qbench's own kernels, in a quarter of the time and less than
    half of the memory; the VAE of another family decodes as without it."""
    split_norms: bool = False
    """Reduce each group of a group norm in parts: torch gives a group one block of threads, so the
    32 groups of a VAE leave most of a large GPU idle."""
    strips: bool = False
    """Have each layer work through its rows in strips: less memory on any GPU and, unlike with
    tiles, the same video."""

    @model_validator(mode="after")
    def _one_way(self) -> Decode:
        if self.fused and self.strips:
            raise ValueError("@strips: fused decodes in as little memory; choose one of the two")
        return self


class Parallel(Strict):
    """One video on several GPUs, a process on each; on CPUs, several processes.

    The numbers multiply: `{cfg: 2, ulysses: 3}` takes six. Weights are held once a GPU.
    """

    cfg: Literal[1, 2] = 1
    """At 2 each half of classifier-free guidance has GPUs of its own, which exchange their
    predictions once a step."""
    ulysses: Annotated[int, Field(ge=1, le=64)] = 1
    """Tokens are split over so many GPUs, which trade them for heads around each self-attention.
    The number of heads must divide by it."""
    ring: Annotated[int, Field(ge=1, le=64)] = 1
    """Tokens are split over so many GPUs, between which keys and values go round; any number of
    heads, and more to send than with `ulysses`."""
    decode: bool = False
    """Split the VAE's decode over the same GPUs by rows. Convolutions get the rows around their
    own and group norms the moments of whole frames, so unlike with tiles the video is the same."""

    @model_validator(mode="after")
    def _several(self) -> Parallel:
        if self.ranks < 2:
            raise ValueError("@cfg: 'cfg', 'ulysses' and 'ring' are all 1, which is one GPU")
        return self

    @property
    def ranks(self) -> int:
        """The processes that make a video together."""
        return self.cfg * self.tokens

    @property
    def tokens(self) -> int:
        """The parts that the tokens are split into."""
        return self.ulysses * self.ring


class EngineOptions(Strict):
    """How an engine is built and run."""

    graph_optimization: Literal["none", "basic", "extended", "all"] = "all"
    """ONNX Runtime's level."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """ONNX Runtime's on a CPU; null is as many as torch has."""
    workspace_mib: Annotated[int, Field(ge=1, le=2**20)] | None = None
    """Memory that TensorRT may work in while a layer runs; null is TensorRT's own."""
    level: Annotated[int, Field(ge=0, le=5)] | None = None
    """TensorRT's optimisation level of a build; null is TensorRT's own."""
    compute_capability: Annotated[str, Field(pattern=r"^[1-9][0-9]?\.[0-9]$")] | None = None
    """The GPU that TensorRT for RTX builds for, such as '8.9', whatever is in this machine; null is
    all that it knows, for which it finishes the plan as it is loaded."""
    cache: bool = True
    """Keep what TensorRT found out, for a shorter next time: TensorRT what it timed, for builds on
    this machine; TensorRT for RTX what it compiled for this GPU, beside the plan."""
    scope: Literal["model", "blocks"] = "model"
    """What AOTInductor compiles: the whole denoiser, or its repeated block once, used for all."""

    @field_validator("compute_capability", mode="before")
    @classmethod
    def _as_text(cls, given: object) -> object:
        """YAML takes 8.9 for a number."""
        return str(given) if isinstance(given, float) else given


class Exported(Strict):
    """A folder that `qbench export` wrote, measured in place of the denoiser."""

    folder: str
    """Where it is."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of its manifest, which names the SHA-256 of every other file."""
    format: ExportFormat
    """What it holds."""


class Variant(Strict):
    """One variant of the denoiser, axis by axis."""

    dtype: Dtype = "fp32"
    """Of the denoiser's weights and arithmetic."""
    fuse_qkv: bool = False
    """Compute query, key and value with one linear layer."""
    quantize: Quantize | None = None
    """Quantization of the linear layers; null leaves them as they are."""
    attention: Attention = "auto"
    """The attention kernel; `auto` is torch's choice. `fp8-reference` computes what `fp8` does with
    plain operations on any device: for quality, as it is slow."""
    sparse_attention: SparseAttention | None = None
    """Leave out blocks of keys, with the kernels `fp8` and `fp8-reference`; null computes all."""
    cache: Cache | None = None
    """Reuse of earlier denoise steps; null computes every step."""
    compile: Compile | None = None
    """torch.compile; null runs eagerly, `{}` compiles with the defaults."""
    cuda_graph: bool = False
    """Capture the denoiser's call as one CUDA graph and replay it, so that the GPU never waits for
    the host to launch kernels or to begin exchanges between ranks."""
    memory: Memory = Memory()
    """What is traded for memory."""
    decode: Decode = Decode()
    """How the VAE decodes."""
    parallel: Parallel | None = None
    """One video on several GPUs; null makes it on one."""
    step_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """This share of the reference's denoise steps: the control that every cache has to beat."""
    seed_offset: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Video n gets the initial noise of video n + seed_offset: the noise floor of another seed, or,
    as a planted fault, a pairing that is off by one."""
    fault: Fault | None = None
    """Damage on purpose, to see that the verdict catches it."""
    engine: EngineName | None = None
    """Export the denoiser and run it there; null runs it in PyTorch."""
    engine_options: EngineOptions = EngineOptions()
    """How the engine is built and run."""
    exported: Exported | None = None
    """The denoiser as a folder holds it: `qbench run FOLDER` fills this in."""

    @model_validator(mode="after")
    def _possible(self) -> Variant:
        if self.parallel and self.left_python:
            raise ValueError("@parallel: an engine computes whole steps, which cannot be split")
        if self.exported:  # it holds what was chosen, and the choices were looked at as it was made
            return self
        if self.sparse_attention and self.attention not in SPARSE:
            raise ValueError(
                f"@sparse_attention: needs 'attention: {SPARSE[0]}' or '{SPARSE[1]}', which can "
                f"leave out blocks, not {self.attention}"
            )
        if self.engine and self.compile:
            raise ValueError("@compile: an engine replaces the module, so there is none to compile")
        if self.engine and self.cuda_graph:
            raise ValueError("@cuda_graph: an engine launches its own kernels")
        if self.engine and self.attention != "auto":
            raise ValueError("@attention: an engine brings its own attention kernel")
        if self.engine and (self.fuse_qkv or self.cache or self.fault):
            field = "fuse_qkv" if self.fuse_qkv else "cache" if self.cache else "fault"
            raise ValueError(f"@{field}: an engine replaces the modules that this one changes")
        if self.engine and self.memory.offload:
            raise ValueError("@memory: an engine's weights cannot be offloaded by diffusers")
        backend = self.quantize.backend if self.quantize else None
        by_engine = backend in ENGINES
        if by_engine and self.engine != backend:
            raise ValueError(f"@quantize: the {backend} backend needs 'engine: {backend}'")
        if self.engine == "aoti":
            if backend not in (None, "torchao"):
                raise ValueError(f"@quantize: tensors of {backend} do not pass torch.export")
        elif self.engine and self.quantize and not by_engine:
            raise ValueError(
                f"@quantize: tensors of {self.quantize.backend} do not pass an ONNX export; "
                f"quantize with backend {self.engine}, or leave out the engine"
            )
        return self

    @property
    def captures_graphs(self) -> bool:
        """Whether CUDA graphs are captured: they replay in memory that torch counts as free.

        None are around an engine, whatever its recipe says of the module that it was made of.
        """
        if self.left_python:
            return False
        return self.cuda_graph or (self.compile is not None and self.compile.captures_graphs)

    @property
    def one_by_one(self) -> bool:
        """Whether each video is made alone: the cache would decide for a whole batch at once."""
        return self.cache is not None and self.cache.by_content

    @property
    def left_python(self) -> bool:
        """Whether the denoiser is no module of PyTorch any more."""
        if self.exported:
            return self.exported.format not in AS_MODULE
        return self.engine is not None
