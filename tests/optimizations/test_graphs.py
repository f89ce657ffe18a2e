"""Calls captured as CUDA graphs: the same videos, and refused where a step is not as the last."""

from __future__ import annotations

import dataclasses
import multiprocessing
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pipelines import tiny
from pydantic import ValidationError

from qbench import support
from qbench.optimizations import axes, builds, schemes
from qbench.optimizations.parallel import tokens
from qbench.optimizations.parallel.groups import Traffic
from qbench.pipelines import specs
from qbench.recipe import files
from qbench.recipe.schema import Generation, Quantize, Recipe, Variant

FULL = support.Machine("cuda", (9, 0), frozenset(support.PACKAGES), devices=8)
GRAPH = {"dtype": "bf16", "cuda_graph": True}


def _why_not(fields: dict[str, Any], machine: support.Machine = FULL) -> str:
    return support.why_not(Variant.model_validate(GRAPH | fields), machine) or ""


@pytest.mark.parametrize(
    "fields",
    [{}, {"compile": {}}, {"parallel": {"ulysses": 2}}, {"parallel": {"cfg": 2, "ring": 2}}],
)
def test_what_computes_the_same_in_each_step_can_be_captured(fields: dict[str, Any]) -> None:
    assert _why_not(fields) == ""
    assert "there is none" in _why_not(fields, dataclasses.replace(FULL, device="cpu"))


RANGED = {"method": "smoothquant", "ranges": 2}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cache": {"kind": "pab", "interval": 2}}, "one of cache and cuda_graph"),
        ({"memory": {"offload": "model"}}, "one of memory.offload and cuda_graph"),
        ({"compile": {"scope": "model"}}, "scope blocks"),
        ({"compile": {"mode": "reduce-overhead"}}, "captures nothing"),
        (
            {"attention": "fp8", "sparse_attention": {"threshold": 0.1}},
            "leave out cuda_graph",
        ),
        (
            {"quantize": {"backend": "torchao", "scheme": "int8_dynamic", "calibration": RANGED}},
            "one of the two",
        ),
    ],
)
def test_what_decides_on_the_host_is_refused(fields: dict[str, Any], said: str) -> None:
    assert said in _why_not(fields)
    assert _why_not(fields | {"cuda_graph": False}) == ""


_TORCHAO = [one for one in schemes.SCHEMES.values() if isinstance(one.build, builds.Torchao)]
_LIKE_CAPTURED = {"include": ["block"], "exclude": ["time_embedding", "norm"]}


def _wanted(scheme: schemes.Scheme) -> dict[str, Any]:
    calibration = {"calibration": {"method": "smoothquant"}} if scheme.static else {}
    return {"backend": "torchao", "scheme": scheme.name, **calibration}


def _quantized(scheme: schemes.Scheme) -> torch.nn.Module:
    """One linear, quantized by torchao."""
    from torchao.quantization import PerTensor
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    module = torch.nn.Sequential(torch.nn.Linear(64, 64, dtype=torch.bfloat16))
    assert scheme.build is not None
    scheme.build(module, Quantize.model_validate(_wanted(scheme)), {"0"})
    if scheme.static:
        weight: Any = module[0].weight
        weight.act_quant_kwargs = QuantizeTensorToInt8Kwargs(PerTensor())
        weight.act_quant_scale = torch.full((1, 1), 0.1)
    return module.requires_grad_(False)


@pytest.mark.parametrize("scheme", _TORCHAO, ids=lambda scheme: scheme.name)
def test_schemes_whose_gemms_read_their_inputs_on_the_host_are_refused_uncompiled(
    scheme: schemes.Scheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of torchao's, on the way that it takes on a GPU."""
    if scheme.activations == "fp8":
        pytest.skip("torchao multiplies FP8 on a GPU alone")
    from torchao.kernel import intmm

    monkeypatch.setattr(intmm, "_is_device", lambda *_: False)
    module, x = _quantized(scheme), torch.randn(32, 64, dtype=torch.bfloat16)
    with torch.profiler.profile() as profile:  # no mode sees what is printed
        module(x)
    # A copy of one value to the host, which waits for the GPU and breaks off a capture.
    reads = any(event.name == "aten::_local_scalar_dense" for event in profile.events())
    assert reads == ("on the host" in _why_not({"quantize": _wanted(scheme)}))
    torch.compile(module, backend="eager", fullgraph=True)(x)  # which a read would break
    assert _why_not({"quantize": _wanted(scheme) | _LIKE_CAPTURED, "compile": {}}) == ""


@pytest.mark.parametrize("family", ["cogvideox", "unet", "wan"])
def test_what_is_quantized_beside_compiled_blocks_is_refused_and_what_is_said_instead_is_not(
    family: str, tmp_path: Path
) -> None:
    video = tiny.build(family, tmp_path, torch.bfloat16)
    model = support.model_facts(video, guided=True, frames=tiny.FRAMES)
    machine = dataclasses.replace(FULL, model=model)
    whole = {"backend": "torchao", "scheme": "int8_dynamic", "exclude": ["time_embedding", "norm"]}

    def why_not(**wanted: Any) -> str:
        return _why_not({"quantize": whole | wanted, "compile": {}}, machine)

    assert why_not(**_LIKE_CAPTURED) == ""
    beside = [
        name
        for name in model.linears.keys() - model.in_blocks
        if not any(part in name for part in whole["exclude"])
    ]
    assert bool(beside) == (family != "unet")
    assert ("on the host" in why_not()) == bool(beside)
    for name in beside:
        assert "on the host" in why_not(scheme="int8_weight_only", layers={name: "int8_dynamic"})
        assert why_not(layers=dict.fromkeys(beside, "none")) == ""


def test_an_engine_has_no_call_to_capture() -> None:
    with pytest.raises(ValidationError, match="cuda_graph"):
        Variant.model_validate(GRAPH | {"engine": "onnxruntime"})


def test_a_folder_leaves_the_graph_to_whoever_goes_on_with_its_denoiser() -> None:
    """What is written is the plain module, captured nowhere; an engine has no call to capture."""
    from qbench.engines import describe, export, exported, formats

    variant = Variant.model_validate(GRAPH)
    for form in formats.MODULES:
        assert ("cuda_graph" in exported.free(form)) == (not formats.refuses(form, variant))
        if "cuda_graph" in exported.free(form):
            assert describe._outside(variant, form) == ["cuda_graph"]
    recipe, model = Recipe(name="graph", variant=variant), specs.find("tiny-cogvideox")
    run = specs.load(model, "fp32", "cpu").resolve(model, Generation(steps=2))
    video = export._variant(recipe, model, "qbench", "cpu", run)
    with torch.no_grad():  # captured, it would refuse tensors of the host's
        for call in video.step_inputs(run):
            assert video.denoiser(**call, return_dict=False)[0].isfinite().all()


def test_exchanges_of_a_graph_count_at_each_replay_and_not_as_it_is_captured() -> None:
    traffic, cpu = Traffic(), torch.device("cpu")
    with traffic.exchange(cpu):
        pass
    with traffic.captured() as captured:
        for _ in range(3):
            with traffic.exchange(cpu):
                pass
    assert traffic.begun == 1
    before = traffic.seconds()
    assert before > 0
    assert traffic.seconds() == 0  # what was captured has not happened yet
    for _ in range(2):
        traffic.again(captured)
    assert traffic.begun == 7
    once = sum(end - start for start, end in captured.spans if isinstance(end, float))  # type: ignore[operator]
    assert traffic.seconds() == pytest.approx(2 * once)


def test_a_graphs_messages_keep_their_memory_when_a_larger_batch_wants_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replay writes where it was captured to: were that freed, into whatever lies there now."""
    attention, like = tokens.Attention(None), torch.empty(1)  # type: ignore[arg-type]
    plain = weakref.ref(attention._room("sent", like, 2, 8).untyped_storage())
    attention._room("sent", like, 4, 8)
    assert plain() is None  # nobody is to read it again
    monkeypatch.setattr(tokens, "_is_captured", lambda: True)
    captured = attention._room("sent", like, 4, 8)
    captured.fill_(7)
    address = captured.data_ptr()
    del captured
    monkeypatch.setattr(tokens, "_is_captured", lambda: False)
    larger = attention._room("sent", like, 64, 8)
    assert larger.data_ptr() != address
    assert [room.data_ptr() for room in attention._in_graphs.values()] == [address]
    attention.release()
    assert not attention._in_graphs


def _videos(fields: dict[str, Any]) -> list[torch.Tensor]:
    """Of two sizes of batch, one after the other and back again, and one more with all undone."""
    model = specs.find("tiny-cogvideox")
    pipeline = specs.load(model, "bf16", "cuda")
    run = pipeline.resolve(model, Generation(steps=4))

    def made(*seeds: int) -> torch.Tensor:
        prompts = ["a red star", "a blue ring"][: len(seeds)]
        latents = pipeline.denoise(
            run,
            pipeline.encode(run, prompts),
            torch.cat([pipeline.noise(run, seed) for seed in seeds]),
            lambda _: None,
            generators=pipeline.generators(seeds),
        )
        return latents.cpu()

    applied = axes.apply(pipeline, Variant.model_validate(fields), "cuda", run.steps)
    found = [made(0), made(0, 1), made(2), made(0)]
    applied.undo()
    return [*found, made(0)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("fields", [{}, {"compile": {}}])
def test_a_captured_video_is_the_video_to_the_bit(fields: dict[str, Any]) -> None:
    captured, plain = _videos(GRAPH | fields), _videos({"dtype": "bf16"} | fields)
    assert all(torch.equal(a, b) for a, b in zip(captured, plain, strict=True))
    assert not torch.equal(captured[0], captured[2])


def _on_two_gpus(rank: int, meeting: str, results: Any) -> None:
    """Latents of two seeds by Ulysses, plain and captured in turns, from one compiler's cache."""
    torch.cuda.set_device(rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    variant = files.load(Path("recipes/parallel/fast-ulysses.yaml").resolve()).variant
    model, found = specs.find("tiny-cogvideox"), []
    for captured in (False, True, False):
        torch._dynamo.reset()
        pipeline = specs.load(model, "bf16", "cuda")
        run = pipeline.resolve(model, Generation(steps=4))
        fields = {"cuda_graph": captured}
        applied = axes.apply(pipeline, variant.model_copy(update=fields), "cuda", run.steps)
        prompt = pipeline.encode(run, ["a red star"])
        for seed in (0, 1):
            noise, draws = pipeline.noise(run, seed), pipeline.generators([seed])
            made = pipeline.denoise(run, prompt, noise, lambda _: None, generators=draws)
            found.append(made.cpu())
        applied.undo()
    if rank == 0:
        results.put([x.float().numpy() for x in found])
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_two_gpus_make_the_same_video_captured_or_not(tmp_path: Path) -> None:
    """By the same kernels: two programs may have been given different ones by their compilers."""
    starting = multiprocessing.get_context("spawn")
    results = starting.Queue()
    ranks = [
        starting.Process(target=_on_two_gpus, args=(rank, str(tmp_path / "meeting"), results))
        for rank in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    first, second, *others = results.get(timeout=300)
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert not np.array_equal(first, second)
    for made, again in zip([first, second] * 2, others, strict=True):
        assert np.array_equal(made, again)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_graph_keeps_apart_what_it_gave_before_and_what_it_was_asked_for() -> None:
    """Results stay as they were after the next call; other arguments make a graph of their own."""
    from qbench.optimizations.graphs import _Graphs

    calls = []

    def inner(x: torch.Tensor, *, scale: torch.Tensor, negative: bool = False) -> Any:
        calls.append(negative)
        return (x * scale * (-1 if negative else 1), "as it is")

    graphs = _Graphs(inner, None)
    x, two, three = (torch.full((3,), float(n), device="cuda") for n in (1, 2, 3))
    first = graphs(x, scale=two)
    second: Any = graphs(x.expand(3), scale=three)
    third: Any = graphs(x, scale=three, negative=True)
    assert first[1] == "as it is"  # type: ignore[index]
    assert [one[0][0].item() for one in (first, second, third)] == [2, 3, -3]  # type: ignore[index]
    assert calls == [False, False, True, True]  # once, and once to capture it
