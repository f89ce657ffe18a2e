"""Building and running an exported denoiser with TensorRT, or TensorRT for RTX.

Both have one Python API. Networks are strongly typed: precision is what the exported model says.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.engines import onnx
from qbench.engines.manifest import Bound
from qbench.errors import Unsupported
from qbench.optimizations.rules import Rule
from qbench.recipe.schema import EngineOptions, Variant

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qbench.engines.base import Run
    from qbench.engines.inputs import Signature
    from qbench.engines.manifest import Interface
    from qbench.meters.profile import Layer
    from qbench.pipelines.base import Module, VideoPipeline

Bindings = Any  # TensorRT's, and what they make: they have no types

# By the name of the module, the distribution whose version a plan is bound to.
LIBRARIES = {
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
}
PACKAGES = (*onnx.PACKAGES, *LIBRARIES)
VALUES = 2**22  # of latents in the largest batch that a plan is built for
PLAN, GRAPH = "denoiser.plan", "denoiser.onnx"


def refuses(variant: Variant) -> str:
    """Why a plan cannot hold the variant; empty where it can."""
    if variant.engine != "tensorrt":
        return "choose a recipe with engine: tensorrt, as recipes/tensorrt.yaml has it"
    return ""


def write(
    video: VideoPipeline,
    signature: Signature,
    example: Mapping[str, Tensor],
    variant: Variant,
    folder: Path,
    calls: Sequence[Mapping[str, Tensor]] = (),
) -> Bound:
    """Build the plan. It is bound to this GPU's architecture and this version of TensorRT."""
    import torch

    exported = onnx.export(video.denoiser, signature, example, folder / GRAPH)
    (folder / PLAN).write_bytes(make_plan(exported, signature, example, variant.engine_options))
    for path in folder.glob(f"{GRAPH}*"):
        path.unlink()
    library = _library()
    return Bound(
        compute_capability="{}.{}".format(*torch.cuda.get_device_capability()),
        exactly={LIBRARIES[library.__name__]: library.__version__},
        opset=onnx.OPSET,
    )


def open(folder: Path, shell: Module, written: Interface) -> Run:
    """The plan as a function of its tensors."""
    names = [spec.name for spec in written.inputs]
    return Engine((folder / PLAN).read_bytes(), names, written.target.device)


def _library() -> Bindings:
    for name in LIBRARIES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):
            continue
    raise Unsupported(
        "TensorRT is installed but could not be loaded; is its libraries' wheel there?"
    )


def make_plan(
    path: Path, signature: Signature, example: Mapping[str, Tensor], chosen: EngineOptions
) -> bytes:
    """A serialized plan for batches of one up to what its memory is set aside for.

    The plan is bound to this GPU's architecture and to this version of TensorRT.
    """
    trt = _library()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        faults = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise Unsupported(f"TensorRT cannot read the exported model: {faults[:300]}")
    config = builder.create_builder_config()
    if chosen.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, chosen.workspace_mib * 2**20)
    if chosen.level is not None:
        if not hasattr(config, "builder_optimization_level"):
            raise Unsupported("engine_options.level: TensorRT for RTX has no levels")
        config.builder_optimization_level = chosen.level
    if hasattr(trt, "ProfilingVerbosity"):  # the plan then knows its layers' names and types
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    taken = {network.get_input(i).name for i in range(network.num_inputs)}
    for name in taken & signature.batched:
        usual = tuple(example[name].shape)
        one, most = (1, *usual[1:]), (_largest(example), *usual[1:])
        profile.set_shape(name, one, usual, most)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Unsupported("TensorRT could not build an engine of the exported model")
    return bytes(plan)


def _largest(example: Mapping[str, Tensor]) -> int:
    """The largest batch: memory for its activations is set aside as the engine is loaded."""
    sample = next(iter(example.values()))
    usual = int(sample.shape[0])
    return max(usual, min(256, VALUES * usual // sample.numel()))


class Engine:
    """A plan as a function of its tensors, computing on torch's current stream."""

    def __init__(self, plan: bytes, names: Sequence[str], device: torch.device | str) -> None:
        import torch

        trt = _library()
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))  # alive as long as the engine
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise Unsupported(
                "this GPU refuses the plan: built for another GPU or TensorRT version"
            )
        self._context = _context(self._engine, trt)
        self._device, self._first = device, names[0]
        tensors = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._dtypes = {
            name: getattr(torch, _torch_name(self._engine.get_tensor_dtype(name)))
            for name in tensors
            if name in names
        }
        [self._result] = [
            n for n in tensors if self._engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT
        ]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        import torch

        context = self._context
        held = {
            name: inputs[name].to(self._device, dtype).contiguous()
            for name, dtype in self._dtypes.items()
        }
        for name, value in held.items():
            context.set_input_shape(name, tuple(value.shape))
            context.set_tensor_address(name, value.data_ptr())
        output = torch.empty_like(held[self._first])
        context.set_tensor_address(self._result, output.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT reported that the engine did not run")
        return output

    def layers(self, step: Callable[[], object]) -> list[Layer]:
        """Each layer's time on the GPU; none where this TensorRT has no profiler."""
        import torch

        trt = _library()
        if not hasattr(trt, "IProfiler"):
            return []
        found: list[tuple[str, float]] = []

        def report(_: object, layer_name: str, ms: float) -> None:
            found.append((layer_name, ms / 1000))

        profiler = type("Profiler", (trt.IProfiler,), {"report_layer_time": report})()
        # A context with a profiler keeps it, so it has one of its own.
        plain, self._context = self._context, _context(self._engine, trt)
        try:
            self._context.profiler = profiler
            step()
            torch.cuda.synchronize()
        finally:
            self._context = plain
        kinds = _described(self._engine, trt)
        return [_layer(name, seconds, kinds.get(name, {})) for name, seconds in found]


def _context(engine: Bindings, trt: Bindings) -> Bindings:
    context = engine.create_execution_context()
    if context is None:
        raise Unsupported("TensorRT could not set up the engine on this GPU")
    if hasattr(context, "nvtx_verbosity"):  # annotating each layer for a tracer takes time
        context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
    return context


def _described(engine: Bindings, trt: Bindings) -> dict[str, Mapping[str, object]]:
    """What the inspector knows of each layer by its name; nothing where the plan was not told."""
    if not hasattr(engine, "create_engine_inspector"):
        return {}
    said = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(said).get("Layers", [])
    except (TypeError, ValueError):
        return {}
    return {str(one["Name"]): one for one in layers if isinstance(one, dict) and "Name" in one}


def _layer(name: str, seconds: float, told: Mapping[str, object]) -> Layer:
    """One layer. told: the words of the inspector, as its JSON has them."""
    from qbench.meters.profile import Layer

    outputs = told.get("Outputs")
    kinds = {
        str(one.get("Format/Datatype") or one.get("Datatype") or "")
        for one in (outputs if isinstance(outputs, list) else [])
        if isinstance(one, dict)
    }
    kind = str(told.get("LayerType") or "layer")
    precision = ", ".join(sorted(kinds - {""})) or "a precision that it does not say"
    return Layer(name=" ".join(name.split())[:160], kind=kind, precision=precision, seconds=seconds)


def _torch_name(dtype: Bindings) -> str:
    names = {"HALF": "float16", "FLOAT": "float32", "BF16": "bfloat16", "INT64": "int64"}
    return names.get(dtype.name, "int32")


def _is(variant: Variant) -> bool:
    return variant.engine == "tensorrt"


RULES: tuple[Rule, ...] = (
    onnx.exporter(_is),
    Rule("TensorRT's GPU", _is, lambda m: m.cuda, "TensorRT needs an NVIDIA GPU"),
    Rule(
        "TensorRT",
        _is,
        lambda m: bool(m.packages.intersection(LIBRARIES)),
        "TensorRT is not installed: pip install 'qbench[tensorrt]'",
    ),
)
