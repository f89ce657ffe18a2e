"""Running an exported denoiser with ONNX Runtime, on the device where the module was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines import onnx, onnx_static
from qbench.engines.manifest import Bound
from qbench.optimizations.rules import Rule
from qbench.recipe.schema import EngineOptions, Variant

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import Tensor

    from qbench.engines.base import Run
    from qbench.engines.inputs import Signature
    from qbench.engines.manifest import Interface
    from qbench.pipelines.base import Module, VideoPipeline

GRAPH = "denoiser.onnx"
LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

PACKAGES = (*onnx.PACKAGES, "onnxruntime")


def refuses(variant: Variant) -> str:
    """Why an ONNX graph cannot hold the variant; empty where it can."""
    if variant.engine != "onnxruntime":
        return "choose a recipe with engine: onnxruntime, as recipes/onnx.yaml has it"
    return ""


def write(
    video: VideoPipeline,
    signature: Signature,
    example: Mapping[str, Tensor],
    variant: Variant,
    folder: Path,
    calls: Sequence[Mapping[str, Tensor]] = (),
) -> Bound:
    """Write the graph, quantized where the recipe says so."""
    module, wanted = video.denoiser, variant.quantize
    path = onnx.export(module, signature, example, folder / GRAPH)
    if wanted and wanted.scheme == "int8_static":
        seen = onnx_static.observed(module, signature, calls or [example], wanted)
        onnx_static.quantize(path, seen, onnx.is_large(module))
    elif wanted:
        quantize(path).replace(path)
        for data in folder.glob(f"{GRAPH}.data*"):  # of the graph before it was quantized
            data.unlink()
    return Bound(opset=onnx.OPSET)


def open(folder: Path, shell: Module, written: Interface) -> Run:
    """A session on the device that the engine was exported for, as a function of its tensors."""
    chosen = written.recipe.variant.engine_options
    session = _session(folder / GRAPH, written.target.device, chosen)
    cpu = written.target.device == "cpu"
    return _on_cpu(session) if cpu else _on_cuda(session, written.inputs[0].name)


def quantize(path: Path) -> Path:
    """INT8 weights per channel and activations per tensor, scaled as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The quantizer turns Gemm into MatMul and infers shapes anew; the exporter's own notes of the
    # transposed weights' shapes would contradict it.
    model = onnx.load(path)
    del model.graph.value_info[:]
    target = path.with_name(f"{path.stem}-int8.onnx")
    quantize_dynamic(
        model,
        target,
        # Linears only. The quantizer would also turn Attention into a node of BERT's, which means
        # something else; the session rightly refuses it.
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    return target


def _session(path: Path, kind: str, chosen: EngineOptions) -> InferenceSession:
    """Raises RuntimeError where ONNX Runtime fell back to another provider in silence."""
    import onnxruntime as ort
    import torch

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, LEVELS[chosen.graph_optimization]
    )
    if kind == "cpu":
        options.intra_op_num_threads = chosen.threads or torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=[PROVIDERS[kind]])
    if session.get_providers()[0] != PROVIDERS[kind]:
        raise RuntimeError(
            f"ONNX Runtime runs on {session.get_providers()[0]}, not {PROVIDERS[kind]}"
        )
    return session


def _on_cpu(session: InferenceSession) -> Run:
    import torch

    taken = {item.name for item in session.get_inputs()}

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        # An input that the graph does not depend on is not among the session's.
        feed = {name: value.contiguous().numpy() for name, value in inputs.items() if name in taken}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def _on_cuda(session: InferenceSession, first: str) -> Run:
    import torch
    from onnx import TensorProto

    kinds = {  # numpy, by whose types they are usually named, has no BF16
        torch.float32: TensorProto.FLOAT,
        torch.float16: TensorProto.FLOAT16,
        torch.bfloat16: TensorProto.BFLOAT16,
        torch.int64: TensorProto.INT64,
    }
    taken = {item.name for item in session.get_inputs()}
    result = session.get_outputs()[0].name

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        output = torch.empty_like(inputs[first], memory_format=torch.contiguous_format)
        binding = session.io_binding()
        held = {name: value.contiguous() for name, value in inputs.items() if name in taken}
        for name, value in held.items():
            if value.device.type == "cpu":  # a time step of no dimension, as some loops pass it
                binding.bind_cpu_input(name, value.numpy())
                continue
            kind = kinds[value.dtype]
            binding.bind_input(name, "cuda", 0, kind, tuple(value.shape), value.data_ptr())
        kind = kinds[output.dtype]
        binding.bind_output(result, "cuda", 0, kind, tuple(output.shape), output.data_ptr())
        torch.cuda.current_stream().synchronize()  # the session computes on a stream of its own
        session.run_with_iobinding(binding)
        return output

    return run


def _is(variant: Variant) -> bool:
    return variant.engine == "onnxruntime"


RULES: tuple[Rule, ...] = (
    onnx.exporter(_is),
    Rule(
        "ONNX Runtime",
        _is,
        lambda m: "onnxruntime" in m.packages,
        "onnxruntime is not installed: pip install 'qbench[onnx]' (CPU) or 'qbench[gpu]' (CUDA)",
    ),
    Rule(
        "ONNX Runtime in BF16",
        lambda v: _is(v) and v.dtype == "bf16",
        lambda m: m.cuda,
        "ONNX Runtime computes no GEMMs in BF16 on a CPU: choose fp32 or fp16",
    ),
    Rule(
        "ONNX Runtime for CUDA",
        _is,
        lambda m: not m.cuda or "onnxruntime-gpu" in m.packages,
        "the CPU build of ONNX Runtime cannot use this GPU: replace it by 'qbench[gpu]'",
    ),
)
