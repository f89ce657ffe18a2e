"""Every axis can be taken back, bit for bit, or says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qbench.optimizations import axes
from qbench.optimizations.changes import Changes
from qbench.pipelines import specs
from qbench.recipe.schema import Variant


def _snapshot(pipeline: Any) -> dict[str, Any]:
    """Weights, and what torch and diffusers hang on modules, by place."""
    seen: dict[str, Any] = {}
    for part in ("transformer", "vae"):
        module = getattr(pipeline.pipe, part)
        for name, layer in module.named_modules():
            own = vars(layer)
            seen[f"{part}.{name}"] = (
                "forward" in own,
                layer._compiled_call_impl,
                len(layer._forward_hooks),
                type(getattr(layer, "processor", None)).__name__,
                getattr(layer, "inplace", None),
                own.keys() & {"_is_cached", "_original_forward", "_context_manager"},
                "cache_context" in own,
            )
        seen |= {f"{part}.{name}": value.clone() for name, value in module.state_dict().items()}
        for name in ("use_tiling", "use_slicing", "tile_overlap_factor_height"):
            seen[f"{part}.{name}"] = getattr(module, name, None)
    seen["decode"] = "decode" in vars(pipeline)
    return seen


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key]
        for key in a
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"fault": "scale_doubled"},
        {"fault": "block_skipped"},
        {"fault": "norms_fp8"},
        {"fault": "black"},
        {"fuse_qkv": True},
        {"attention": "math"},
        {"compile": {}},
        {"compile": {"scope": "model"}},
        {"compile": {}, "cache": {"kind": "taylorseer", "interval": 2}},
        {"cache": {"kind": "first_block", "threshold": 0.1}},
        {"cache": {"kind": "pab", "interval": 2}},
        {"cache": {"kind": "faster", "interval": 2}},
        {"cache": {"kind": "mag", "threshold": 0.1, "ratios": [1.0] * 4}},
        {"cache": {"kind": "sea", "threshold": 0.2}},
        {"attention": "math", "cache": {"kind": "dbcache", "threshold": 0.2, "front": 1}},
        {"decode": {"fused": True}},
        {"decode": {"strips": True}},
        {"decode": {"split_norms": True}},
        {"memory": {"vae_tiling": True, "vae_slicing": True}},
        {"fuse_qkv": True, "attention": "math", "decode": {"fused": True}, "fault": "black"},
    ],
    ids=str,
)
def test_what_was_applied_is_undone_bit_for_bit(fields: dict[str, Any]) -> None:
    if fields.get("cache", {}).get("kind") == "dbcache":
        pytest.importorskip("cache_dit")
    pipeline = specs.load(specs.find("tiny-cogvideox"), "bf16", "cpu")
    before = _snapshot(pipeline)
    applied = axes.apply(pipeline, Variant.model_validate({"dtype": "bf16", **fields}), "cpu", 4)
    assert not _same(_snapshot(pipeline), before) or "cache" in fields
    assert applied.undo() == []
    assert _same(_snapshot(pipeline), before)
    assert not pipeline.denoiser.is_cache_enabled


def test_rounded_weights_stay_and_say_so() -> None:
    pipeline = specs.load(specs.find("tiny-cogvideox"), "bf16", "cpu")
    quantize = {"backend": "torchao", "scheme": "int8_weight_only"}
    variant = Variant.model_validate({"dtype": "bf16", "fuse_qkv": True, "quantize": quantize})
    said = axes.apply(pipeline, variant, "cpu", 4).undo()
    assert [line.partition(":")[0] for line in said] == ["fuse_qkv", "quantize"]
    assert all("load the pipeline again" in line for line in said)


def test_an_axis_that_fails_leaves_the_earlier_ones_undone() -> None:
    pipeline = specs.load(specs.find("tiny-cogvideox"), "bf16", "cpu")
    before = _snapshot(pipeline)
    variant = Variant.model_validate(
        {"dtype": "bf16", "fuse_qkv": True, "quantize": {"backend": "torchao",
         "scheme": "int8_weight_only", "include": ["nowhere"]}}
    )  # fmt: skip
    with pytest.raises(Exception, match="leave nothing to quantize"):
        axes.apply(pipeline, variant, "cpu", 4)
    assert _same(_snapshot(pipeline), before)


def test_changes_go_back_in_reverse() -> None:
    layer = torch.nn.Linear(2, 2)
    changes = Changes("test")
    changes.compute(layer, lambda _, x: x + 1)
    changes.compute(layer, lambda _, x: x + 2)
    changes.replace(layer, "bias", None)
    bias = layer.bias
    assert bias is None
    assert layer(torch.zeros(1)).item() == 2
    changes.undo()
    assert layer.bias is not None
    assert "forward" not in vars(layer)
