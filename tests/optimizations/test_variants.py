"""Each axis changes what it says it changes, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES

from qbench import support
from qbench.errors import InputError
from qbench.meters.memory import stored_bytes
from qbench.optimizations import axes, builds, compilation, quantization
from qbench.pipelines import specs
from qbench.recipe import files, schema
from qbench.recipe.schema import Quantize, Variant


def _denoiser(dtype: Any = "fp32") -> Any:
    return specs.load(specs.find("tiny-cogvideox"), dtype, "cpu").denoiser


def _inputs(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 5, 16, 8, 8, generator=generator).to(dtype)
    text = torch.randn(2, 24, 128, generator=generator).to(dtype)
    return latents, text, torch.tensor([500, 500])


def _error(module: Any, dtype: torch.dtype) -> float:
    """Relative error of one step against the FP32 denoiser."""
    with torch.no_grad():
        expected = _denoiser()(*_inputs(torch.float32), return_dict=False)[0]
        found = module(*_inputs(dtype), return_dict=False)[0].float()
    return ((found - expected).norm() / expected.norm()).item()


def _quantized(backend: str, scheme: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    module = _denoiser("bf16")
    wanted = Quantize.model_validate({"backend": backend, "scheme": scheme, **more})
    return module, quantization.apply(module, wanted)[0]


@pytest.mark.parametrize(
    ("backend", "scheme", "least", "most", "bits"),
    [
        ("torchao", "int8_weight_only", 1e-3, 0.03, 8),
        ("torchao", "fp8_weight_only", 5e-3, 0.06, 8),
        ("torchao", "int4_weight_only", 0.02, 0.3, 8),  # stored one value a byte
        ("torchao", "int2_weight_only", 0.2, 5.0, 8),
        ("quanto", "int8_weight_only", 1e-3, 0.05, 8),
        ("quanto", "int4_weight_only", 0.02, 0.5, 4),
        ("quanto", "fp8_weight_only", 5e-3, 0.06, 8),
    ],
)
def test_scheme_rounds_as_much_as_its_bits_and_stores_as_few(
    backend: str, scheme: str, least: float, most: float, bits: int
) -> None:
    module, facts = _quantized(backend, scheme)
    assert least < _error(module, torch.bfloat16) < most
    assert stored_bytes(module) < 9_673_024 * bits / 8 * 1.35
    assert facts["quantized_parameter_share"] > 0.98


def test_dtypes_round_in_their_order() -> None:
    fp16, bf16 = (
        _error(_denoiser(name), kind)
        for name, kind in (("fp16", torch.float16), ("bf16", torch.bfloat16))
    )
    assert 0 < fp16 < bf16 / 3


def test_exclude_leaves_modules_untouched_and_the_share_says_so() -> None:
    module, facts = _quantized("torchao", "int8_weight_only", exclude=["ff", "norm"])
    plain = _denoiser("bf16")
    untouched = module.transformer_blocks[0].ff.net[0].proj.weight
    assert torch.equal(untouched, plain.transformer_blocks[0].ff.net[0].proj.weight)
    assert type(module.transformer_blocks[0].attn1.to_q.weight) is not torch.nn.Parameter
    attention = sum(
        layer.weight.numel()
        for name, layer in plain.named_modules()
        if isinstance(layer, torch.nn.Linear) and "ff" not in name and "norm" not in name
    )
    total = sum(p.numel() for p in plain.parameters())
    assert facts["quantized_parameter_share"] == pytest.approx(attention / total)


def test_excluding_everything_is_an_error() -> None:
    with pytest.raises(InputError, match="leave nothing to quantize"):
        _quantized("torchao", "int8_weight_only", include=["nowhere"])


def test_torchao_leaves_inductors_global_settings_alone() -> None:
    import torch._inductor.config as config

    before = (
        config.max_autotune,
        config.coordinate_descent_tuning,
        config.force_fuse_int_mm_with_mul,
    )
    _quantized("torchao", "int8_dynamic")
    after = (
        config.max_autotune,
        config.coordinate_descent_tuning,
        config.force_fuse_int_mm_with_mul,
    )
    assert before == after


@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_torchs_kernel_is_chosen_for_the_denoiser_alone(kernel: str) -> None:
    """T5's attention has a bias that flash fails on: around the denoiser nothing may change."""
    pipeline = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu")
    module = pipeline.denoiser
    seen = {}

    def look(name: str) -> Any:
        flags = torch.backends.cuda
        return lambda *_: seen.update(
            {name: (flags.math_sdp_enabled(), flags.flash_sdp_enabled(), flags.cudnn_sdp_enabled())}
        )

    before = look("before")
    before()
    module.transformer_blocks[0].attn1.register_forward_hook(look("denoiser"))
    pipeline.pipe.text_encoder.register_forward_hook(look("text encoder"))
    axes.apply(pipeline, Variant(attention=kernel), "cpu", steps=2)
    with torch.no_grad():
        pipeline.pipe.encode_prompt(["a red star"], do_classifier_free_guidance=False)
    error = _error(module, torch.float32)
    look("after")()
    assert seen["denoiser"] == (kernel == "math", kernel == "flash", False)
    assert seen["before"] == seen["text encoder"] == seen["after"]
    assert error < 1e-5


def test_half_an_attention_package_is_a_reason_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlashAttention 4 without the libraries that it compiles with."""
    from qbench.errors import Unsupported
    from qbench.optimizations import attention

    package = tmp_path / "flash_attn" / "cute"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import cutlass_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(Unsupported, match=r"flash-4 is not installed whole.*cutlass_that_is"):
            attention.load("flash-4")
    finally:
        sys.modules.pop("flash_attn", None)


def test_layers_that_torchao_takes_for_block_scaled_keep_their_type() -> None:
    """A weight of 128x128 with one scale failed at the first step, in torchao 0.18 on an H200."""
    module = _denoiser("bf16")
    assert module.time_embedding.linear_2.weight.shape == (128, 128)
    names = {
        scheme: set(quantization.chosen(module, Quantize(backend="torchao", scheme=scheme)))
        for scheme in ("fp8_dynamic_tensor", "fp8_dynamic_row")
    }
    assert names["fp8_dynamic_row"] - names["fp8_dynamic_tensor"] == {"time_embedding.linear_2"}


def test_regional_compilation_keeps_the_function_and_makes_one_program_of_all_blocks() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pipeline = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu")
    compilation.apply(pipeline, schema.Compile(scope="blocks"), hooked=False)
    assert _error(pipeline.denoiser, torch.float32) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    compiled = [
        block._compiled_call_impl is not None for block in pipeline.denoiser.transformer_blocks
    ]
    assert all(compiled)


BARE = support.Machine(device="cpu", packages=frozenset(), compiler=False)
GPU_ALONE = support.Machine(device="cuda", capability=(8, 0), packages=frozenset())
CLASHING = support.Machine("cuda", (9, 0), frozenset({"xformers", "flash_attn.cute"}))
FORWARD = support.Machine("cuda", (9, 0), frozenset({"fa3_fwd_interface"}))
FULL = support.Machine(
    device="cuda",
    capability=(9, 0),
    packages=frozenset({*support.PACKAGES, "onnxruntime-gpu"}),
    devices=8,
)
ODD = support.ModelFacts(
    pipeline="OddPipeline",
    linears={"blocks.0.to_q": 48, "proj_out": 48},
    one_row=frozenset({"blocks.0.to_q"}),
    in_blocks=frozenset({"blocks.0.to_q"}),
    head_dim=96,
    blocks=False,
    guided=False,
    causal_vae=False,
    exports=False,
    separate_guidance=True,
)


def test_everything_runs_on_a_full_machine_and_every_rule_can_refuse() -> None:
    shipped = [files.load(path).variant for path in RECIPES.rglob("*.yaml")]
    cpu = dataclasses.replace(FULL, device="cpu")  # which ONNX Runtime's INT8 is for
    for variant in shipped:
        there = cpu if variant.quantize and variant.quantize.backend == "onnxruntime" else FULL
        assert support.why_not(variant, there) is None
    int8 = {"backend": "torchao", "scheme": "int8_dynamic"}
    fp8 = {"backend": "torchao", "scheme": "fp8_dynamic_row"}
    int4 = {"backend": "quanto", "scheme": "int4_weight_only"}
    onnx_int8 = {"backend": "onnxruntime", "scheme": "int8_dynamic"}
    sparse = {"attention": "fp8", "sparse_attention": {"threshold": 0.1, "dense_share": 0.2}}
    graph = {"cuda_graph": True}
    smooth = files.load(RECIPES / "calibrated" / "smoothquant-int8.yaml").variant.quantize
    assert smooth is not None
    others = [
        Variant.model_validate({"dtype": "bf16", **fields})
        for fields in (
            {"attention": "cudnn"},
            {"attention": "sage"},
            {"attention": "flash", "dtype": "fp32"},
            {"attention": "flash-3", "dtype": "fp16"},
            {"memory": {"offload": "model"}},
            {"engine": "onnxruntime"},
            {"quantize": fp8},
            {"quantize": fp8, "dtype": "fp16"},
            {"quantize": fp8 | {"backend": "qbench"}, "dtype": "fp32"},
            {"quantize": int8, "compile": {}},
            {"quantize": int4, "compile": {}},
            {"quantize": int4, "dtype": "fp16"},
            {"quantize": int4, "memory": {"offload": "group"}},
            {"quantize": smooth.model_dump(), "memory": {"offload": "model"}},
            {"compile": {}, "cache": {"kind": "pab", "interval": 2}},
            {"compile": {"scope": "model"}, "cache": {"kind": "taylorseer", "interval": 2}},
            {"parallel": {"cfg": 2}, "memory": {"offload": "model"}},
            {"parallel": {"cfg": 2, "decode": True}, "memory": {"vae_tiling": True}},
            {"parallel": {"ulysses": 2}, "compile": {"scope": "model"}},
            {"parallel": {"ulysses": 2}, "compile": {"mode": "reduce-overhead"}},
            {"parallel": {"ring": 2}, "attention": "sage"},
            {"memory": {"offload": "group"}, "cache": {"kind": "mag", "threshold": 0.1}},
            {"parallel": {"cfg": 2}, "cache": {"kind": "faster", "interval": 2}},
            {"parallel": {"cfg": 2}, "cache": {"kind": "sea", "threshold": 0.1}},
            sparse | {"parallel": {"cfg": 2}},
            sparse | {"compile": {"mode": "reduce-overhead"}},
            sparse | {"compile": {"scope": "model"}},
            {"engine": "onnxruntime", "quantize": onnx_int8, "dtype": "fp16"},
            graph | {"compile": {"scope": "model"}},
            graph | {"cache": {"kind": "mag", "threshold": 0.1}},
            graph | {"memory": {"offload": "group"}},
            graph | {"quantize": int4},
            graph | {"quantize": int8, "compile": {}},
            graph | {"quantize": int8 | {"calibration": {"method": "smoothquant", "ranges": 2}}},
        )
    ]
    for rule in support.RULES:
        about = [variant for variant in [*shipped, *others] if rule.applies(variant)]
        assert about, rule.about
        machines = (BARE, GPU_ALONE, CLASHING, FORWARD, dataclasses.replace(FULL, model=ODD))
        assert any(rule.refuses(v, m) for v in about for m in machines), rule.about


@pytest.mark.parametrize(
    ("recipe_name", "machine", "reason"),
    [
        ("tensorrt", support.Machine("cpu", packages=FULL.packages), "needs an NVIDIA GPU"),
        (
            "tensorrt",
            support.Machine("cuda", (9, 0), frozenset({"onnx", "onnxscript"})),
            "tensorrt]",
        ),
        ("onnx", BARE, "qbench[onnx]"),
        ("onnx", support.Machine("cuda", (9, 0), frozenset(support.PACKAGES)), "qbench[gpu]"),
        ("int8-quanto", BARE, "qbench[quanto]"),
        ("compile", BARE, "C++ compiler"),
        ("fp32", BARE, None),
    ],
)
def test_reasons_say_what_to_do(recipe_name: str, machine: support.Machine, reason: str) -> None:
    found = support.why_not(files.load(RECIPES / f"{recipe_name}.yaml").variant, machine)
    assert (found is None) if reason is None else (reason in (found or ""))


def test_tracked_engine_matches_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime against the module; then the same engine with its output scaled by 1.1."""
    pytest.importorskip("onnxruntime")
    from qbench.engines import engine, static_seen
    from qbench.engines.denoiser import EngineDenoiser
    from qbench.engines.inputs import interface, signature
    from qbench.engines.manifest import Bound
    from qbench.engines.parity import parity

    video = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu")
    run = video.resolve(specs.find("tiny-cogvideox"), schema.Generation())
    first = video.encode(run, ["a red star"]), video.noise(run, 0)
    module, signed = video.denoiser, signature(video, run, *first)
    calls = [call for step in video.captured(run, *first, steps=2) for call in step]
    example, kind = signed.tensors((), calls[0]), engine("onnxruntime")

    def built(place: Path, **chosen: object) -> EngineDenoiser:
        place.mkdir()
        variant = schema.Variant.model_validate({"engine": "onnxruntime", **chosen})
        recipe = schema.Recipe(name="onnx", model="tiny-cogvideox", variant=variant)
        seen = static_seen.along_trajectories(video, run, recipe, specs.find(recipe.model))
        kind.write(video, signed, example, variant, place, seen)
        written = interface(recipe, module, signed, example, Bound())
        stored = sum(path.stat().st_size for path in place.iterdir())
        return EngineDenoiser(module, signed, kind.open(place, module, written), stored)

    plain = built(tmp_path / "plain")
    assert parity(module, plain, calls, exact=True)["parity_relative_error"] < 1e-4
    assert plain.config is module.config
    assert plain.stored_bytes == pytest.approx(4 * 9_673_024, rel=0.1)
    # Another batch than the one that was exported.
    wide = {name: torch.cat([value] * 2) for name, value in calls[0].items()}
    assert parity(module, plain, [wide], exact=True)["parity_relative_error"] < 1e-4
    wrong = EngineDenoiser(module, signed, lambda x: 1.1 * plain._run(x), 0)
    with pytest.raises(RuntimeError, match="computes something else"):
        parity(module, wrong, calls, exact=True)
    broken = EngineDenoiser(module, signed, lambda x: plain._run(x) * float("nan"), 0)
    with pytest.raises(RuntimeError, match="computes something else"):
        parity(module, broken, calls, exact=True)
    quantize = {"backend": "onnxruntime", "scheme": "int8_dynamic"}
    small = built(tmp_path / "small", quantize=quantize)
    assert small.stored_bytes < plain.stored_bytes / 3
    assert parity(module, small, calls, exact=False)["parity_relative_error"] < 0.1
    left = ["patch_embed", "time_embedding", "norm_out", "proj_out"]
    chosen = {**quantize, "scheme": "int8_static", "exclude": left}
    options = {"graph_optimization": "basic", "threads": 1}
    static = built(tmp_path / "static", quantize=chosen, engine_options=options)
    assert static.stored_bytes < plain.stored_bytes / 3
    # Of a video that it was not calibrated on, and at time steps between those that it was: no step
    # is much worse than with ranges as they come. One range for all steps made the last ones' error
    # 2.2 times as large and the first one's six times.
    other = video.encode(run, ["a blue circle grows on a black background"]), video.noise(run, 5)
    steps = video.captured(run, *other, steps=7)
    errors = [
        [parity(module, by, calls, exact=False)["parity_relative_error"] for by in (static, small)]
        for calls in steps
    ]
    assert all(1e-3 < fixed < 1.6 * dynamic for fixed, dynamic in errors)


def test_lock_of_a_killed_build_is_forgotten_and_that_of_a_running_one_is_kept(
    tmp_path: Path,
) -> None:
    """optimum-quanto waits on it for ever: a sweep stood still for hours."""
    stale, fresh = (tmp_path / name / "lock" for name in ("cpp", "mps"))
    for lock in (stale, fresh):
        lock.parent.mkdir(parents=True)
        lock.touch()
    os.utime(stale, (0, 0))
    builds.forget_stale_locks(tmp_path)
    assert not stale.exists()
    assert fresh.exists()


def test_quantos_extensions_are_built_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in site-packages; what is built there for this torch is used.

    Two environments do not build in one place: each would build anew after the other.
    """
    extension = pytest.importorskip("optimum.quanto.library.extensions.extension")
    from qbench import cache

    built, missing = (
        extension.Extension(name, str(tmp_path / "site-packages" / name), [])
        for name in ("built", "missing")
    )
    stamp = Path(built.build_directory) / "pytorch_version.txt"
    stamp.parent.mkdir(parents=True)
    stamp.write_text(torch.__version__)
    monkeypatch.setattr(extension, "_extensions", {"built": built, "missing": missing})
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")
    builds.build_in_cache()
    assert built.build_directory == str(stamp.parent)
    assert Path(missing.build_directory).is_relative_to(tmp_path / "cache")
    assert Path(missing.build_directory).is_dir()
    ours = missing.build_directory
    monkeypatch.setattr(sys, "prefix", "/another")
    builds.build_in_cache()
    assert built.build_directory == str(stamp.parent)
    assert missing.build_directory != ours


def test_convolutions_are_quantized_where_the_recipe_says_so_and_over_time_never() -> None:
    from diffusers import UNet3DConditionModel

    def made(**more: Any) -> tuple[Any, dict[str, float]]:
        module = copy.deepcopy(plain)
        return module, quantization.apply(module, Quantize(**quanto, **more))[0]

    quanto: Any = {"backend": "quanto", "scheme": "int8_weight_only"}
    plain = UNet3DConditionModel(
        block_out_channels=(32,), down_block_types=("DownBlock3D",), up_block_types=("UpBlock3D",),
        layers_per_block=1, norm_num_groups=8, cross_attention_dim=32, attention_head_dim=8,
    )  # fmt: skip
    linears, both = made(), made(convolutions=True)
    for name, layer in plain.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            assert torch.equal(linears[0].get_submodule(name).weight, layer.weight)
            stored = both[0].get_submodule(name).weight
            assert stored._data.dtype == torch.int8
            error = (stored.dequantize() - layer.weight).norm() / layer.weight.norm()
            assert 0 < error < 0.02
        if isinstance(layer, torch.nn.Conv3d):
            assert torch.equal(both[0].get_submodule(name).weight, layer.weight)
    count = sum(isinstance(layer, torch.nn.Conv2d) for layer in plain.modules())
    assert both[1]["quantized_convolutions"] == count
    assert both[1]["quantized_linears"] == linears[1]["quantized_linears"]
    assert both[1]["quantized_parameter_share"] > linears[1]["quantized_parameter_share"] + 0.2


def test_convolutions_are_quantos_alone() -> None:
    with pytest.raises(ValueError, match="torchao quantizes linears alone"):
        Quantize(backend="torchao", scheme="int8_weight_only", convolutions=True)


@pytest.mark.parametrize("own", ["/the/runs/own", None])
def test_what_inductor_finds_out_about_a_cpu_is_kept_for_all_runs(
    own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the machine's: no run that is compiled from empty caches pays for it again."""
    from torch._inductor import cpu_vec_isa

    seen = list[str]()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compilation.KEPT, raising=False)
    if own:
        monkeypatch.setenv(compilation.KEPT, own)

    def look() -> None:
        seen.append(os.environ[compilation.KEPT])

    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", look)
    compilation.know_cpu()
    assert seen == [str(tmp_path / "qbench" / "inductor")]
    assert os.environ.get(compilation.KEPT) == own
