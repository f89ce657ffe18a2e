"""Attention that leaves out blocks: what it may leave out, what that costs, and when it does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from qbench.engines.export import export
from qbench.errors import InputError
from qbench.optimizations import axes
from qbench.optimizations.kernels import fp8_attention
from qbench.optimizations.kernels.fp8_attention import Skip
from qbench.pipelines import specs
from qbench.recipe.schema import Generation, Recipe, Variant
from qbench.support import Machine, why_not
from scripts import attention_inputs

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
needs_hopper = pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
LOSSLESS = 2**-15
Three = attention_inputs.Three


def _skip(threshold: float, like: torch.Tensor) -> Skip:
    return Skip(threshold, torch.zeros(1, dtype=torch.int64, device=like.device))


def _sparse(inputs: Three, threshold: float) -> tuple[torch.Tensor, float]:
    """The reference implementation's result and the share of blocks that it computed."""
    skip = _skip(threshold, inputs[0])
    out = fp8_attention.emulated(*inputs, skip)
    return out, skip.computed.item() / fp8_attention.blocks(*inputs[:2])


def _peaked(tokens: int, channels: int, sigma: float = 12.0) -> Three:
    """Random inputs whose neighbours attend to each other: keys are queries, smoothed over tokens.

    In BF16's values, so that the kernel and its reference implementation are given the same.
    """
    generator = torch.Generator().manual_seed(3)
    walk = torch.randn(1, tokens, 2, channels, generator=generator).cumsum(1)
    q = functional.normalize(walk - walk.mean(1, keepdim=True), dim=-1) * channels**0.5
    v = torch.randn(1, tokens, 2, channels, generator=generator)
    return tuple(x.bfloat16().float() for x in (q * sigma / channels**0.25, q, v))  # type: ignore[return-value]


def _softmax_of_kept_blocks(inputs: Three, threshold: float) -> tuple[torch.Tensor, float]:
    """The rule in plain FP32, block by block with true exponentials: nothing of FP8 in it."""
    q, k, v = (x.transpose(1, 2) for x in inputs)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    tile, kept, blocks = fp8_attention.SHAPES[q.shape[-1]].tile, 0, 0
    for rows in scores.split(64, 2):
        highest = torch.full_like(rows[..., :1], -math.inf)
        for part in rows.split(tile, 3):
            here = part.amax(-1, keepdim=True)
            below = (here - highest).exp() < threshold
            for head in range(rows.shape[1]):
                blocks += 1
                if below[0, head].all():
                    part[0, head] = -math.inf
                else:
                    kept += 1
                    highest[0, head] = torch.maximum(highest, here)[0, head]
    return (scores.softmax(-1) @ v).transpose(1, 2), kept / blocks


@pytest.mark.parametrize("apart", [2.0, 4.5, 5.5, 9.0, 30.0])
@pytest.mark.parametrize("weak_first", [False, True])
def test_a_block_of_known_weight_is_left_out_below_the_threshold_alone(
    apart: float, weak_first: bool
) -> None:
    """Two blocks of values 1 and -1, of which one weighs exp(-apart) of the other, exactly."""
    tile, channels = fp8_attention.SHAPES[64].tile, 64
    q, k, v = (torch.zeros(1, 2 * tile, 1, channels) for _ in range(3))
    q[..., 0] = apart * channels**0.5 / 2
    sign = torch.ones(2 * tile)
    sign[slice(tile) if weak_first else slice(tile, None)] = -1
    k[..., 0], v[:] = sign[:, None], sign[:, None, None]
    threshold = math.exp(-5)
    out, density = _sparse((q, k, v), threshold)
    weight = math.exp(-apart)
    # Found after the other, the strong block comes too late to leave the weak one out.
    left_out = weight < threshold and not weak_first
    assert density == (0.5 if left_out else 1)
    expected = 1.0 if left_out else (1 - weight) / (1 + weight)
    # A code in place of an exponential is within 7 %, and all of a block have the same.
    assert out.sub(expected).abs().max() <= 1e-6 + 0.15 * weight * (not left_out)


@pytest.mark.parametrize("channels", [64, 128])
def test_density_and_result_are_those_of_the_rule_in_plain_fp32(channels: int) -> None:
    inputs = _peaked(1111, channels)
    dense = fp8_attention.emulated(*inputs)
    exact, _ = _softmax_of_kept_blocks(inputs, 0.0)
    of_fp8 = (dense - exact).norm() / exact.norm()
    densities = []
    for threshold in (0.0, 1e-6, 1e-3, 0.1, 0.9):
        found, density = _sparse(inputs, threshold)
        expected, share = _softmax_of_kept_blocks(inputs, threshold)
        densities.append(density)
        assert density == pytest.approx(share, abs=0.02)  # FP8 moves scores near the threshold
        assert (found - expected).norm() / expected.norm() < 1.3 * of_fp8
        # n keys left out held less than n * threshold of what the others hold.
        bound = 2 * threshold * inputs[1].shape[1] * inputs[2].abs().max()
        assert (found - dense).abs().max() <= bound  # at 0 they are equal
    assert densities[0] == 1
    assert densities == sorted(densities, reverse=True)
    assert densities[-1] < densities[2] < 0.9


@pytest.mark.parametrize("channels", [64, 128])
def test_thresholds_at_which_no_bit_differs(channels: int) -> None:
    """0 leaves out nothing, and 2**-15 what has a code of zero anyway."""
    inputs = _peaked(700, channels, sigma=40)
    dense = fp8_attention.emulated(*inputs)
    nothing, density = _sparse(inputs, 0.0)
    assert torch.equal(nothing, dense)
    assert density == 1
    zeros, density = _sparse(inputs, LOSSLESS)
    assert torch.equal(zeros, dense)
    assert density < 0.95


@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.6])
def test_planted_blocks_and_no_others_are_computed(channels: int, share: float) -> None:
    shape = (1, 900, 2, channels)
    inputs, wanted = attention_inputs.planted(shape, share, keys=1400)
    out, density = _sparse(inputs, 1e-4)
    assert density == pytest.approx(wanted.float().mean().item())
    assert torch.equal(out, fp8_attention.emulated(*inputs))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_comes_through_blocks_left_out(which: int, bad: float) -> None:
    """A value that nobody weighs is NaN in torch's attention all the same: zero times NaN."""
    inputs, wanted = attention_inputs.planted((1, 640, 2, 64), 0.2)
    assert not wanted[:, 3].all()
    inputs[which][0, 3 * 128 + 5, 1, 40] = bad
    expected = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs))
    found, _ = _sparse(inputs, 0.1)
    assert not found[~expected.transpose(1, 2).isfinite()].isfinite().any()
    assert found[:, :, 0].isfinite().all()


@pytest.mark.parametrize("name", attention_inputs.INPUTS)
def test_hard_inputs_lose_no_more_than_the_threshold_allows(name: str) -> None:
    """Among them a sink, one loud token, and scores past what FP16 holds."""
    inputs = attention_inputs.made(name, 500, 500, 64, heads=2)
    dense = fp8_attention.emulated(*inputs)
    found, density = _sparse(inputs, 1e-4)
    assert 0 < density <= 1
    assert (found - dense).abs().max() <= 2 * 500 * 1e-4 * inputs[2].abs().max()
    assert found.isfinite().all()


VIDEO = {"frames": 17, "height": 96, "width": 96, "steps": 3}


def _applied(wanted: dict[str, float], **fields: Any) -> tuple[Any, Any, Any]:
    """The bundled pipeline with sparse attention, what is generated with it, and its inputs."""
    pipeline = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu")
    variant = {"attention": "fp8-reference", "sparse_attention": wanted} | fields
    applied = axes.apply(pipeline, Variant.model_validate(variant), "cpu", steps=VIDEO["steps"])
    run = pipeline.resolve(specs.find("tiny-cogvideox"), Generation.model_validate(VIDEO))
    return pipeline, applied, run


def _video(pipeline: Any, run: Any) -> torch.Tensor:
    conditioning, noise = pipeline.encode(run, ["a red star"]), pipeline.noise(run, 0)
    latents: torch.Tensor = pipeline.denoise(
        run, conditioning, noise, lambda _: None, generators=pipeline.generators([0])
    )
    return latents


def test_the_first_share_of_each_videos_steps_leaves_out_nothing() -> None:
    pipeline, applied, run = _applied({"threshold": 0.9, "dense_share": 0.4})
    for videos in (1, 2):
        _video(pipeline, run)
        # Two of three steps are dense, as 0.4 of them is more than one.
        layers, halves, heads, query_blocks, key_blocks = 8, 2, 4, 4, 2  # of 204 tokens
        step = layers * halves * heads * query_blocks * key_blocks
        assert applied.sparse._blocks == {True: videos * 2 * step, False: videos * step}
    facts = applied.sparse.facts()
    sparse = facts["attention_density_of_sparse_steps"]
    assert sparse < 0.9
    assert facts["attention_density"] == pytest.approx((2 + sparse) / 3)
    assert applied.undo() == []
    assert not pipeline.denoiser._forward_pre_hooks


def test_threshold_zero_makes_the_same_video_as_the_kernel_alone() -> None:
    pipeline, applied, run = _applied(
        {"threshold": 0.0}, cache={"kind": "taylorseer", "interval": 2}
    )
    latents = _video(pipeline, run)
    assert applied.sparse.facts() == {"attention_density": 1.0}
    applied.undo()
    plain = {"attention": "fp8-reference", "cache": {"kind": "taylorseer", "interval": 2}}
    axes.apply(pipeline, Variant.model_validate(plain), "cpu", steps=VIDEO["steps"])
    assert torch.equal(_video(pipeline, run), latents)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parallel": {"ulysses": 2}}, "parallel"),
        ({"compile": {"mode": "reduce-overhead"}}, "mode default"),
        ({"compile": {"scope": "model"}}, "scope blocks"),
    ],
)
def test_what_sparse_attention_cannot_go_with_is_refused(fields: Any, message: str) -> None:
    wanted = {"threshold": 0.1, "dense_share": 0.5}
    variant = {"dtype": "bf16", "attention": "fp8", "sparse_attention": wanted}
    machine = Machine("cuda", (9, 0), devices=8)
    assert why_not(Variant.model_validate(variant), machine) is None
    assert message in (why_not(Variant.model_validate(variant | fields), machine) or "")


@pytest.mark.parametrize(
    "fields",
    [
        {"sparse_attention": {"threshold": 0.1}},
        {"attention": "cudnn", "sparse_attention": {"threshold": 0.1}},
        {"attention": "fp8", "sparse_attention": {}},
        {"attention": "fp8", "sparse_attention": {"threshold": 1.0}},
        {"attention": "fp8", "sparse_attention": {"threshold": -0.1}},
        {"attention": "fp8", "sparse_attention": {"threshold": float("nan")}},
        {"attention": "fp8", "sparse_attention": {"threshold": 0.1, "dense_share": 1.0}},
    ],
)
def test_recipes_that_mean_nothing_are_refused(fields: Any) -> None:
    with pytest.raises(ValidationError, match="sparse_attention"):
        Variant.model_validate(fields)


def test_no_folder_holds_sparse_attention(tmp_path: Any) -> None:
    variant = {"attention": "fp8-reference", "sparse_attention": {"threshold": 0.1}}
    recipe = Recipe(name="sparse", variant=Variant.model_validate(variant))
    with pytest.raises(InputError, match="export the recipe without it"):
        export(recipe, tmp_path / "out")


# On a GPU ----------------------------------------------------------------------------------------


def _on_gpu(inputs: Three, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    return [x.cuda().to(dtype) for x in inputs]


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("name", attention_inputs.INPUTS)
def test_kernel_that_skips_nothing_is_the_dense_kernel_to_the_bit(name: str, channels: int) -> None:
    """At 0 it is that kernel; at the least threshold the other one, which finds nothing to skip."""
    inputs = _on_gpu(attention_inputs.made(name, 700, 1300, channels))
    dense = fp8_attention.attend(*inputs)
    for threshold in (0.0, 1e-300, LOSSLESS):
        skip = _skip(threshold, inputs[0])
        assert torch.equal(fp8_attention.attend_skipping(*inputs, skip), dense)
        if threshold < LOSSLESS:
            assert skip.computed.item() == fp8_attention.blocks(*inputs[:2])


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("lengths", [(1, 1), (64, 5000), (1111, 1111), (129, 385), (2000, 192)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_kernel_computes_planted_blocks_and_no_others(
    dtype: torch.dtype, channels: int, lengths: tuple[int, int], share: float
) -> None:
    queries, keys = lengths
    made, wanted = attention_inputs.planted((2, queries, 3, channels), share, keys=keys)
    inputs = _on_gpu(made, dtype)
    dense = fp8_attention.attend(*inputs)
    skip = _skip(1e-4, inputs[0])
    for calls in (1, 2, 3):
        found = fp8_attention.attend_skipping(*inputs, skip)
        assert skip.computed.item() == calls * 6 * int(wanted.sum())
        assert torch.equal(found, dense)  # what was left out has codes of zero


def _rounding(inputs: Sequence[torch.Tensor]) -> float:
    """How far the dense kernel is from its reference: the first GEMM accumulates in FP16."""
    expected, _ = _sparse(tuple(x.float() for x in inputs), 0.0)  # type: ignore[arg-type]
    error = float((fp8_attention.attend(*inputs) - expected).norm() / expected.norm())
    assert error < 0.05
    return error


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("threshold", [1e-6, 1e-3, 0.1, 0.9])
def test_kernel_skips_as_its_model_does(channels: int, threshold: float) -> None:
    inputs = _on_gpu(_peaked(2222, channels))
    expected, density = _sparse(tuple(x.float() for x in inputs), threshold)  # type: ignore[arg-type]
    skip = _skip(threshold, inputs[0])
    found = fp8_attention.attend_skipping(*inputs, skip)
    assert skip.computed.item() / fp8_attention.blocks(*inputs[:2]) == pytest.approx(
        density, abs=0.01
    )
    # A block next to the threshold may be left out by one of the two alone.
    allowed = 1.1 * _rounding(inputs) + 0.3 * threshold
    assert (found - expected).norm() / expected.norm() < allowed
    assert torch.equal(found, fp8_attention.attend_skipping(*inputs, skip))


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("channels", [64, 128])
def test_kernel_that_skips_lets_through_what_is_not_finite(
    channels: int, which: int, bad: float
) -> None:
    made, _ = attention_inputs.planted((1, 960, 2, channels), 0.2)
    inputs = _on_gpu(made)
    inputs[which][0, 600, 1, channels // 2 + 3] = bad
    expected = functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs))
    found = fp8_attention.attend_skipping(*inputs, _skip(0.1, inputs[0]))
    assert not found[~expected.transpose(1, 2).isfinite()].isfinite().any()
    assert found[:, :, 0].isfinite().all()


@pytest.mark.gpu
@needs_hopper
def test_compiled_blocks_count_and_follow_their_steps() -> None:
    """`fast` on the bundled model: what torch.compile keeps as one node still skips and counts."""
    pipeline = specs.load(specs.find("tiny-cogvideox"), "bf16", "cuda")
    wanted = {"threshold": 0.9, "dense_share": 0.4}
    variant = {"dtype": "bf16", "attention": "fp8", "sparse_attention": wanted, "compile": {}}
    applied = axes.apply(pipeline, Variant.model_validate(variant), "cuda", steps=3)
    run = pipeline.resolve(specs.find("tiny-cogvideox"), Generation.model_validate(VIDEO))
    for _ in range(2):
        assert _video(pipeline, run).isfinite().all()
    assert applied.sparse is not None
    assert applied.sparse._blocks[True] == applied.sparse._blocks[False] * 2
    facts = applied.sparse.facts()
    assert 0.2 < facts["attention_density_of_sparse_steps"] < 0.95
