"""Static quantization of exported graphs, against arithmetic written out in torch."""

from __future__ import annotations

import copy
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from tiny import build, inputs, settings
from torch import Tensor, nn

from qbench.engines import (
    evidence,
    onnx_static,
    onnx_wide,
    static_balance,
    static_forms,
    static_seen,
    tensorrt_plan,
)
from qbench.engines import onnx as exporting
from qbench.engines.inputs import Signature, described, signature
from qbench.errors import Unsupported
from qbench.pipelines import rescaling
from qbench.pipelines.base import VideoPipeline
from qbench.recipe.schema import EngineOptions, Outliers, Quantize

LEFT = ["patch_embed", "time_embedding", "norm_out", "proj_out"]
WANTED = Quantize(backend="tensorrt", scheme="fp8_static", exclude=LEFT)
Calls = list[dict[str, Tensor]]


def _calls(video: VideoPipeline) -> tuple[Signature, Calls]:
    run = settings(video)
    first = inputs(video, run, [0])
    signed = signature(video, run, *first)
    steps = video.captured(run, *first, steps=2)
    return signed, [signed.tensors((), call) for step in steps for call in step]


def _predicted(denoiser: nn.Module, signed: Signature, calls: Calls) -> list[Tensor]:
    made = []
    with torch.no_grad():
        for call in calls:
            given = signed.nested(tuple(call.values()))
            made.append(denoiser(**given, return_dict=False)[0].float())
    return made


def _seen(video: VideoPipeline, signed: Signature, calls: Calls) -> dict[str, static_seen.Seen]:
    watch = static_seen.Watch(video.denoiser, WANTED, len(calls))
    with watch.on():
        _predicted(video.denoiser, signed, calls)
    return watch.seen()


@dataclass(frozen=True)
class Graph:
    """A tiny denoiser exported in BF16, and what its linears saw."""

    video: VideoPipeline
    signed: Signature
    calls: Calls
    seen: dict[str, static_seen.Seen]
    path: Path

    def quantized(self, number: Literal["int8", "fp8"], folder: Path) -> Path:
        path = folder / "denoiser.onnx"
        shutil.copy(self.path, path)
        # As they are: the arithmetic below knows no balance.
        seen = {name: one.marked() for name, one in self.seen.items()}
        onnx_static.quantize(path, seen, static_forms.Symmetric(number), large=False)
        return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("graph")
    video = build("cogvideox", folder, torch.bfloat16)
    signed, calls = _calls(video)
    path = folder / "denoiser.onnx"
    exporting.export(video.denoiser, signed, calls[0], path)
    return Graph(video, signed, calls, _seen(video, signed, calls), path)


@pytest.mark.parametrize("number", ["int8", "fp8"])
def test_a_graph_for_tensorrt_computes_what_rounding_in_torch_does(
    number: Literal["int8", "fp8"], graph: Graph, tmp_path: Path
) -> None:
    """In BF16, for networks are strongly typed: its scales are of BF16 too."""
    path = graph.quantized(number, tmp_path)
    onnx.checker.check_model(path, full_check=True)
    counted = Counter(node.op_type for node in onnx.load(path).graph.node)
    per_token = {name for name, one in graph.seen.items() if one.per_token}
    # Query, key and value of a block share their input.
    assert counted["QuantizeLinear"] == len(per_token) - 2 * 2
    run = onnx_wide.widened(path, described(graph.calls[0], graph.signed.batched))
    assert not list(tmp_path.glob("denoiser.onnx*"))  # its files were taken
    denoiser = copy.deepcopy(graph.video.denoiser).float()
    for name in per_token:
        layer = denoiser.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.register_forward_pre_hook(_rounding(number, graph.seen[name], layer))
    expected = _predicted(denoiser, graph.signed, [_wide(call) for call in graph.calls])
    found = [run(call) for call in graph.calls]
    assert evidence.accuracy(found, expected).relative_l2 < 5e-3


def _wide(call: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.float() if v.is_floating_point() else v for k, v in call.items()}


def _rounding(
    number: str, given: static_seen.Seen, layer: nn.Linear
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    """Weights rounded now, inputs as they come, by scales that BF16 holds."""
    seen, weight = torch.from_numpy(given.rows), layer.weight.data
    if number == "int8":
        tail = static_forms.TAIL
        ends = torch.quantile(seen.double(), torch.tensor([tail, 1 - tail]).double())
        step = (ends.abs().max() / 127).bfloat16().float()
        scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16().float()
        layer.weight.data = (weight / scale).round().clamp(-127, 127) * scale
        return lambda _, x: ((x[0] / step).round().clamp(-128, 127) * step,)
    most = max(given.high.max(), -given.low.min())
    step = torch.tensor(most / 448).bfloat16().float()
    scale = (weight.abs().max() / 448).bfloat16().float()
    layer.weight.data = (weight / scale).to(torch.float8_e4m3fn).float() * scale
    return lambda _, x: ((x[0] / step).clamp(-448, 448).to(torch.float8_e4m3fn).float() * step,)


def test_balanced_channels_change_no_prediction_and_leave_no_trace(tmp_path: Path) -> None:
    video, form = build("cogvideox", tmp_path), static_forms.Symmetric("int8")
    rescaling.add_outliers(video, Outliers(factor=100))
    signed, calls = _calls(video)
    before = {name: value.clone() for name, value in video.denoiser.state_dict().items()}
    expected = _predicted(video.denoiser, signed, calls)
    seen = _seen(video, signed, calls)
    plain = {name: _rounding_error(video, name, one, form) for name, one in seen.items()}
    with static_balance.balanced(video, seen, form) as found:
        predicted = _predicted(video.denoiser, signed, calls)
        better = {name: _rounding_error(video, name, one, form) for name, one in found.items()}
    assert evidence.accuracy(predicted, expected).relative_l2 < 1e-5
    names = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj")
    outliers = {f"transformer_blocks.{block}.{name}" for block in (0, 1) for name in names}
    assert {name for name, one in found.items() if one.balanced} == outliers
    assert all(better[name] < plain[name] / 3 for name in outliers)
    after = video.denoiser.state_dict()
    assert all(value.equal(after[name]) for name, value in before.items())


def _rounding_error(
    video: VideoPipeline, name: str, seen: static_seen.Seen, form: onnx_static.Form
) -> float:
    weight = video.denoiser.get_submodule(name).weight.detach().T
    exact = torch.from_numpy(seen.rows) @ weight
    return float((form.rounded(seen, weight) - exact).norm() / exact.norm())


@pytest.mark.parametrize("times", [[150.0], [400.0], [650.0], [990.0], [10.0], [150.0, 650.0]])
def test_a_range_follows_the_time_step(times: list[float], tmp_path: Path) -> None:
    """Linearly between those that were seen; a batch at several has the range of the noisiest."""
    onnxruntime = pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    weight = random.normal(size=(8, 4)).astype(np.float32)
    known = np.asarray([100.0, 400.0, 900.0], np.float32)
    high = np.asarray([[1.0], [2.0], [8.0]], np.float32) * np.ones((1, 8), np.float32)
    rows = random.uniform(-1, 1, (30, 8)).astype(np.float32)
    seen = static_seen.Seen(known, -high / 2, high, rows, np.arange(30) % 3, True, balanced=True)
    path = _one_linear(weight, tmp_path / "one.onnx")
    onnx_static.quantize(path, {"linear": seen}, static_forms.Integers(), large=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = (random.uniform(-1, 1, (len(times), 6, 8)) * 6).astype(np.float32)
    [made] = session.run(None, {"x": x, "timestep": np.asarray(times, np.float32)})
    top = float(np.interp(max(times), known, high[:, 0]))
    step = 1.5 * top / 255
    zero = round(top / 2 / step)
    given = (np.round(x / step) + zero).clip(0, 255) - zero
    each = np.abs(weight).max(0) / 127
    expected = given * step @ (np.round(weight / each) * each)
    assert np.abs(made - expected).max() < step * np.abs(weight).max()


def _one_linear(weight: np.ndarray, path: Path) -> Path:
    """A graph of one linear, as the exporter leaves it, and of the time step."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("MatMul", ["x", "weight"], ["y"], name="node")
    entry = node.metadata_props.add()
    entry.key, entry.value = exporting.SCOPES, str(["", "linear", "node"])
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6, 8]),
        helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["batch"]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6, 4]),
    ]
    constants = [numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph([node], "one", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, path)
    return path


def test_tensorrt_that_is_not_there_is_told_before_anything_is_loaded() -> None:
    if any(tensorrt_plan.importlib.util.find_spec(name) for name in tensorrt_plan.LIBRARIES):
        pytest.skip("it is installed")
    with pytest.raises(Unsupported, match="pip install 'qbench\\[tensorrt\\]'"):
        tensorrt_plan.check(EngineOptions(), gpu=False)


def test_a_gpu_that_tensorrt_does_not_plan_for_names_those_that_it_does() -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    tensorrt_plan.check(EngineOptions(compute_capability="8.9"), gpu=False)
    with pytest.raises(Unsupported, match=r"builds for .*8\.9.*not for 9\.0: leave it out"):
        tensorrt_plan.check(EngineOptions(compute_capability="9.0"), gpu=False)


@pytest.mark.parametrize("number", ["int8", "fp8"])
def test_a_plan_built_here_computes_its_linears_in_the_scheme_s_type(
    number: Literal["int8", "fp8"], graph: Graph, tmp_path: Path
) -> None:
    """By what the plan itself says of its layers, GPU or not."""
    pytest.importorskip("tensorrt_rtx_bindings")
    path, gpu = graph.quantized(number, tmp_path), torch.cuda.is_available()
    options = EngineOptions(workspace_mib=512, level=2, compute_capability="8.9")
    try:
        plan = tensorrt_plan.make(path, graph.signed, graph.calls[0], options, gpu)
    except Unsupported as error:
        if "asks a GPU's driver" in str(error):
            pytest.skip(str(error))
        raise
    text = plan.decode("latin-1")
    types = dict(re.findall(r'tensor=\{[^\n]*? name="([^"]*)"[^\n]*? type=(\w+)', text))
    products = re.findall(
        r'fully_connected=\{ name="[^"]*" output=\{[^}]*\} input=\{([^}]*)\}', text
    )
    weights = Counter(types.get(re.findall(r'"([^"]*)"', one)[1]) for one in products)
    kind = {"int8": "int8", "fp8": "fp8_e4m3"}[number]
    # A block's query, key and value are one product.
    assert weights[kind] == 2 * 4
