"""Calibrated quantization: closed forms, another implementation, and what it has to win back."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES
from pipelines import tiny
from torch import nn

from qbench import prompts
from qbench.errors import InputError
from qbench.meters.memory import stored_bytes
from qbench.optimizations import calibration, quantization
from qbench.optimizations.calibration import Occasion, awq, gptq, observe, smooth, svd
from qbench.optimizations.calibration.numbers import Activations, Weights
from qbench.optimizations.packed import PackedLinear, pack, unpack
from qbench.pipelines import specs
from qbench.recipe import files
from qbench.recipe.schema import Calibration, Generation, Outliers, Quantize
from qbench.run.plan import plan

STEPS = 5
INT8, INT4 = Weights("int8"), Weights("int4", "group", 32)
LEFT_OUT = ["norm"]
TWO_BLOCKS = ["transformer_blocks.2.", "transformer_blocks.5."]  # the others take time


def _layer(rows: int = 48, columns: int = 96, outliers: float = 30.0) -> tuple[torch.Tensor, ...]:
    """Weights and tokens of a layer two of whose input channels are outliers."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    mixed = torch.randn(columns, columns, generator=generator) / columns**0.5
    tokens = torch.randn(512, columns, generator=generator) @ (torch.eye(columns) + 2 * mixed)
    scale = torch.ones(columns)
    scale[[3, 40]] = outliers
    return weight / scale, tokens * scale


def _seen(tokens: torch.Tensor) -> observe.Seen:
    size = tokens.abs()
    return observe.Seen(
        ["layer"], 3, size.amax(0), size.mean(0), size.square().mean(0), len(tokens), [tokens]
    )


def _modelopt() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            "modelopt.torch.quantization",
            reason="nvidia-modelopt is not installed: pip install --no-deps, of the extra peers",
        )


# Closed forms -----------------------------------------------------------------------------------


def test_smoothing_leaves_the_product_and_evens_out_both_sides() -> None:
    weight, tokens = _layer()
    s = smooth.scales(tokens.abs().amax(0), weight.abs().amax(0), 0.5)
    assert torch.allclose((tokens / s) @ (weight * s).t(), tokens @ weight.t(), atol=1e-4)
    inputs, columns = (tokens / s).abs().amax(0), (weight * s).abs().amax(0)
    ratio = inputs / columns  # at 0.5 both have sqrt(max|X| max|W|), but for the common factor
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-4)


def test_gptq_with_uncorrelated_inputs_is_plain_rounding() -> None:
    weight, _ = _layer()
    for stored in (INT8, INT4, Weights("fp8")):
        codes, scales = gptq.quantize(weight, torch.eye(weight.shape[1]), stored)
        assert torch.equal(codes, stored.codes(weight, stored.scales(weight)))
        assert torch.equal(scales, stored.scales(weight))


def test_gptq_lessens_the_error_of_correlated_inputs() -> None:
    weight, tokens = _layer(outliers=1.0)
    codes, scales = gptq.quantize(weight, tokens.t() @ tokens / len(tokens), INT4)
    made, plain = codes * INT4.spread(scales), INT4.rounded(weight)
    assert _error(tokens, made, weight) < 0.75 * _error(tokens, plain, weight)


def _error(tokens: torch.Tensor, made: torch.Tensor, weight: torch.Tensor) -> float:
    return ((tokens @ (made - weight).t()).norm() / (tokens @ weight.t()).norm()).item()


def test_a_branch_of_full_rank_leaves_nothing_and_one_of_few_never_adds_error() -> None:
    weight, tokens = _layer()
    square = tokens.square().mean(0)
    whole = svd.split(weight, square, INT4, min(weight.shape), torch.float32)
    assert (whole.residual.norm() / weight.norm()).item() < 1e-5
    plain = _error(tokens, INT4.rounded(weight), weight)
    for rank in (1, 8):
        parts = svd.split(weight, square, INT4, rank, torch.float32)
        made = INT4.rounded(parts.residual) + parts.up @ parts.down
        assert _error(tokens, made, weight) < plain
        plain = _error(tokens, made, weight)


def test_a_branch_goes_by_what_channels_are_given() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 96, generator=generator)
    tokens = torch.randn(512, 96, generator=generator)
    tokens[:, :4] *= 30
    errors = []
    for square in (tokens.square().mean(0), torch.ones(96)):
        parts = svd.split(weight, square, INT4, 4, torch.float32)
        errors.append(_error(tokens, INT4.rounded(parts.residual) + parts.up @ parts.down, weight))
    assert errors[0] < 0.5 * errors[1]


def test_awq_errs_less_than_plain_rounding_and_clips_where_that_helps() -> None:
    weight, tokens = _layer()
    seen = _seen(tokens)
    s = awq.best(seen, [weight], INT4)
    scaled, x = weight * s, tokens / s
    assert _error(x, INT4.rounded(scaled), scaled) < 0.7 * _error(
        tokens, INT4.rounded(weight), weight
    )
    clipped = awq.clipped(weight, seen.square, INT4)
    weighed = lambda made: ((made - weight).square() * seen.square).sum()  # noqa: E731
    assert weighed(INT4.rounded(weight, clipped)) < 0.98 * weighed(INT4.rounded(weight))
    assert (clipped <= INT4.scales(weight) * 1.0001).all()


def test_awq_scales_strong_input_channels_up_though_their_weights_are_like_the_others() -> None:
    """Its own claim, which weights cannot show: channels matter by what they are given."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 96, generator=generator)
    tokens = torch.randn(512, 96, generator=generator)
    tokens[:, [3, 40]] *= 30
    seen = _seen(tokens)
    s = awq.best(seen, [weight], INT4)
    assert s[[3, 40]].min() > 2 * s.median()
    scaled = _error(tokens / s, INT4.rounded(weight * s), weight * s)
    assert scaled < 0.7 * _error(tokens, INT4.rounded(weight), weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_packed_codes_come_back_and_take_their_bits(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (6, 64), generator=generator)
    packed = pack(codes, bits)
    assert packed.numel() == codes.numel() * bits // 8
    assert torch.equal(unpack(packed, bits, torch.float32), codes.float())


def test_a_packed_linear_computes_what_its_numbers_say() -> None:
    weight, tokens = _layer(rows=40)
    linear = nn.Linear(96, 40)
    linear.weight.data = weight
    scales = INT4.scales(weight)
    up, down, pre = torch.randn(40, 4), torch.randn(4, 96), torch.rand(96) + 0.5
    packed = PackedLinear(linear, INT4.codes(weight, scales), scales, 4, pre, up, down)
    x = tokens * pre
    expected = x @ INT4.rounded(weight).t() + x @ down.t() @ up.t() + linear.bias
    assert torch.allclose(packed(tokens), expected, atol=1e-3)


# Another implementation -------------------------------------------------------------------------


def _through_modelopt(config: Any, weight: torch.Tensor, tokens: torch.Tensor) -> Any:
    mtq = _modelopt()
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[0].weight.data = weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mtq.quantize(model, config(mtq), lambda m: m(tokens))


@pytest.mark.parametrize("exponent", [0.5, 0.75])
def test_smoothquants_scales_are_modelopts(exponent: float) -> None:
    weight, tokens = _layer()

    def config(mtq: Any) -> Any:
        return mtq.INT8_SMOOTHQUANT_CFG | {
            "algorithm": {"method": "smoothquant", "alpha": exponent}
        }

    theirs = _through_modelopt(config, weight, tokens)[0].input_quantizer.pre_quant_scale
    ours = 1 / smooth.scales(tokens.abs().amax(0), weight.abs().amax(0), exponent)
    ratio = ours / theirs.flatten()
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-4)


def test_awq_errs_no_more_than_modelopts() -> None:
    weight, tokens = _layer(columns=128)

    def config(mtq: Any) -> Any:
        return mtq.INT4_AWQ_CFG

    with torch.no_grad():
        theirs = _through_modelopt(config, weight, tokens)(tokens)
    expected = tokens @ weight.t()
    stored = Weights("int4", "group", 128)
    s = awq.best(_seen(tokens), [weight], stored)
    ours = (tokens / s) @ stored.rounded(weight * s).t()
    assert (ours - expected).norm() < 1.05 * (theirs - expected).norm()


def test_awqs_scales_are_modelopts_at_its_exponent() -> None:
    weight, tokens = _layer(columns=128)

    def config(mtq: Any) -> Any:
        return mtq.INT4_AWQ_CFG

    theirs = 1 / _through_modelopt(config, weight, tokens)[0].input_quantizer.pre_quant_scale
    groups = weight.abs().unflatten(1, (-1, 128))
    of_group = (groups / groups.amax(2, keepdim=True)).flatten(1).mean(0)  # as modelopt has it
    off = {}
    for step in range(11):
        ratio = theirs.flatten() / awq.scales(tokens.abs().mean(0), step / 10, of_group)
        off[step] = (ratio / ratio.mean() - 1).abs().max().item()
    nearest = min(off, key=lambda step: off[step])
    assert nearest > 0
    assert off[nearest] < 1e-3


def test_gptq_is_modelopts_column_by_column() -> None:
    _modelopt()
    from modelopt.torch.quantization.utils import calib_utils

    weight, tokens = _layer(columns=160)  # more than one block
    hessian = tokens.t() @ tokens / len(tokens)
    scales = INT8.scales(weight)
    theirs = weight.clone()
    inverse = calib_utils.compute_hessian_inverse(hessian, weight, 0.01)
    calib_utils.gptq_blockwise_update(theirs, inverse, 128, lambda w: INT8.rounded(w, scales))
    codes, _ = gptq.quantize(weight, hessian, INT8, 0.01, ordered=False)
    assert (codes * scales - theirs).norm() < 0.01 * (theirs - weight).norm()


def test_the_branch_of_low_rank_is_modelopts() -> None:
    _modelopt()
    from modelopt.torch.quantization import model_calib

    weight, _ = _layer()
    up, down = model_calib.svd(weight, 8)
    ours = svd.split(weight, torch.ones(weight.shape[1]), INT4, 8, torch.float32, passes=1)
    assert torch.allclose(ours.up @ ours.down, up @ down, atol=1e-4)


# On the bundled model ---------------------------------------------------------------------------


@dataclasses.dataclass
class Bench:
    """The bundled model's FP32 predictions along a trajectory that nothing is calibrated on."""

    run: Any
    calls: list[observe.Call]
    expected: list[torch.Tensor]
    tests: tuple[str, ...]

    def error(self, module: Any) -> float:
        dtype, found = module.dtype, []
        for call, wanted in zip(self.calls, self.expected, strict=True):
            inputs: dict[str, Any] = {
                k: v.to(dtype) if v.is_floating_point() else v for k, v in call.inputs.items()
            }
            made = observe.predict(module, observe.Call(call.step, inputs)).float()
            found.append(((made - wanted).norm() / wanted.norm()).item())
        return sum(found) / len(found)


@pytest.fixture(scope="module")
def bench() -> Bench:
    model = specs.find("tiny-cogvideox")
    video = specs.load(model, "fp32", "cpu")
    run = video.resolve(model, Generation(steps=STEPS))
    tests = prompts.load("world-v1", 2).prompts
    settings = Calibration(method="gptq", steps=3, seed=0)
    calls = observe.walk(video, run, tests, settings)
    expected = [observe.predict(video.denoiser, call) for call in calls]
    return Bench(run, calls, expected, tests)


def _quantized(
    bench: Bench, backend: str, scheme: str, outliers: float | None = None, **fit: Any
) -> tuple[Any, dict[str, float]]:
    model = specs.find("tiny-cogvideox")
    hard = Outliers(factor=outliers) if outliers else None
    video = specs.load(model, "fp32", "cpu", outliers=hard)
    video.resolve(model, Generation(steps=STEPS))
    small = {"prompts": 2, "steps": 3, "samples": 256}
    fields = {"calibration": small | fit} if fit else {}
    names = {"include": TWO_BLOCKS, "exclude": LEFT_OUT}
    wanted = Quantize.model_validate({"backend": backend, "scheme": scheme, **names, **fields})
    occasion = Occasion(bench.run, model, bench.tests)
    facts, _ = quantization.apply(video.denoiser, wanted, video, occasion)
    return video.denoiser, facts


@pytest.mark.parametrize(
    ("backend", "scheme", "fit", "at_most"),
    [
        ("torchao", "int8_dynamic", {"method": "smoothquant"}, 0.2),
        ("torchao", "int8_weight_only", {"method": "awq"}, 0.7),
        ("torchao", "int4_weight_only", {"method": "awq"}, 0.75),
        ("torchao", "int4_weight_only", {"method": "gptq"}, 0.75),
        ("qbench", "int4_weight_only", {"method": "svdquant"}, 0.5),
    ],
)
def test_calibration_wins_back_what_outliers_cost(
    bench: Bench, backend: str, scheme: str, fit: dict[str, Any], at_most: float
) -> None:
    """On the outlier form, against plain rounding to the same numbers."""
    plain, _ = _quantized(bench, backend, scheme, 100.0)
    module, facts = _quantized(bench, backend, scheme, 100.0, **fit)
    assert bench.error(module) < at_most * bench.error(plain)
    assert facts["calibration_s"] > 0
    assert facts["calibration_host_bytes"] > 0
    assert stored_bytes(module) < 1.3 * stored_bytes(plain)


def test_static_int8_has_fixed_scales_and_stays_close(bench: Bench) -> None:
    module, _ = _quantized(bench, "torchao", "int8_static", 100.0, method="smoothquant")
    weight = module.transformer_blocks[2].ff.net[2].weight
    assert weight.act_quant_scale.numel() == 1
    assert weight.act_pre_scale.shape == (1024,)  # behind GELU nothing else can scale
    assert module.transformer_blocks[2].attn1.to_q.weight.act_pre_scale is None
    assert bench.error(module) < 0.03


def test_gptq_lessens_the_error_of_qbenchs_fp8_linears(bench: Bench) -> None:
    plain, _ = _quantized(bench, "qbench", "fp8_dynamic_row")
    module, _ = _quantized(bench, "qbench", "fp8_dynamic_row", method="gptq")
    assert type(module.transformer_blocks[2].ff) is type(plain.transformer_blocks[2].ff)
    assert bench.error(module) < 0.96 * bench.error(plain)


@pytest.mark.parametrize(
    ("scheme", "method"),
    [("int4_weight_only", "awq"), ("int8_weight_only", "awq"), ("int8_static", "smoothquant")],
)
def test_a_calibrated_checkpoint_is_read_by_plain_diffusers(
    bench: Bench, tmp_path: Path, scheme: str, method: Any
) -> None:
    """And its weights lie where compiled kernels of CPUs can read them."""
    from types import SimpleNamespace

    from diffusers import CogVideoXTransformer3DModel

    from qbench.engines import checkpoint, export
    from qbench.recipe.schema import Variant

    module, _ = _quantized(bench, "torchao", scheme, method=method)
    names: dict[str, Any] = {"include": TWO_BLOCKS, "exclude": LEFT_OUT}
    fit = Calibration(method=method)
    wanted = Quantize(backend="torchao", scheme=scheme, calibration=fit, **names)
    video: Any = SimpleNamespace(denoiser=module, part="transformer")
    nothing: Any = None
    checkpoint.write_denoiser(video, nothing, {}, Variant(quantize=wanted), tmp_path)
    assert export._calibration(Variant(quantize=wanted))["method"] == method
    folder = str(tmp_path / "transformer")
    again = CogVideoXTransformer3DModel.from_pretrained(folder, dtype=torch.float32)
    assert bench.error(again) == pytest.approx(bench.error(module), rel=1e-6)
    if scheme.endswith("weight_only"):  # activations in INT8 have another kernel, and a scale each
        codes = [getattr(p, "qdata", None) for p in again.parameters()]
        assert {c.data_ptr() % 64 for c in codes if c is not None} == {0}


def test_the_format_qbench_holds_what_calibration_found(bench: Bench, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from qbench.engines import prepared, weights
    from qbench.recipe.schema import Variant

    module, _ = _quantized(bench, "qbench", "int4_weight_only", 100.0, method="svdquant", rank=4)
    weights.save(module, tmp_path)
    video = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu")
    names: dict[str, Any] = {"include": TWO_BLOCKS, "exclude": LEFT_OUT}
    fit = Calibration(method="svdquant", rank=4)
    wanted = Quantize(backend="qbench", scheme="int4_weight_only", calibration=fit, **names)
    written: Any = SimpleNamespace(dtype="float32", target=SimpleNamespace(device="cpu"))
    prepared._fill(video, Variant(quantize=wanted), tmp_path, written)
    assert bench.error(video.denoiser) == bench.error(module)


def test_ranges_of_timesteps_have_scales_of_their_own_and_follow_the_denoiser(bench: Bench) -> None:
    plain, _ = _quantized(bench, "torchao", "int8_dynamic", 100.0)
    module, _ = _quantized(bench, "torchao", "int8_dynamic", 100.0, method="smoothquant", ranges=2)
    layer = module.transformer_blocks[2].attn1.to_q
    first, second = (part.weight.act_pre_scale for part in layer.parts)
    assert not torch.equal(first, second)
    assert bench.error(module) < 0.2 * bench.error(plain)
    current = []
    for call in (bench.calls[0], bench.calls[-1]):
        observe.predict(module, call)
        current.append(layer.current)
    assert current == [0, 1]


# What it is given -------------------------------------------------------------------------------


def test_calibration_never_sees_what_is_measured() -> None:
    model = specs.find("tiny-cogvideox")
    tests = prompts.load("world-2048-v1", 40).prompts
    settings = Calibration(method="gptq", set="world-2048-v1", prompts=16)
    chosen = calibration.texts(settings, model, tests)
    assert len(chosen) == 16
    assert not set(chosen) & {*tests, *prompts.load("world-v1").prompts}
    with pytest.raises(InputError, match=r"calibration\.prompts: 16 asked for"):
        calibration.texts(settings, model, prompts.load("world-2048-v1").prompts)


@pytest.mark.parametrize("family", ["cogvideox", "unet", "wan"])
def test_whole_trajectories_are_walked_with_both_halves_of_guidance(
    family: str, tmp_path: Path
) -> None:
    """Families that call the denoiser once a step, and those that call it for each half."""
    video = tiny.build(family, tmp_path)
    run = tiny.settings(video, steps=7)
    calls = observe.walk(video, run, tiny.PROMPTS, Calibration(method="gptq", steps=3))
    assert sorted({call.step for call in calls}) == [0, 3, 6]
    times = [float(call.inputs["timestep"].flatten()[0]) for call in calls]
    served = [float(t) for t in video.pipe.scheduler.timesteps]
    assert len(served) == 7
    assert sorted(set(times), reverse=True) == [served[0], served[3], served[6]]
    for step in (0, 3, 6):
        some = [call.inputs["encoder_hidden_states"] for call in calls if call.step == step]
        texts = torch.cat(some).flatten(1)
        assert len(texts) == 2 * len(tiny.PROMPTS)
        assert len(torch.unique(texts, dim=0)) > 1  # with the prompt, and without it


def test_second_moments_are_those_of_inputs_as_they_are_divided(tmp_path: Path) -> None:
    """By the linear itself, or by layers before it, whose replays show it already."""
    video = tiny.build("cogvideox", tmp_path)
    run = tiny.settings(video)
    settings = Calibration(method="awq", rounding="gptq", steps=2)
    calls = observe.walk(video, run, tiny.PROMPTS[:1], settings)
    names = ["transformer_blocks.0.ff.net.0.proj", "transformer_blocks.0.ff.net.2"]
    seen = observe.moments(video.denoiser, names, calls, 64, 0)
    plain = [hessian for _, hessian in observe.hessians(video.denoiser, seen, calls)]
    factors = [torch.linspace(0.5, 4, len(one.most)) for one in seen]
    work = calibration.Work(video, settings, calls, seen, {}, Activations(), True)
    scaled = calibration._scaled(work, lambda one, _: factors[seen.index(one)])
    assert {one.seen.readers[0]: one.folded for one in scaled} == {names[0]: True, names[1]: False}
    for one, hessian in calibration._with_hessians(work, scaled):
        assert hessian is not None
        index = seen.index(one.seen)
        expected = plain[index] / torch.outer(factors[index], factors[index])
        assert torch.allclose(hessian, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_moments_and_hessians_are_those_of_all_tokens_whatever_the_chunks() -> None:
    model = specs.find("tiny-cogvideox")
    video = specs.load(model, "fp32", "cpu")
    run = video.resolve(model, Generation(steps=4))
    calls = observe.walk(video, run, ["a red star"], Calibration(method="gptq", steps=2))
    names = [f"transformer_blocks.0.{n}" for n in ("attn1.to_q", "attn1.to_k", "ff.net.2")]
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for name in names:
        layer = video.denoiser.get_submodule(name)
        layer.register_forward_pre_hook(
            lambda _, args, name=name: kept[name].append(args[0].flatten(0, -2))
        )
    seen = observe.moments(video.denoiser, names, calls, 64, 0)
    assert [one.readers for one in seen] == [names[:2], names[2:]]
    first = torch.cat(kept[names[0]])
    assert torch.equal(seen[0].most, first.abs().amax(0))
    assert torch.allclose(seen[0].mean, first.abs().mean(0), rtol=1e-4)
    assert torch.allclose(seen[0].square, first.square().mean(0), rtol=1e-4)
    assert len(seen[0].tokens) == 64
    for most_bytes in (1, 2**30):
        made = list(observe.hessians(video.denoiser, seen, calls, most_bytes))
        assert torch.allclose(made[0][1], first.t() @ first / len(first), rtol=1e-3, atol=1e-3)


def test_an_unknown_set_of_prompts_is_said_to_be_where_it_was_written() -> None:
    settings = files.overrides(["variant.quantize.calibration.set=nosuch"])
    with pytest.raises(InputError, match=r"^--set variant\.quantize\.calibration\.set=nosuch: "):
        plan([RECIPES / "calibrated" / "awq-int4.yaml"], settings)


@pytest.mark.parametrize(
    ("family", "scheme", "nothing"),
    [
        ("unet", "fp8_dynamic_row", True),
        ("wan", "fp8_dynamic_row", True),
        ("unet", "int8_dynamic", False),
        ("cogvideox", "fp8_dynamic_row", False),
    ],
)
def test_it_is_told_where_smoothquant_has_nothing_that_takes_a_scale(
    family: str, scheme: str, nothing: bool, tmp_path: Path
) -> None:
    video = tiny.build(family, tmp_path)
    wanted = Quantize(
        backend="torchao", scheme=scheme, calibration=Calibration(method="smoothquant")
    )
    assert quantization.smooths_nothing(video, wanted) is nothing
    assert not quantization.smooths_nothing(video, None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scheme": "int8_static"}, "int8_static needs 'calibration"),
        ({"scheme": "int8_weight_only", "group": 32}, "have no groups"),
        (
            {"scheme": "int8_dynamic", "calibration": {"method": "svdquant"}},
            "svdquant is not for torchao int8_dynamic",
        ),
        (
            {"scheme": "int4_weight_only", "calibration": {"method": "awq", "rank": 8}},
            "awq has no such field",
        ),
        (
            {"scheme": "int4_weight_only", "calibration": {"method": "awq", "damping": 0.1}},
            "damping",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Quantize.model_validate({"backend": "torchao", **fields})


def test_fixed_and_dynamic_activations_round_as_their_formulas_say() -> None:
    x = torch.tensor([[0.1, -2.0, 1.0], [0.01, 0.02, -0.03]])
    by_row = Activations("int8", "row").rounded(x)
    step = x.abs().amax(1, keepdim=True) / 127.5
    assert ((by_row - x).abs() <= step / 2 + 1e-7).all()
    fixed = Activations("int8", "tensor", static=True)
    scale = fixed.scale(x.abs().amax())
    assert torch.equal(fixed.rounded(x, scale), (x / scale).round() * scale)
