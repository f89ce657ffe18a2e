"""Rules that look at the model, held against what happens where they are put aside."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from qbench import support
from qbench.optimizations import caching, quantization
from qbench.pipelines import specs
from qbench.recipe.schema import Cache, Generation, Quantize, Variant

FULL = support.Machine("cuda", (9, 0), frozenset({*support.PACKAGES, "onnxruntime-gpu"}))


def _why_not(fields: dict[str, Any], model: support.ModelFacts) -> str:
    variant = Variant.model_validate({"dtype": "bf16", **fields})
    return support.why_not(variant, dataclasses.replace(FULL, model=model)) or ""


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return specs.load(specs.find("tiny-cogvideox"), "bf16", "cpu")


def test_faster_cache_needs_guidance_and_fails_without(pipeline: Any) -> None:
    faster = {"cache": {"kind": "faster", "interval": 2}}
    guided, not_guided = (support.model_facts(pipeline, guided, 9) for guided in (True, False))
    assert "guidance above 1" in _why_not(faster, not_guided)
    assert _why_not(faster, guided) == ""
    assert _why_not({"cache": {"kind": "pab", "interval": 2}}, not_guided) == ""
    run = pipeline.resolve(specs.find("tiny-cogvideox"), Generation(steps=8, guidance=1.0))
    embeddings, noise = pipeline.encode(run, ["a red star"]), pipeline.noise(run, 0)
    changes = caching.apply(pipeline, Cache(kind="faster", interval=2), run.steps).changes
    with pytest.raises(IndexError):
        pipeline.denoise(
            run, embeddings, noise, lambda _: None, generators=pipeline.generators([0])
        )
    changes.undo()


@pytest.mark.parametrize("scheme", ["int4_weight_only", "int2_weight_only"])
def test_groups_of_32_need_widths_of_whole_groups(pipeline: Any, scheme: str) -> None:
    def odd() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(48, 32)).bfloat16()

    facts = dataclasses.replace(support.model_facts(pipeline, True, 9), linears={"0": 64, "1": 48})
    wanted = {"backend": "torchao", "scheme": scheme}
    assert "groups of 32" in _why_not({"quantize": wanted}, facts)
    with pytest.raises(AssertionError):
        quantization.apply(odd(), Quantize.model_validate(wanted))
    whole = wanted | {"exclude": ["1"]}
    assert _why_not({"quantize": whole}, facts) == ""
    quantization.apply(odd(), Quantize.model_validate(whole))
    assert _why_not({"quantize": wanted | {"backend": "quanto"}}, facts) == ""


def test_fp8_attention_and_strips_are_for_models_that_they_were_written_for(pipeline: Any) -> None:
    facts = support.model_facts(pipeline, True, 9)
    assert facts.head_dim == 64
    assert _why_not({"attention": "fp8"}, facts) == ""
    wide = dataclasses.replace(facts, head_dim=128, causal_vae=False, exports=False)
    assert _why_not({"attention": "fp8"}, wide) == ""
    odd = dataclasses.replace(facts, head_dim=96)
    assert "heads of 64 or 128" in _why_not({"attention": "fp8"}, odd)
    assert "frame by frame" in _why_not({"decode": {"strips": True}}, wide)
    assert "exported" in _why_not({"dtype": "fp32", "engine": "onnxruntime"}, wide)
