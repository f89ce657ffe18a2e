"""What runs where, and why not, as data.

Each rule names the choices that it is about, what the machine must have, and the reason that a
`skipped` row shows. A machine is described by `Machine`, so the rules can be read and tested
without the hardware that they speak of. `scripts/combinations.py` runs every choice and pair of
choices with the rules put aside, and tests hold the rules against what came of it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from qbench.recipe.schema import Variant


@dataclass(frozen=True)
class Machine:
    """The facts about a machine that decide what it can run."""

    device: str  # cpu or cuda
    capability: tuple[int, int] = (0, 0)  # CUDA compute capability
    packages: frozenset[str] = frozenset()
    compiler: bool = True  # a C++ compiler, which inductor needs on a CPU

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"


@dataclass(frozen=True)
class Rule:
    """`applies` says which variants it is about; where `holds` is false, `reason` is why not.

    What a rule refuses fails if it is run all the same; where it does not (`fails`), it would run
    and be something else than its recipe says.
    """

    about: str
    applies: Callable[[Variant], bool]
    holds: Callable[[Machine], bool]
    reason: str
    fails: bool = True


def _scheme(prefix: str, backend: str = "torchao") -> Callable[[Variant], bool]:
    def applies(variant: Variant) -> bool:
        chosen = variant.quantize
        return bool(chosen and chosen.backend == backend and chosen.scheme.startswith(prefix))

    return applies


def _excluded(variant: Variant) -> set[str]:
    return set(variant.quantize.exclude) if variant.quantize else set()


HALF = ("flash", "cudnn", "flash-3", "flash-4", "fp8")
INNER = ("pab", "faster")
RULES: tuple[Rule, ...] = (
    Rule(
        "xformers beside FlashAttention 4",
        lambda _: True,  # diffusers imports xformers whatever runs
        lambda m: (
            not {"xformers", "flash_attn.cute"} <= m.packages
            or "flash_attn.flash_attn_interface" in m.packages
        ),
        "xformers takes flash-attn-4 for FlashAttention 2, and diffusers, which imports xformers, "
        "cannot be imported: pip uninstall one of the two, or install flash-attn besides",
    ),
    Rule(
        "torchao",
        _scheme(""),
        lambda m: "torchao" in m.packages,
        "torchao is not installed: pip install torchao",
    ),
    Rule(
        "optimum-quanto",
        _scheme("", "quanto"),
        lambda m: "optimum.quanto" in m.packages,
        "optimum-quanto is not installed: pip install 'qbench[quanto]'",
    ),
    Rule(
        "optimum-quanto's kernels",
        _scheme("", "quanto"),
        lambda m: m.compiler,
        "optimum-quanto builds its kernels at first use and no C++ compiler was found",
    ),
    Rule(
        "FP8 products",
        _scheme("fp8_dynamic"),
        lambda m: m.cuda and m.capability >= (8, 9),
        "FP8 products need an NVIDIA GPU of compute capability 8.9 or newer",
    ),
    Rule(
        "FP8 products of qbench's",
        _scheme("fp8_dynamic", "qbench"),
        lambda m: m.cuda and m.capability >= (8, 9),
        "FP8 products need an NVIDIA GPU of compute capability 8.9 or newer",
        fails=False,  # elsewhere they are computed in FP32, for tests
    ),
    Rule(
        "FP8 products in BF16",
        lambda v: v.dtype != "bf16" and _scheme("fp8_dynamic_row")(v),
        lambda m: not m.cuda,
        "torchao's FP8 products with a scale for each row give BF16 only: choose bf16",
    ),
    Rule(
        "FP8 products of qbench's in FP32",
        lambda v: v.dtype == "fp32" and _scheme("fp8_dynamic", "qbench")(v),
        lambda m: not m.cuda,
        "FP8 products with a bias give FP16 or BF16, not FP32: choose bf16",
    ),
    Rule(
        "optimum-quanto's INT4, compiled",
        lambda v: v.compile is not None and _scheme("int4", "quanto")(v),
        lambda _: False,
        "optimum-quanto's INT4 weights cannot be compiled: leave out compile",
    ),
    Rule(
        "optimum-quanto's INT4 in FP16",
        lambda v: v.dtype == "fp16" and _scheme("int4", "quanto")(v),
        lambda m: not m.cuda,
        "optimum-quanto's kernel for INT4 weights in FP16 reads what is not its own on a GPU: "
        "choose bf16",
    ),
    Rule(
        "optimum-quanto's weights, offloaded",
        lambda v: v.memory.offload in ("sequential", "group") and _scheme("", "quanto")(v),
        lambda m: not m.cuda,
        "optimum-quanto's weights cannot be moved part by part: choose offload model, or torchao",
    ),
    Rule(
        "torch.compile",
        lambda v: v.compile is not None,
        lambda m: m.cuda or m.compiler,
        "torch.compile on a CPU needs a C++ compiler (g++), and none was found",
    ),
    Rule(
        "ONNX export",
        lambda v: v.engine is not None,
        lambda m: {"onnx", "onnxscript"} <= m.packages,
        "onnx and onnxscript are not installed: pip install 'qbench[onnx]'",
    ),
    Rule(
        "ONNX Runtime",
        lambda v: v.engine == "onnxruntime",
        lambda m: "onnxruntime" in m.packages,
        "onnxruntime is not installed: pip install 'qbench[onnx]' (CPU) or 'qbench[gpu]' (CUDA)",
    ),
    Rule(
        "ONNX Runtime in BF16",
        lambda v: v.engine == "onnxruntime" and v.dtype == "bf16",
        lambda m: m.cuda,
        "ONNX Runtime computes no products in BF16 on a CPU: choose fp32 or fp16",
    ),
    Rule(
        "ONNX Runtime for CUDA",
        lambda v: v.engine == "onnxruntime",
        lambda m: not m.cuda or "onnxruntime-gpu" in m.packages,
        "the CPU build of ONNX Runtime cannot use this GPU: replace it by 'qbench[gpu]'",
    ),
    Rule(
        "TensorRT's GPU",
        lambda v: v.engine == "tensorrt",
        lambda m: m.cuda,
        "TensorRT needs an NVIDIA GPU",
    ),
    Rule(
        "TensorRT",
        lambda v: v.engine == "tensorrt",
        lambda m: bool({"tensorrt_rtx_bindings", "tensorrt_rtx", "tensorrt"} & m.packages),
        "TensorRT is not installed: pip install 'qbench[tensorrt]'",
    ),
    Rule(
        "INT8 products, compiled",
        # Not compiled, torchao computes those that fail in FP32.
        lambda v: (
            v.compile is not None
            and _scheme("int8_dynamic")(v)
            and not {"time_embedding", "norm"} <= _excluded(v)
        ),
        lambda m: not m.cuda,
        "INT8 products on a GPU take more than 16 rows, and these linears see one a video: "
        "exclude [time_embedding, norm], or leave out compile",
    ),
    Rule(
        "FP8 attention",
        lambda v: v.attention == "fp8",
        lambda m: m.cuda and m.capability == (9, 0),
        "qbench's FP8 attention is written for NVIDIA Hopper (compute capability 9.0)",
    ),
    Rule(
        "the fused decode",
        lambda v: v.decode.fused,
        lambda m: m.cuda and m.capability == (9, 0),
        "qbench's decode kernels are written for NVIDIA Hopper (compute capability 9.0): "
        "decode.strips makes the same video anywhere",
        fails=False,  # on a CPU it is computed with plain operations, for tests
    ),
    Rule(
        "FlashAttention 3's GPU",
        lambda v: v.attention == "flash-3",
        lambda m: m.cuda and m.capability == (9, 0),
        "FlashAttention 3 is written for NVIDIA Hopper (compute capability 9.0)",
    ),
    Rule(
        "FlashAttention 3",
        lambda v: v.attention == "flash-3",
        lambda m: bool({"flash_attn_interface", "xformers"} & m.packages),
        "FlashAttention 3 is not installed: pip install --no-deps xformers==0.0.34 "
        "nvidia-cuda-runtime-cu12",
    ),
    Rule(
        "FlashAttention 4's GPU",
        lambda v: v.attention == "flash-4",
        lambda m: m.cuda and m.capability >= (9, 0),
        "FlashAttention 4 needs an NVIDIA GPU of compute capability 9.0 or newer",
    ),
    Rule(
        "FlashAttention 4",
        lambda v: v.attention == "flash-4",
        lambda m: "flash_attn.cute" in m.packages,
        "FlashAttention 4 is not installed: pip install --pre 'flash-attn-4[cu13]'",
    ),
    Rule(
        "SageAttention's GPU",
        lambda v: v.attention in ("sage", "xformers"),
        lambda m: m.cuda and m.capability >= (8, 0),
        "this attention kernel needs an NVIDIA GPU of compute capability 8.0 or newer",
    ),
    Rule(
        "SageAttention",
        lambda v: v.attention == "sage",
        lambda m: "sageattention" in m.packages,
        "SageAttention is not installed: pip install sageattention==1.0.6",
    ),
    Rule(
        "xformers",
        lambda v: v.attention == "xformers",
        lambda m: "xformers" in m.packages,
        "xformers is not installed: pip install xformers",
    ),
    Rule(
        "half precision for attention kernels",
        lambda v: v.attention in HALF and v.dtype == "fp32",
        lambda m: not m.cuda,
        f"the attention kernels {', '.join(HALF)} take FP16 or BF16, not FP32",
    ),
    Rule(
        "caches inside compiled blocks",
        lambda v: v.compile is not None and v.cache is not None and v.cache.kind in INNER,
        lambda _: False,
        "PAB and FasterCache hook the attention inside each block: compiled, every block becomes "
        "a program of its own; use taylorseer or first_block, or leave out compile",
        fails=False,
    ),
    Rule(
        "caches and a model compiled whole",
        lambda v: v.compile is not None and v.cache is not None and v.compile.scope == "model",
        lambda _: False,
        "a cache decides between blocks, which one compiled program cannot: compile with scope "
        "blocks",
        fails=False,
    ),
    Rule(
        "GPU attention kernels",
        lambda v: v.attention in ("efficient", "cudnn"),
        lambda m: m.cuda,
        "this attention kernel needs an NVIDIA GPU; on a CPU there are math and flash",
    ),
    Rule(
        "offload",
        lambda v: v.memory.offload is not None,
        lambda m: m.cuda,
        "offload moves weights off a GPU, and there is none",
        fails=False,  # model offload runs, and moves nothing
    ),
    Rule(
        "expandable segments",
        lambda v: v.memory.expandable_segments,
        lambda m: m.cuda,
        "expandable_segments is a setting of torch's allocator for GPUs, and there is none",
        fails=False,
    ),
)

PACKAGES = (
    "torchao",
    "optimum.quanto",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_bindings",
    "flash_attn_interface",
    "flash_attn.cute",
    "flash_attn.flash_attn_interface",
    "sageattention",
    "xformers",
)


def refusing(variant: Variant, machine: Machine) -> list[Rule]:
    """The rules by which this machine cannot run the variant."""
    return [rule for rule in RULES if rule.applies(variant) and not rule.holds(machine)]


def why_not(variant: Variant, machine: Machine) -> str | None:
    """The reason that this machine cannot run the variant, or None where it can."""
    rules = refusing(variant, machine)
    return rules[0].reason if rules else None


def this_machine(device: str = "auto") -> Machine:
    """The machine as found; `device` is what the recipe asks for."""
    import torch

    cuda = torch.cuda.is_available() and device != "cpu"
    packages = set(filter(_installed, PACKAGES))
    try:
        importlib.metadata.version("onnxruntime-gpu")
        packages.add("onnxruntime-gpu")  # one module, two packages: only the name tells them apart
    except importlib.metadata.PackageNotFoundError:
        pass
    return Machine(
        device="cuda" if cuda else "cpu",
        capability=torch.cuda.get_device_capability() if cuda else (0, 0),
        packages=frozenset(packages),
        compiler=any(map(shutil.which, ("g++", "clang++", "c++"))),
    )


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
