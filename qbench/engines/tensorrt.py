"""Running an exported denoiser with TensorRT, or TensorRT for RTX.

Both have one Python API. Networks are strongly typed: precision is what the exported model says,
and INT8 and FP8 are pairs of QuantizeLinear and DequantizeLinear in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines import onnx, onnx_static, static_balance, static_forms, tensorrt_plan
from qbench.engines.manifest import Bound, compute_capability
from qbench.engines.tensorrt_plan import LIBRARIES, Bindings
from qbench.errors import Unsupported
from qbench.optimizations import schemes
from qbench.optimizations.rules import Rule
from qbench.recipe.schema import Variant
from qbench.units import bytes_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qbench.engines.base import Run
    from qbench.engines.inputs import Signature
    from qbench.engines.manifest import Interface
    from qbench.engines.static_seen import Seen
    from qbench.meters.profile import Layer
    from qbench.pipelines.base import Module, VideoPipeline

PACKAGES = (*onnx.PACKAGES, *LIBRARIES)
PLAN, GRAPH, COMPILED = "denoiser.plan", "denoiser.onnx", "denoiser.cache"


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
    seen: Mapping[str, Seen] | None = None,
) -> Bound:
    """Build the plan. It is bound to this GPU's architecture and this version of TensorRT.

    On a machine without a GPU, where TensorRT for RTX builds all the same, the graph stays beside
    the plan, for `stand_in`, and the plan is bound to the architecture that the recipe names.
    """
    module, chosen, wanted = video.denoiser, variant.engine_options, variant.quantize
    gpu = module.device.type == "cuda"
    tensorrt_plan.check(chosen, gpu)
    graph = folder / GRAPH
    if wanted:
        computed = schemes.find(wanted).activations
        assert computed is not None
        form = static_forms.Symmetric(computed)
        with static_balance.balanced(video, seen or {}, form) as found:
            spared_s = onnx.export(module, signature, example, graph)
        onnx_static.quantize(graph, found, form, onnx.is_large(module))
    else:
        spared_s = onnx.export(module, signature, example, graph)
    here = compute_capability() if gpu else ""
    library = tensorrt_plan.library()
    timings = _timings(library.__version__, here) if gpu and chosen.cache else None
    plan = tensorrt_plan.make(graph, signature, example, chosen, gpu, timings)
    (folder / PLAN).write_bytes(plan)
    if gpu:
        for path in folder.glob(f"{GRAPH}*"):
            path.unlink()
        if chosen.cache and tensorrt_plan.for_rtx(library):
            (folder / COMPILED).write_bytes(_compiled(plan, example, module.device))
    return Bound(
        compute_capability=chosen.compute_capability or here,
        exactly={LIBRARIES[library.__name__]: library.__version__},
        opset=onnx.OPSET,
        spared_s=spared_s,
    )


def open(folder: Path, shell: Module, written: Interface) -> Run:
    """The plan as a function of its tensors."""
    names = [spec.name for spec in written.inputs]
    compiled = folder / COMPILED
    return Engine(
        (folder / PLAN).read_bytes(),
        names,
        written.target.device,
        compiled.read_bytes() if compiled.is_file() else None,
    )


def stand_in(folder: Path, written: Interface) -> Run:
    """What a plan that was built without a GPU was built of, computed by ONNX Runtime on the CPU.

    It has no GEMMs in BF16, so the graph is computed in FP32, its weights, scales and rounding to
    INT8 and FP8 as they are. Takes the graph out of the folder.
    """
    from qbench.engines.onnx_wide import widened

    return widened(folder / GRAPH, written.inputs)


def _timings(version: str, capability: str) -> Path:
    """Where TensorRT's timing cache is kept: it holds for one version and one kind of GPU."""
    from qbench import cache

    return cache.folder() / "tensorrt" / f"{version}-{capability}.timings"


def _compiled(plan: bytes, example: Mapping[str, Tensor], device: torch.device) -> bytes:
    """What TensorRT for RTX compiled of the plan for this GPU, once it was run."""
    engine = Engine(plan, list(example), device)
    engine(example)
    return engine.compiled()


class Engine:
    """A plan as a function of its tensors, computing on torch's current stream."""

    def __init__(
        self,
        plan: bytes,
        names: Sequence[str],
        device: torch.device | str,
        compiled: bytes | None = None,
    ) -> None:
        import torch

        trt = tensorrt_plan.library()
        self._device, self._first = device, names[0]
        # Python lets go of attributes in the order in which they came, and a context must go before
        # what it was made with. None of them keeps the next one alive.
        self._context: Bindings = None
        self._engine: Bindings = None
        self._config: Bindings = None
        self._cache: Bindings = None
        self._runtime: Bindings = None
        self._said = tensorrt_plan.logger(trt)
        self._runtime = trt.Runtime(self._said)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise Unsupported(
                "this GPU refuses the plan, built for another GPU or TensorRT version: "
                f"{self._said.why}"
            )
        if tensorrt_plan.for_rtx(trt):
            self._config = self._engine.create_runtime_config()
            # The configuration refers to the cache and does not own it.
            self._cache = self._config.create_runtime_cache()
            if compiled is not None:
                self._cache.deserialize(compiled)  # what another driver compiled it passes over
            self._config.set_runtime_cache(self._cache)
            # By default kernels for the shapes at hand are compiled in the background, some calls
            # after the first: while calls are timed, and after the cache has been stored.
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            self._config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        self._context = self._new_context(trt)
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
            raise RuntimeError(f"TensorRT could not run the engine: {self._said.why}")
        return output

    def _new_context(self, trt: Bindings) -> Bindings:
        import torch

        torch.cuda.empty_cache()  # TensorRT's own allocations find what torch keeps taken
        make = self._engine.create_execution_context
        context = make() if self._config is None else make(self._config)
        if context is None:
            wanted = self._engine.device_memory_size_v2
            free = torch.cuda.mem_get_info(self._device)[0]
            raise Unsupported(
                "TensorRT could not set up the engine on this GPU, of which "
                f"{bytes_text(free)} are free (the plan asks for {bytes_text(wanted)}): "
                f"{self._said.why}"
            )
        if hasattr(context, "nvtx_verbosity"):  # annotating each layer for a tracer takes time
            context.nvtx_verbosity = trt.ProfilingVerbosity.NONE
        return context

    def compiled(self) -> bytes:
        """What was compiled for this GPU so far, to be given to the next engine of the plan."""
        return bytes(self._cache.serialize())

    def layers(self, step: Callable[[], object]) -> list[Layer]:
        """Each layer's time on the GPU; none where this TensorRT has no profiler."""
        import torch

        trt = tensorrt_plan.library()
        if not hasattr(trt, "IProfiler"):
            return []
        found: list[tuple[str, float]] = []

        def report(_: object, layer_name: str, ms: float) -> None:
            found.append((layer_name, ms / 1000))

        profiler = type("Profiler", (trt.IProfiler,), {"report_layer_time": report})()
        # A context with a profiler keeps it, so it has one of its own.
        plain = self._context
        self._context = self._new_context(trt)
        try:
            self._context.profiler = profiler
            step()
            torch.cuda.synchronize()
        finally:
            self._context = plain
        kinds = _described(self._engine, trt)
        return [_layer(name, seconds, kinds.get(name, {})) for name, seconds in found]


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
    """Raises Unsupported for a type in which no denoiser takes a tensor: it would be misread."""
    names = {
        "HALF": "float16",
        "FLOAT": "float32",
        "BF16": "bfloat16",
        "INT64": "int64",
        "INT32": "int32",
    }
    if dtype.name not in names:
        raise Unsupported(f"the plan takes a tensor in {dtype.name}, as no denoiser passes one")
    return names[dtype.name]


def _is(variant: Variant) -> bool:
    return variant.engine == "tensorrt"


RULES: tuple[Rule, ...] = (
    onnx.exporter("TensorRT", _is),
    Rule("TensorRT's GPU", _is, lambda m: m.cuda, "TensorRT needs an NVIDIA GPU"),
    Rule(
        "TensorRT",
        _is,
        lambda m: bool(m.packages.intersection(LIBRARIES)),
        "TensorRT is not installed: pip install 'qbench[tensorrt]'",
    ),
)
