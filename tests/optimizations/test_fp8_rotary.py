"""Query and key normed, rotated and quantized in one pass, beside the passes it replaces."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from qbench.optimizations import attention
from qbench.optimizations.kernels import fp8_attention, fp8_rotary
from qbench.pipelines.attention import dispatch, kernel_of

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
Norms = tuple[fp8_rotary.RotaryNorm, fp8_rotary.RotaryNorm]


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def _layers(columns: int, dtype: torch.dtype = torch.bfloat16) -> Norms:
    """Norms of query and key, each with weights of its own."""
    torch.manual_seed(1)
    norms = [torch.nn.RMSNorm(columns, eps=eps).requires_grad_(False) for eps in (1e-6, 1e-5)]
    for norm in norms:
        torch.nn.init.normal_(norm.weight, 1, 0.3)
    of_q, of_k = (fp8_rotary.RotaryNorm(norm.to(dtype)) for norm in norms)
    return of_q, of_k


def _tables(tokens: int, channels: int) -> fp8_rotary.Tables:
    angles = 6 * torch.rand(1, tokens, 1, channels // 2).repeat_interleave(2, -1)
    return angles.cos(), angles.sin()


def _inputs(batch: int, tokens: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Query, key with a common part, and value, (batch, tokens, columns)."""
    torch.manual_seed(0)
    x = torch.randn(3, batch, tokens, columns)
    x[1] += torch.randn(columns)
    return [y.cuda().to(dtype) for y in x]


def _apart(q: Any, k: Any, v: Any, norms: Norms, rotary: fp8_rotary.Tables) -> torch.Tensor:
    """Norm and rotation by their own kernel, then attention of the results."""
    rotated = norms[0](q, rotary), norms[1](k, rotary), v
    channels = rotary[0].shape[-1]
    return fp8_attention.attend(*(x.unflatten(2, (-1, channels)) for x in rotated))


def test_the_kernel_that_was_put_in_place_is_known_and_torchs_is_none() -> None:
    from diffusers import WanTransformer3DModel

    module = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=24, ffn_dim=8, num_layers=1, text_dim=8,
        freq_dim=8,
    )  # fmt: skip
    block = module.blocks[0]
    assert kernel_of(block.attn1) is None
    kernel = attention.load("fp8-reference")
    dispatch(module, kernel)
    assert kernel_of(block.attn1) is kernel
    assert kernel_of(block.attn2) is None
    module.set_attention_backend("native")
    assert kernel_of(block.attn1) is None


def test_it_takes_only_heads_and_rows_that_it_has_a_kernel_for() -> None:
    def takes(columns: int, channels: int, on: str = "cpu") -> bool:
        of_q, of_k = _layers(columns)
        rotary = _tables(3, channels)
        return fp8_rotary.takes(torch.zeros(1, 3, columns), (of_q, of_k.to(on)), rotary)

    for columns, channels in ((1536, 128), (5120, 128), (1920, 64)):
        assert takes(columns, channels)
    assert not takes(1536, 96)
    assert not takes(192, 128)
    assert not takes(32768, 128)
    assert not takes(1536, 128, on="meta")  # where offload keeps weights until they are called


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
@pytest.mark.parametrize(("heads", "channels"), [(2, 24), (12, 128), (17, 128), (40, 128)])
def test_rotary_norm_kernel_gives_what_its_model_does(heads: int, channels: int) -> None:
    layer, _ = _layers(heads * channels)
    x = torch.randn(2, 301, heads * channels).bfloat16()
    rotary = _tables(301, channels)
    expected = layer(x, rotary)
    found = layer.cuda()(x.cuda(), tuple(table.cuda() for table in rotary))
    assert _error(found.cpu(), expected) < 3e-3


# Batch, tokens, heads, channels. Rows of a warp and of a block, whole and with a rest.
SHAPES = [
    (1, 1, 12, 128), (4, 127, 12, 128), (2, 129, 3, 128), (1, 2049, 12, 128), (3, 400, 2, 64),
    (2, 333, 40, 128), (1, 511, 17, 128), (1, 700, 30, 64), (2, 192, 33, 64),
]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_pass_gives_what_norm_rotation_and_attention_do(
    dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    """But for the order in which the keys are added up to centre them."""
    batch, tokens, heads, channels = shape
    inputs = _inputs(batch, tokens, heads * channels, dtype)
    of_q, of_k = norms = tuple(x.cuda() for x in _layers(heads * channels, dtype))
    rotary = tuple(x.cuda() for x in _tables(tokens, channels))
    call = functools.partial(fp8_rotary.attend, *inputs, norms, rotary)  # type: ignore[arg-type]
    found = call()
    apart = _apart(*inputs, norms, rotary)  # type: ignore[arg-type]
    assert _error(found, apart) < 2e-3
    assert (found == apart).float().mean() > 0.98
    assert torch.equal(found, call())
    q, k, v = (x.unflatten(2, (-1, channels)) for x in inputs)
    exact = [layer(x.flatten(2).cpu(), [y.cpu() for y in rotary])  # type: ignore[arg-type]
             for layer, x in ((of_q.cpu(), q), (of_k.cpu(), k))]  # fmt: skip
    rotated = [x.unflatten(2, (-1, channels)) for x in exact]
    assert _error(found.cpu(), fp8_attention.emulated(*rotated, v.cpu())) < 0.015


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
def test_one_pass_reads_views_as_they_lie() -> None:
    columns, tokens = 12 * 128, 333
    norms = tuple(x.cuda() for x in _layers(columns))
    rotary = tuple(x.cuda() for x in _tables(tokens, 128))
    x = torch.randn(2, 2 * tokens, 3 * columns + 9, device="cuda").bfloat16()
    fused = x[:, :tokens, : 3 * columns].clone().chunk(3, -1)
    every_other = x[:, ::2, : 3 * columns].chunk(3, -1)  # whose tokens are odd bytes apart
    tokens_first = [y.transpose(0, 1).contiguous().transpose(0, 1) for y in fused]
    channels_last = [y.transpose(1, 2).contiguous().transpose(1, 2) for y in fused]
    for views in (fused, every_other, tokens_first, channels_last):
        expected = fp8_rotary.attend(*(y.contiguous() for y in views), norms, rotary)  # type: ignore[arg-type]
        assert torch.equal(fp8_rotary.attend(*views, norms, rotary), expected)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_one_pass_lets_through_what_is_not_finite(which: int, bad: float) -> None:
    """A norm over all heads carries it to each of them; a value's stays in its channel."""
    tokens, columns = 300, 3 * 128
    inputs = _inputs(1, tokens, columns)
    norms = tuple(x.cuda() for x in _layers(columns))
    rotary = tuple(x.cuda() for x in _tables(tokens, 128))
    inputs[which][0, 40, 130] = bad
    found = fp8_rotary.attend(*inputs, norms, rotary)  # type: ignore[arg-type]
    apart = _apart(*inputs, norms, rotary)  # type: ignore[arg-type]
    assert torch.equal(found.isfinite(), apart.isfinite())
    assert not found[0, 40].isfinite().all()
    if which == 0:
        assert found[0, torch.arange(tokens) != 40].isfinite().all()
    if which == 2:
        assert found[:, :, [0, 2]].isfinite().all()
    assert torch.equal(found.isfinite(), fp8_rotary.attend(*inputs, norms, rotary).isfinite())  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
def test_a_block_of_wan_takes_one_pass_and_gives_what_it_did() -> None:
    """Compiled as `fast` is, beside the same block with its norms apart."""
    from diffusers import WanTransformer3DModel

    from qbench.optimizations import axes, quantization
    from qbench.recipe.schema import Quantize

    torch.manual_seed(0)
    module = WanTransformer3DModel(
        num_attention_heads=3, attention_head_dim=128, ffn_dim=512, num_layers=2, text_dim=32,
        freq_dim=32,
    )  # fmt: skip
    module = module.eval().requires_grad_(False).cuda().bfloat16()
    axes.fuse_qkv(module)
    quantization.apply(module, Quantize(backend="qbench", scheme="fp8_dynamic_row"))
    latents, text = torch.randn(2, 16, 3, 16, 16), torch.randn(2, 20, 32)
    inputs = latents.cuda().bfloat16(), torch.tensor([500, 300]).cuda(), text.cuda().bfloat16()
    calls = []

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(q.shape)
        return fp8_attention.attend(q, k, v)

    dispatch(module, counted)
    expected = module(*inputs).sample
    assert len(calls) == 2
    dispatch(module, fp8_attention.attend)
    assert _error(module(*inputs).sample, expected) < 0.01
    for block in module.blocks:
        block.compile()
    assert _error(module(*inputs).sample, expected) < 0.02
    assert len(calls) == 2
