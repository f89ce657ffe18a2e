"""Running an exported denoiser with ONNX Runtime, on the device where the module was."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines import onnx, onnx_static, static_balance, static_forms
from qbench.engines.manifest import Bound
from qbench.optimizations import schemes
from qbench.optimizations.rules import Rule, never
from qbench.recipe.schema import EngineOptions, Variant

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import Tensor

    from qbench.engines.base import Run
    from qbench.engines.inputs import Signature
    from qbench.engines.manifest import Interface
    from qbench.engines.static_seen import Seen
    from qbench.meters.profile import Layer
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
HALF = "ONNX Runtime quantizes what is computed in FP32: choose fp32"


def refuses(variant: Variant) -> str:
    """Why an ONNX graph cannot hold the variant; empty where it can."""
    if variant.engine != "onnxruntime":
        return "choose a recipe with engine: onnxruntime, as recipes/onnx.yaml has it"
    if variant.quantize is not None and variant.dtype != "fp32":
        return HALF
    return ""


def write(
    video: VideoPipeline,
    signature: Signature,
    example: Mapping[str, Tensor],
    variant: Variant,
    folder: Path,
    seen: Mapping[str, Seen] | None = None,
) -> Bound:
    """Write the graph, quantized where the recipe says so."""
    module, wanted = video.denoiser, variant.quantize
    path = folder / GRAPH
    if wanted and schemes.find(wanted).static:
        form = static_forms.Integers()
        with static_balance.balanced(video, seen or {}, form) as found:
            spared_s = onnx.export(module, signature, example, path)
        onnx_static.quantize(path, found, form, onnx.is_large(module))
        return Bound(opset=onnx.OPSET, spared_s=spared_s)
    spared_s = onnx.export(module, signature, example, path)
    if wanted:
        quantize(path).replace(path)
        for data in folder.glob(f"{GRAPH}.data*"):  # of the graph before it was quantized
            data.unlink()
    return Bound(opset=onnx.OPSET, spared_s=spared_s)


def open(folder: Path, shell: Module, written: Interface) -> Run:
    """A session on the device that the engine was exported for, as a function of its tensors."""
    chosen = written.recipe.variant.engine_options
    return Engine(folder / GRAPH, written.target.device, chosen, written.inputs[0].name)


def quantize(path: Path) -> Path:
    """INT8 weights per channel and activations per tensor, scaled as they come."""
    import onnx as library
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # The quantizer turns Gemm into MatMul and infers shapes anew; the exporter's own notes of the
    # transposed weights' shapes would contradict it.
    model = library.load(path)
    del model.graph.value_info[:]
    plain = {node.name: list(node.metadata_props) for node in model.graph.node}
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
    made = library.load(target)
    for node in made.graph.node:  # those that it replaced have lost which layer they are of
        if not node.metadata_props:
            name = node.name.removesuffix("_quant").removesuffix("_MatMul")
            node.metadata_props.extend(plain.get(name, []))
    library.save(made, target)
    return target


@dataclass
class Engine:
    """A session as a function of its tensors, on the device that the engine was exported for."""

    path: Path
    device: str
    chosen: EngineOptions
    first: str  # the input that the prediction is shaped like
    session: InferenceSession = field(init=False)

    def __post_init__(self) -> None:
        self.session = _session(self.path, self.device, self.chosen)

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        # An input that the graph does not depend on is not among the session's.
        taken = {item.name for item in self.session.get_inputs()}
        held = {name: value.contiguous() for name, value in inputs.items() if name in taken}
        if self.device == "cpu":
            return _on_cpu(self.session, held)
        return _on_cuda(self.session, held, inputs[self.first])

    def layers(self, step: Callable[[], object]) -> list[Layer]:
        """Each node's time in a session of its own, which profiles; on a CPU.

        On a GPU ONNX Runtime times the launch of kernels, which is another thing.
        """
        if self.device != "cpu":
            return []
        plain = self.session
        with tempfile.TemporaryDirectory() as scratch:
            self.session = _session(self.path, self.device, self.chosen, Path(scratch) / "profile")
            try:
                step()
                events = json.loads(Path(self.session.end_profiling()).read_text())
            finally:
                self.session = plain
        return onnx.layers(events, self.path)


def _session(
    path: Path, kind: str, chosen: EngineOptions, profile: Path | None = None
) -> InferenceSession:
    """Raises RuntimeError where ONNX Runtime fell back to another provider in silence.

    profile: where the session writes what its nodes took, if it is to.
    """
    import onnxruntime as ort
    import torch

    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(
        ort.GraphOptimizationLevel, LEVELS[chosen.graph_optimization]
    )
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if kind == "cpu":
        options.intra_op_num_threads = chosen.threads or torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=[PROVIDERS[kind]])
    if session.get_providers()[0] != PROVIDERS[kind]:
        raise RuntimeError(
            f"ONNX Runtime runs on {session.get_providers()[0]}, not {PROVIDERS[kind]}"
        )
    return session


def _on_cpu(session: InferenceSession, held: Mapping[str, Tensor]) -> Tensor:
    import torch

    return torch.from_numpy(
        session.run(None, {name: value.numpy() for name, value in held.items()})[0]
    )


def _on_cuda(session: InferenceSession, held: Mapping[str, Tensor], like: Tensor) -> Tensor:
    import torch
    from onnx import TensorProto

    kinds = {  # numpy, by whose types they are usually named, has no BF16
        torch.float32: TensorProto.FLOAT,
        torch.float16: TensorProto.FLOAT16,
        torch.bfloat16: TensorProto.BFLOAT16,
        torch.int64: TensorProto.INT64,
    }
    output = torch.empty_like(like, memory_format=torch.contiguous_format)
    binding = session.io_binding()
    for name, value in held.items():
        if value.device.type == "cpu":  # a time step of no dimension, as some loops pass it
            binding.bind_cpu_input(name, value.numpy())
            continue
        kind = kinds[value.dtype]
        binding.bind_input(name, "cuda", 0, kind, tuple(value.shape), value.data_ptr())
    result, kind = session.get_outputs()[0].name, kinds[output.dtype]
    binding.bind_output(result, "cuda", 0, kind, tuple(output.shape), output.data_ptr())
    torch.cuda.current_stream().synchronize()  # the session computes on a stream of its own
    session.run_with_iobinding(binding)
    return output


def _is(variant: Variant) -> bool:
    return variant.engine == "onnxruntime"


RULES: tuple[Rule, ...] = (
    onnx.exporter("ONNX Runtime", _is),
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
        "ONNX Runtime's INT8",
        lambda v: _is(v) and v.quantize is not None,
        lambda m: not m.cuda,
        "ONNX Runtime's CUDA provider has no GEMM of U8 and S8 and would compute it on the CPU: "
        "choose device cpu, or TensorRT",
    ),
    Rule(
        "ONNX Runtime's INT8 in half precision",
        lambda v: _is(v) and v.quantize is not None and v.dtype != "fp32",
        never,
        HALF,
    ),
    Rule(
        "ONNX Runtime for CUDA",
        _is,
        lambda m: not m.cuda or "onnxruntime-gpu" in m.packages,
        "the CPU build of ONNX Runtime cannot use this GPU: replace it by 'qbench[gpu]'",
    ),
)
