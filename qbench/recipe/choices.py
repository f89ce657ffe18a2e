"""The names that a recipe may choose from, axis by axis.

What stands behind a name (how it is built, what it needs, how it is undone) is in the table of its
axis: `optimizations/schemes.py`, `attention.py` and `caching.py`, and `engines/<name>.py`. A
new choice is its name here and its entry there; a test holds the two against each other.
"""

from __future__ import annotations

from typing import Literal, get_args

Backend = Literal["torchao", "quanto", "qbench", "onnxruntime", "tensorrt"]
SCHEMES: dict[str, tuple[str, ...]] = {
    "torchao": (
        "int8_weight_only",
        "int8_dynamic",
        "int8_static",
        "fp8_weight_only",
        "fp8_dynamic_row",
        "fp8_dynamic_tensor",
        "int4_weight_only",
        "int2_weight_only",
    ),
    "quanto": ("int8_weight_only", "int4_weight_only", "int2_weight_only", "fp8_weight_only"),
    "qbench": (
        "fp8_dynamic_row",
        "int8_weight_only",
        "int6_weight_only",
        "int5_weight_only",
        "int4_weight_only",
        "int3_weight_only",
        "int2_weight_only",
    ),
    # By the engine, as it is built.
    "onnxruntime": ("int8_dynamic", "int8_static"),
    "tensorrt": ("int8_static", "fp8_static"),
}

CalibrationMethod = Literal["smoothquant", "awq", "gptq", "svdquant"]
_PACKED = tuple(("qbench", f"int{bits}_weight_only") for bits in (8, 6, 5, 4, 3, 2))
_FEW_BITS = (("torchao", "int4_weight_only"), ("torchao", "int2_weight_only"), *_PACKED)
_WEIGHTS = (("torchao", "int8_weight_only"), *_FEW_BITS)
# What each method can be applied to, as (backend, scheme).
CALIBRATED: dict[CalibrationMethod, tuple[tuple[str, str], ...]] = {
    "smoothquant": (
        ("torchao", "int8_dynamic"),
        ("torchao", "int8_static"),
        ("torchao", "fp8_dynamic_row"),
        ("torchao", "fp8_dynamic_tensor"),
        ("qbench", "fp8_dynamic_row"),
    ),
    "awq": _WEIGHTS,
    "gptq": (
        *_WEIGHTS,
        ("torchao", "int8_dynamic"),
        ("torchao", "fp8_weight_only"),
        ("torchao", "fp8_dynamic_row"),
        ("torchao", "fp8_dynamic_tensor"),
        ("qbench", "fp8_dynamic_row"),
    ),
    "svdquant": _PACKED,
}
# Schemes whose weights share scales in groups of a size that a recipe may choose.
GROUPED = _FEW_BITS
# Schemes that are nothing without calibration: their inputs have scales fixed in advance.
FIXED = (("torchao", "int8_static"),)

AS_IT_IS = "none"  # in place of a scheme, of a layer that is not quantized

Attention = Literal[
    "auto",
    "math",
    "flash",
    "efficient",
    "cudnn",
    "flash-3",
    "flash-3-fp8",
    "flash-4",
    "sage",
    "torchao-fp8",
    "xformers",
    "fp8",
    "fp8-reference",
]
# Kernels that can leave out blocks of keys.
SPARSE: tuple[Attention, ...] = ("fp8", "fp8-reference")

CacheKind = Literal["first_block", "pab", "faster", "taylorseer", "mag", "sea", "dbcache"]
# Caches that decide by the latents which steps they skip; the others go by the step's number.
BY_CONTENT: tuple[CacheKind, ...] = ("first_block", "sea", "dbcache")
# The field that each cache needs, and those that it takes besides.
CACHE_FIELDS: dict[CacheKind, tuple[str, tuple[str, ...]]] = {
    "first_block": ("threshold", ("last",)),
    "pab": ("interval", ()),
    "faster": ("interval", ("last",)),
    "taylorseer": ("interval", ("first", "last", "order")),
    "mag": ("threshold", ("first", "last", "longest", "ratios", "prompts")),
    "sea": ("threshold", ("first", "last", "longest", "order")),
    "dbcache": ("threshold", ("first", "last", "longest", "order", "front", "back")),
}

EngineName = Literal["onnxruntime", "tensorrt", "aoti"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)

ExportFormat = Literal["diffusers", "onnx", "tensorrt", "aoti", "qbench"]
# Formats that are loaded as a module of PyTorch, on which the axes of a recipe can go on working.
AS_MODULE: tuple[ExportFormat, ...] = ("diffusers", "qbench")
