"""INT8 weights, compiled: which kernel computes their products."""

from __future__ import annotations

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from qbench.optimizations import int8_products

SINGLE_TOKENS = "_weight_int8pack_mm"  # the kernel of inductor's choice


def _layers(device: str, scaled: bool) -> nn.Module:
    """Two linears with INT8 weights; scaled: of which the first multiplies its input, as AWQ's."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).to(
        device, torch.bfloat16
    )
    quantize_(made, Int8WeightOnlyConfig(set_inductor_config=False))
    if scaled:
        made[0].weight.act_pre_scale = torch.rand(64).to(made[0].weight)
    return made


def _compiled(module: nn.Module, x: Tensor, settings: dict[str, object]) -> tuple[Tensor, str]:
    torch._dynamo.reset()
    counters.clear()
    fresh = {"force_disable_caches": True}
    with torch.no_grad(), torch._inductor.config.patch({**settings, **fresh}):
        out, code = run_and_get_code(torch.compile(module, dynamic=False), x)
    return out, "".join(code)


def _apart(one: Tensor, other: Tensor) -> float:
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


@pytest.mark.parametrize("scaled", [False, True])
def test_scales_first_is_no_pattern_of_inductors_and_the_same_product(scaled: bool) -> None:
    module = _layers("cpu", scaled)
    x = torch.randn(2, 300, 64, dtype=torch.bfloat16)
    _, plain = _compiled(module, x, {})
    assert counters["inductor"]["woq_matcher_count"] == 2, "inductor has the pattern no more"
    assert SINGLE_TOKENS in plain
    seen: list[torch.fx.Graph] = []
    own = int8_products.ScalesFirst("cpu", before=seen.append)
    found, code = _compiled(module, x, {"post_grad_custom_pre_pass": own})
    assert counters["inductor"]["woq_matcher_count"] == 0
    assert SINGLE_TOKENS not in code
    assert len(seen) == 1, "a pass that was there before runs too"
    with torch.no_grad():
        assert _apart(found, module(x)) < 0.01


def test_compiled_code_is_kept_by_all_that_changed_it() -> None:
    """A pass without a name of its own keeps inductor from keeping anything."""
    plain = int8_products.ScalesFirst("cuda")
    others = (int8_products.ScalesFirst("xpu"), int8_products.ScalesFirst("cuda", before=plain))
    names = [one.uuid() for one in (plain, *others)]
    assert len(set(names)) == 3
    assert None not in names
    assert int8_products.ScalesFirst("cuda", before=lambda _: None).uuid() is None


def test_a_cpus_products_are_left_to_its_kernel() -> None:
    assert int8_products.settings("cpu") == {}
    module = _layers("cpu", scaled=False)
    x = torch.randn(300, 64, dtype=torch.bfloat16)
    _, code = _compiled(module, x, int8_products.settings("cuda"))
    assert SINGLE_TOKENS in code


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("scaled", [False, True])
def test_on_a_gpu_the_librarys_product_computes(scaled: bool) -> None:
    module = _layers("cuda", scaled)
    x = torch.randn(2, 300, 64, dtype=torch.bfloat16, device="cuda")
    found, code = _compiled(module, x, int8_products.settings("cuda"))
    assert SINGLE_TOKENS not in code
    assert "extern_kernels.mm(" in code
    with torch.no_grad():
        assert _apart(found, module(x)) < 0.01
