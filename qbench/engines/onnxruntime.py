"""Running an exported denoiser with ONNX Runtime, on the device where the module was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qbench.engines import EngineDenoiser
from qbench.engines.onnx import INPUTS

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


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


def load(module: Any, path: Path) -> EngineDenoiser:
    """A session behind the module's interface.

    Raises RuntimeError where ONNX Runtime fell back to another provider, which it does in silence.
    """
    import onnxruntime as ort
    import torch

    kind = module.device.type
    options = ort.SessionOptions()
    if kind == "cpu":
        options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=[PROVIDERS[kind]])
    if session.get_providers()[0] != PROVIDERS[kind]:
        raise RuntimeError(
            f"ONNX Runtime runs on {session.get_providers()[0]}, not {PROVIDERS[kind]}"
        )
    stored = sum(item.stat().st_size for item in path.parent.glob(f"{path.name}*"))
    run = _on_cpu(session) if kind == "cpu" else _on_cuda(session, module)
    return EngineDenoiser(module, run, stored)


def _on_cpu(session: Any) -> Any:
    import torch

    def run(*inputs: Any) -> Any:
        feed = {
            name: value.contiguous().numpy() for name, value in zip(INPUTS, inputs, strict=True)
        }
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def _on_cuda(session: Any, module: Any) -> Any:
    import numpy as np
    import torch

    kinds = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}

    def run(*inputs: Any) -> Any:
        output = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
        binding = session.io_binding()
        held = [value.contiguous() for value in inputs]
        for name, value in zip(INPUTS, held, strict=True):
            kind = kinds[value.dtype]
            binding.bind_input(name, "cuda", 0, kind, tuple(value.shape), value.data_ptr())
        kind = kinds[output.dtype]
        binding.bind_output("sample", "cuda", 0, kind, tuple(output.shape), output.data_ptr())
        torch.cuda.current_stream().synchronize()  # the session computes on a stream of its own
        session.run_with_iobinding(binding)
        return output

    return run
