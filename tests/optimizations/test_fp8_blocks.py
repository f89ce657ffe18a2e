"""Blocks whose norms write FP8: the arithmetic here, the kernels where there is a GPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from qbench.optimizations import axes, quantization
from qbench.optimizations.kernels import fp8_blocks, fp8_linear, fp8_norms
from qbench.recipe.schema import Quantize

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
FP8 = Quantize(backend="qbench", scheme="fp8_dynamic_row")


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.fixture(scope="module")
def wan() -> Any:
    """A Wan denoiser with fused projections, whose every weight counts, and no recipe applied."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    module = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, ffn_dim=64, num_layers=2,
        text_dim=32, freq_dim=32,
    ).eval().requires_grad_(False)  # fmt: skip
    for weight in module.parameters():
        weight.copy_(torch.randn_like(weight) * 0.2)
    axes.fuse_qkv(module)
    return module


def _step(module: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 3, 8, 8, generator=generator)
    text = torch.randn(2, 20, 32, generator=generator)
    made: torch.Tensor = module(latents, torch.tensor([500, 300]), text).sample
    return made


def test_a_fused_block_is_diffusers_own_with_fp8_linears(wan: Any) -> None:
    """Two videos at time steps of their own, so each has its own modulation."""
    names = set(quantization.chosen(wan, FP8))
    plain, fused = copy.deepcopy(wan), copy.deepcopy(wan)
    fp8_linear.replace(plain, names)
    quantization.apply(fused, FP8)
    assert all(isinstance(block.norm1, fp8_norms.Fp8LayerNorm) for block in fused.blocks)
    assert _error(_step(fused), _step(plain)) < 1e-5
    assert 0.01 < _error(_step(fused), _step(wan)) < 0.1


def test_a_block_with_a_linear_in_another_format_stays_diffusers_own(wan: Any) -> None:
    module = copy.deepcopy(wan)
    quantization.apply(module, FP8.model_copy(update={"exclude": ["blocks.1.attn2.to_q"]}))
    kinds = [isinstance(block.norm1, fp8_norms.Fp8LayerNorm) for block in module.blocks]
    assert kinds == [True, False]
    assert _error(_step(module), _step(wan)) < 0.1


def test_offload_brings_the_weights_of_a_fused_block(wan: Any) -> None:
    from accelerate import cpu_offload

    module = copy.deepcopy(wan)
    quantization.apply(module, FP8)
    expected = _step(module)
    cpu_offload(module, "cpu", offload_buffers=True)
    assert {weight.device.type for weight in module.parameters()} == {"meta"}
    assert torch.equal(_step(module), expected)


def test_time_steps_for_each_token_are_refused(wan: Any) -> None:
    """Wan 2.2's: the fused block would add one video's modulation to the other's tokens."""
    module = copy.deepcopy(wan)
    fp8_linear.replace(module, set(quantization.chosen(module, FP8)))
    assert fp8_blocks.fuse(module) == 2
    x = torch.zeros(1, 4, 48)
    with pytest.raises(ValueError, match="one time step a video"):
        module.blocks[0](x, x, torch.zeros(1, 4, 6, 48), (x, x))


@pytest.mark.gpu
@pytest.mark.skipif(not HOPPER, reason="needs an NVIDIA Hopper GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [48, 1536, 1544, 2056, 5120, 8192])
@pytest.mark.parametrize(("more", "gate"), [(False, False), (True, False), (True, True)])
def test_norm_kernel_gives_what_its_model_does(
    dtype: torch.dtype, columns: int, more: bool, gate: bool
) -> None:
    torch.manual_seed(0)
    x, plus = (torch.randn(2, 301, columns).to(dtype) + 1 for _ in "xy")
    by, scale, shift = (torch.randn(2, columns) for _ in range(3))
    inputs = (x, plus if more else None, by if gate else None, scale, shift)
    expected = fp8_norms.normalized(*inputs, 1.0, 1e-6)
    on_gpu = [None if y is None else y.cuda() for y in inputs]
    found = fp8_norms.normalized(*on_gpu, 1.0, 1e-6)  # type: ignore[arg-type]
    assert _error(found[0].cpu(), expected[0]) < 1e-3
    assert _error(found[2].cpu(), expected[2]) < 1e-3
    back, wanted = (y[1].cpu().float().flatten(0, 1) * y[2].cpu() for y in (found, expected))
    assert _error(back, wanted) < 0.01
