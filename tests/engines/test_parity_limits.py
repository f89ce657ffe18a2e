"""What an export is allowed to differ by, for each way of computing."""

from __future__ import annotations

import torch

from qbench.engines import export
from qbench.engines.evidence import Call
from qbench.recipe.schema import Quantize, Variant


def _calls(own: float) -> list[Call]:
    """One call whose variant lies `own` from FP32, in relative L2."""
    fp32 = torch.randn(1, 512, generator=torch.manual_seed(0))
    return [Call(inputs={}, fp32=fp32, variant=fp32 * (1 + own))]


def _variant(scheme: str) -> Variant:
    return Variant(dtype="bf16", engine="aoti", quantize=Quantize(backend="torchao", scheme=scheme))


def test_compiled_rounding_of_inputs_may_move_by_a_share_of_the_variants_own_error() -> None:
    dynamic = _variant("fp8_dynamic_row")
    against, limit = export._limit(dynamic, "aoti", _calls(0.15))
    assert (against, round(limit, 6)) == ("variant", 0.05)
    assert export._limit(dynamic, "aoti", _calls(0.01)) == ("variant", export.FAITHFUL)
    # Its tensors are loaded as they were measured: bit for bit, so nothing is allowed to move.
    assert export._limit(dynamic, "diffusers", _calls(0.15)) == ("variant", export.FAITHFUL)


def test_weights_that_are_dequantized_may_not_move_with_their_error() -> None:
    weights = _variant("int4_weight_only")
    assert export._limit(weights, "aoti", _calls(0.3)) == ("variant", export.FAITHFUL)
