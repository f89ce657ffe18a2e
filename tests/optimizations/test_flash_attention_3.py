"""Where FlashAttention 3 comes from, and what its FP8 kernels are given."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch.nn import functional

from qbench import support
from qbench.optimizations import flash_attention_3
from qbench.recipe.schema import Variant


@pytest.mark.parametrize(
    ("packages", "runs"),
    [
        (set(), set()),
        ({"xformers"}, {"flash-3 bf16", "flash-3 fp16"}),
        ({"fa3_fwd_interface"}, {"flash-3 bf16", "flash-3-fp8 bf16", "flash-3-fp8 fp16"}),
        (
            {"fa3_fwd_interface", "xformers"},
            {"flash-3 bf16", "flash-3 fp16", "flash-3-fp8 bf16", "flash-3-fp8 fp16"},
        ),
        (
            {"flash_attn_interface", "torchao"},
            {f"{kernel} {dtype}" for kernel in ("flash-3", "flash-3-fp8", "torchao-fp8")
             for dtype in ("bf16", "fp16")},
        ),
    ],
    ids=lambda value: "+".join(sorted(value)),
)  # fmt: skip
def test_each_package_runs_what_it_has_kernels_for(packages: set[str], runs: set[str]) -> None:
    machine = support.Machine("cuda", (9, 0), frozenset(packages))
    found = {
        f"{kernel} {dtype}"
        for kernel in ("flash-3", "flash-3-fp8", "torchao-fp8")
        for dtype in ("bf16", "fp16")
        if support.why_not(Variant(dtype=dtype, attention=kernel), machine) is None
    }
    assert found == runs


def test_fp8_kernels_are_given_codes_and_a_scale_for_each_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a stand-in that computes from codes and scales what the packages' signature says."""

    def flash_attn_func(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        q_descale: torch.Tensor,
        k_descale: torch.Tensor,
        v_descale: torch.Tensor,
    ) -> torch.Tensor:
        assert q.dtype == k.dtype == v.dtype == torch.float8_e4m3fn
        pairs = ((q, q_descale), (k, k_descale), (v, v_descale))
        q, k, v = (x.float().transpose(1, 2) * scale[:, :, None, None] for x, scale in pairs)
        out = functional.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).bfloat16()

    package = types.ModuleType("fa3_fwd_interface")
    package.__dict__["flash_attn_func"] = flash_attn_func
    monkeypatch.setitem(sys.modules, "fa3_fwd_interface", package)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 200, 3, 64, generator=generator).bfloat16()
    v[:, :, 1] *= 1000  # one head apart from the others
    found = flash_attention_3.forward_in_fp8()(q, k, v).float()
    exact = functional.scaled_dot_product_attention(
        *(x.float().transpose(1, 2) for x in (q, k, v))
    ).transpose(1, 2)
    for head in range(3):
        error = (found - exact)[:, :, head].norm() / exact[:, :, head].norm()
        assert error < 0.06
