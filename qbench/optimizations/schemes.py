"""The one table of schemes, and what each needs; docs/extending/scheme.md says how to add one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qbench.optimizations import builds
from qbench.optimizations.builds import GROUP, PACKED_GROUP, Build, group_of
from qbench.optimizations.rules import Machine, ModelFacts, Rule, always, never
from qbench.recipe.choices import AS_IT_IS, Backend
from qbench.recipe.schema import Quantize, Variant

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qbench.optimizations.calibration.numbers import Activations, Weights

Format = Literal["int8", "int6", "int5", "int4", "int3", "int2", "fp8"]
Computed = Literal["int8", "fp8"]  # formats that GEMMs are computed in


@dataclass(frozen=True)
class Scheme:
    """One way to quantize linears.

    weights: format in which weights are stored.
    activations: format in which GEMMs are computed, inputs quantized as they come; None where
        weights are dequantized and the GEMM is computed in the variant's dtype.
    granularity: what shares one scale of the weights.
    build: quantizes the named linears of a module in place; None where an engine does it.
    skips: (output, input) features of linears that are left as they are.
    static: whether inputs have one scale, fixed in advance by calibration.
    """

    backend: Backend
    name: str
    weights: Format
    activations: Computed | None
    granularity: Literal["tensor", "row", "group"]
    build: Build | None
    skips: tuple[tuple[int, int], ...] = ()
    static: bool = False


def _qbench(module: nn.Module, _: Quantize, names: Collection[str]) -> None:
    from qbench.optimizations.kernels import fp8_blocks, fp8_linear

    fp8_linear.replace(module, names)
    fp8_blocks.fuse(module)


def _packed(module: nn.Module, wanted: Quantize, names: Collection[str]) -> None:
    """Plain rounding into packed weights."""
    from qbench.optimizations.calibration import Fitted, storing

    for name in sorted(names):
        plain = module.get_submodule(name).weight
        stored, _ = numbers(wanted, plain.dtype)  # type: ignore[arg-type]
        weight = plain.detach().float()  # type: ignore[operator]
        scales = stored.scales(weight)
        fitted = {name: Fitted(stored.codes(weight, scales), scales, 0)}
        storing.into_packed(module, fitted, {name: stored})


_PACKED_FORMATS: tuple[Format, ...] = ("int8", "int6", "int5", "int4", "int3", "int2")
_ALL = (
    Scheme("torchao", "int8_weight_only", "int8", None, "row", builds.Torchao(builds.int8_weights)),
    Scheme("torchao", "int8_dynamic", "int8", "int8", "row", builds.Torchao(builds.int8_dynamic)),
    Scheme(
        "torchao",
        "int8_static",
        "int8",
        "int8",
        "row",
        builds.Torchao(builds.int8_dynamic),
        static=True,
    ),
    Scheme("torchao", "fp8_weight_only", "fp8", None, "row", builds.Torchao(builds.fp8_weights)),
    Scheme(
        "torchao",
        "fp8_dynamic_row",
        "fp8",
        "fp8",
        "row",
        builds.Torchao(builds.fp8_dynamic("PerRow")),
    ),
    Scheme(
        "torchao",
        "fp8_dynamic_tensor",
        "fp8",
        "fp8",
        "tensor",
        builds.Torchao(builds.fp8_dynamic("PerTensor")),
        # torchao 0.18 takes the one scale of a 128x128 weight for that of a block, and fails.
        skips=((128, 128),),
    ),
    Scheme(
        "torchao", "int4_weight_only", "int4", None, "group", builds.Torchao(builds.grouped("int4"))
    ),
    Scheme(
        "torchao", "int2_weight_only", "int2", None, "group", builds.Torchao(builds.grouped("int2"))
    ),
    Scheme("quanto", "int8_weight_only", "int8", None, "row", builds.quanto("qint8")),
    Scheme("quanto", "int4_weight_only", "int4", None, "group", builds.quanto("qint4")),
    Scheme("quanto", "int2_weight_only", "int2", None, "group", builds.quanto("qint2")),
    Scheme("quanto", "fp8_weight_only", "fp8", None, "row", builds.quanto("qfloat8")),
    Scheme("qbench", "fp8_dynamic_row", "fp8", "fp8", "row", _qbench),
    *(
        Scheme("qbench", f"{name}_weight_only", name, None, "group", _packed)
        for name in _PACKED_FORMATS
    ),
    Scheme("onnxruntime", "int8_dynamic", "int8", "int8", "row", None),
    Scheme("onnxruntime", "int8_static", "int8", "int8", "row", None, static=True),
    Scheme("tensorrt", "int8_static", "int8", "int8", "row", None, static=True),
    Scheme("tensorrt", "fp8_static", "fp8", "fp8", "tensor", None, static=True),
)
SCHEMES: dict[tuple[str, str], Scheme] = {(one.backend, one.name): one for one in _ALL}


def find(wanted: Quantize) -> Scheme:
    """The table's entry for a recipe's backend and scheme. Raises KeyError where it has none."""
    return SCHEMES[wanted.backend, wanted.scheme]


def of_layers(wanted: Quantize) -> list[Scheme]:
    """Every scheme that some layer has."""
    named = dict.fromkeys([wanted.scheme, *wanted.layers.values()])
    return [SCHEMES[wanted.backend, name] for name in named if name != AS_IT_IS]


def numbers(wanted: Quantize, dtype: torch.dtype) -> tuple[Weights, Activations]:
    """What the scheme leaves of weights and of inputs, for a denoiser of this dtype.

    Raises ValueError for a library whose weights are not symmetric about zero as torchao's are.
    """
    import torch

    from qbench.optimizations.calibration.numbers import Activations, Weights

    if wanted.backend not in ("torchao", "qbench"):
        raise ValueError(
            f"what {wanted.backend} leaves of weights is told by its own tensors alone"
        )
    entry = find(wanted)
    grouped = entry.granularity == "group"
    stored = Weights(
        entry.weights,
        entry.granularity,
        group_of(wanted) if grouped else 0,
        dtype if grouped else torch.float32,
    )
    granularity: Literal["tensor", "row"]
    granularity = "tensor" if entry.granularity == "tensor" or entry.static else "row"
    return stored, Activations(entry.activations, granularity, entry.static)


def picks(wanted: Quantize, name: str) -> bool:
    """Whether `include` and `exclude` leave the linear of this name."""
    included = not wanted.include or any(part in name for part in wanted.include)
    return included and not any(part in name for part in wanted.exclude)


# What they need ---------------------------------------------------------------------------------


def _of(
    backend: Backend,
    *,
    weights: Format | None = None,
    activations: Computed | None = None,
    granularity: str | None = None,
) -> Callable[[Variant], bool]:
    """Whether a variant quantizes by `backend`, and as the rest says where it says so."""

    def applies(variant: Variant) -> bool:
        if variant.quantize is None or variant.quantize.backend != backend:
            return False
        return any(
            weights in (None, found.weights)
            and activations in (None, found.activations)
            and granularity in (None, found.granularity)
            for found in of_layers(variant.quantize)
        )

    return applies


def of_int8_inputs(wanted: Quantize, model: ModelFacts) -> set[str]:
    """The linears whose GEMMs it computes in INT8."""
    return {
        name
        for name in model.linears
        if picks(wanted, name)
        and (scheme := wanted.layers.get(name, wanted.scheme)) != AS_IT_IS
        and SCHEMES[wanted.backend, scheme].activations == "int8"
    }


def _enough_rows(variant: Variant, machine: Machine) -> bool:
    """Whether what the compiler makes of INT8 GEMMs has as many rows as a GPU's take."""
    model, wanted = machine.model, variant.quantize
    assert wanted is not None
    if not machine.cuda or model is None:
        return True
    scope = (variant.compile or variant.engine_options).scope
    compiled = model.in_blocks if scope == "blocks" else model.linears.keys()
    split = variant.parallel is not None and variant.parallel.cfg > 1
    halves = 2 if model.guided and not model.separate_guidance and not split else 1
    few = model.one_row
    if halves * model.frames < LEAST_ROWS:
        few |= model.row_a_frame
    return not of_int8_inputs(wanted, model) & few & compiled


def _fp8_gpu(machine: Machine) -> bool:
    return machine.cuda and machine.capability >= (8, 9)


def _whole_groups(variant: Variant, model: ModelFacts) -> bool:
    assert variant.quantize is not None
    return all(
        inputs % group_of(variant.quantize) == 0
        for name, inputs in model.linears.items()
        if picks(variant.quantize, name)
    )


PACKAGES = ("torchao", "optimum.quanto")
LEAST_ROWS = 17  # of what torch._int_mm takes on a GPU (PyTorch's ATen/native/cuda/Blas.cpp)
RULES: tuple[Rule, ...] = (
    Rule(
        "torchao",
        _of("torchao"),
        lambda m: "torchao" in m.packages,
        "torchao is not installed: pip install torchao",
    ),
    Rule(
        "optimum-quanto",
        _of("quanto"),
        lambda m: "optimum.quanto" in m.packages,
        "optimum-quanto is not installed: pip install 'qbench[quanto]'",
    ),
    Rule(
        "optimum-quanto's kernels",
        _of("quanto"),
        lambda m: m.compiler,
        "optimum-quanto builds its kernels at first use and no C++ compiler was found",
    ),
    Rule(
        "FP8 GEMMs",
        _of("torchao", activations="fp8"),
        _fp8_gpu,
        "FP8 GEMMs need an NVIDIA GPU of compute capability 8.9 or newer",
    ),
    Rule(
        "TensorRT's FP8 GEMMs",
        _of("tensorrt", activations="fp8"),
        _fp8_gpu,
        "FP8 GEMMs need an NVIDIA GPU of compute capability 8.9 or newer",
    ),
    Rule(
        "qbench's FP8 GEMMs",
        _of("qbench", activations="fp8"),
        _fp8_gpu,
        "FP8 GEMMs need an NVIDIA GPU of compute capability 8.9 or newer",
        fails=False,  # elsewhere they are computed in FP32, for tests
    ),
    Rule(
        "FP8 GEMMs in BF16",
        lambda v: v.dtype != "bf16" and _of("torchao", activations="fp8", granularity="row")(v),
        lambda m: not m.cuda,
        "torchao's FP8 GEMMs with a scale for each row give BF16 only: choose bf16",
    ),
    Rule(
        "qbench's FP8 GEMMs in FP32",
        lambda v: v.dtype == "fp32" and _of("qbench", activations="fp8")(v),
        lambda m: not m.cuda,
        "FP8 GEMMs with a bias give FP16 or BF16, not FP32: choose bf16",
    ),
    Rule(
        "weights in groups",
        lambda v: _of("torchao", granularity="group")(v) or _of("qbench", granularity="group")(v),
        always,
        f"weights of few bits share a scale in groups of {GROUP} (torchao) or {PACKED_GROUP} "
        "(qbench), if the recipe says no other, which divides the width of every linear but some "
        "of this model's: exclude those, or choose another group, or quanto",
        fits=_whole_groups,
    ),
    Rule(
        "optimum-quanto's INT4, compiled",
        lambda v: v.compile is not None and _of("quanto", weights="int4")(v),
        never,
        "optimum-quanto's INT4 weights cannot be compiled: leave out compile",
    ),
    Rule(
        "optimum-quanto's INT4 in FP16",
        lambda v: v.dtype == "fp16" and _of("quanto", weights="int4")(v),
        lambda m: not m.cuda,
        "optimum-quanto's kernel for INT4 weights in FP16 reads memory out of bounds on a GPU: "
        "choose bf16",
    ),
    Rule(
        "optimum-quanto's weights, offloaded",
        lambda v: v.memory.offload in ("sequential", "group") and _of("quanto")(v),
        lambda m: not m.cuda,
        "optimum-quanto's weights cannot be moved part by part: choose offload model, or torchao",
    ),
    Rule(
        "calibration, offloaded",
        lambda v: (
            v.memory.offload is not None
            and v.quantize is not None
            and v.quantize.calibration is not None
        ),
        never,
        "calibration walks trajectories before anything is offloaded, when text encoder and "
        "denoiser are on two devices: leave out offload, or export the variant and offload that",
        fails=False,  # on a CPU both are on one
    ),
    Rule(
        "INT8 GEMMs, compiled",
        # Without the compiler torchao computes the GEMMs that would fail in FP32.
        lambda v: (
            (v.compile is not None or v.engine == "aoti") and _of("torchao", activations="int8")(v)
        ),
        always,
        "INT8 GEMMs on a GPU take more than 16 rows, and some of the compiled linears see one a "
        "video, or a UNet's one a frame: exclude [time_embedding, norm], of Wan [time_proj], of a "
        "UNet with so few frames [time_emb_proj], or leave out compile and AOTInductor",
        room=_enough_rows,
    ),
)
