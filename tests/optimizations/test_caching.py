"""Caches skip work, forget between videos, and stay near what they stand in for."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from qbench import support
from qbench.errors import InputError, Unsupported
from qbench.optimizations import axes, caching
from qbench.pipelines import specs
from qbench.recipe.files import load
from qbench.recipe.schema import Cache, Generation, Variant

STEPS = 10


def _video(pipeline: Any, run: Any) -> torch.Tensor:
    embeddings = pipeline.encode(run, ["a red star moves left on a navy background"])
    noise, own = pipeline.noise(run, 3), pipeline.generators([3])
    return pipeline.denoise(run, embeddings, noise, lambda _: None, generators=own)


def _prepared(cache: dict[str, Any] | None) -> tuple[Any, Any, list[int]]:
    """A pipeline with the cache, its settings, and a count of what its last block computes."""
    model = specs.find("tiny-cogvideox")
    pipeline = specs.load(model, "fp32", "cpu")
    run = pipeline.resolve(model, Generation(steps=STEPS))
    calls = [0]
    last = pipeline.denoiser.transformer_blocks[-1].attn1.to_out[0]
    last.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    axes.apply(pipeline, Variant.model_validate({"cache": cache}), "cpu", STEPS)
    return pipeline, run, calls


@pytest.mark.parametrize(
    ("cache", "most_calls", "least_psnr"),
    [
        ({"kind": "taylorseer", "interval": 2}, 7, 20),
        ({"kind": "first_block", "threshold": 0.5}, 8, 20),
        ({"kind": "pab", "interval": 2}, 8, 20),
        ({"kind": "faster", "interval": 2}, 9, 12),
    ],
)
def test_cache_skips_work_and_forgets_between_videos(
    cache: dict[str, Any], most_calls: int, least_psnr: float
) -> None:
    plain, run, calls = _prepared(None)
    expected = _video(plain, run)
    assert calls == [STEPS]
    pipeline, run, calls = _prepared(cache)
    first = _video(pipeline, run)
    assert 2 <= calls[0] <= most_calls
    assert torch.equal(_video(pipeline, run), first)
    assert calls[0] % 2 == 0  # as many again
    span = expected.max() - expected.min()
    assert 10 * torch.log10(span**2 / (first - expected).square().mean()) > least_psnr


def test_a_threshold_of_nothing_caches_nothing() -> None:
    plain, run, _ = _prepared(None)
    pipeline, run, calls = _prepared({"kind": "first_block", "threshold": 1e-9})
    assert torch.allclose(_video(pipeline, run), _video(plain, run), atol=1e-5)
    assert calls == [STEPS]


def test_step_share_is_a_share_of_the_steps() -> None:
    model = specs.find("tiny-cogvideox")
    pipeline = specs.load(model, "fp32", "cpu")
    assert pipeline.resolve(model, Generation(), 0.5).steps == 10
    assert pipeline.resolve(model, Generation(steps=3), 0.1).steps == 1


def test_a_cache_takes_its_own_field_alone(tmp_path: Any) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("variant:\n  cache: {kind: taylorseer, threshold: 0.2}\n")
    with pytest.raises(InputError, match=r"wrong.yaml:2.*needs a field 'interval'"):
        load(path)


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ("{kind: pab, interval: 2, last: false}", "pab has no such field; it has 'interval'"),
        ("{kind: dbcache}", "dbcache needs a field 'threshold'"),
        ("{kind: mag, threshold: 0.1, ratios: [1.0], prompts: 2}", "the ratios, which are given"),
        ("{kind: sea, threshold: 0.1, order: 2}", "sea predicts by order 0 or 1"),
    ],
)
def test_fields_that_a_cache_does_not_have(tmp_path: Any, cache: str, said: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"variant:\n  cache: {cache}\n")
    with pytest.raises(InputError, match=rf"wrong.yaml:2.*{said}"):
        load(path)


def test_what_a_cache_cannot_do_is_said_before_it_runs() -> None:
    pipeline = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu")

    def applied(**fields: Any) -> None:
        caching.apply(pipeline, Cache.model_validate(fields), STEPS)

    with pytest.raises(InputError, match="3 of them, and a video has 10 denoise steps"):
        applied(kind="mag", threshold=0.1, ratios=[1.0] * 3)
    if importlib.util.find_spec("cache_dit"):
        with pytest.raises(Unsupported, match="8 of this denoiser's 8 blocks"):
            applied(kind="dbcache", threshold=0.1)
    none = support.Machine("cpu")
    wanted = Variant.model_validate({"cache": {"kind": "dbcache", "threshold": 0.1}})
    assert "cache-dit is not installed" in (support.why_not(wanted, none) or "")
    several = Variant.model_validate(
        {"cache": {"kind": "sea", "threshold": 0.1}, "parallel": {"cfg": 2}}
    )
    assert "would skip different steps" in (support.why_not(several, none) or "")
    mag = {"kind": "mag", "threshold": 0.1}
    for cache, refused in ((mag, True), (mag | {"ratios": [1.0] * STEPS}, False)):
        offloaded = Variant.model_validate({"cache": cache, "memory": {"offload": "model"}})
        said = support.why_not(offloaded, support.Machine("cuda", (9, 0))) or ""
        assert ("leave out offload" in said) == refused


@pytest.mark.parametrize(
    ("kind", "interval"), [("taylorseer", 2), ("taylorseer", 3), ("pab", 2), ("faster", 2)]
)
def test_the_last_step_is_computed_in_full(kind: str, interval: int) -> None:
    """Its output is the video: the first block's attention runs, on both halves of the batch."""
    pipeline, run, _ = _prepared({"kind": kind, "interval": interval})
    module = pipeline.denoiser
    rows: list[int] = []
    computed: list[tuple[int, ...]] = []
    module.proj_out.register_forward_hook(lambda *_: computed.append(tuple(rows)))
    for block in module.transformer_blocks:
        block.attn1.to_out[0].register_forward_hook(lambda _, given, out: rows.append(out.shape[0]))
    module.register_forward_hook(lambda *_: rows.clear())
    _video(pipeline, run)
    whole = (2,) * len(module.transformer_blocks)
    assert computed[-1] == whole
    assert any(step != whole for step in computed)


def test_inner_caches_do_not_go_with_compiled_blocks() -> None:
    machine = support.Machine("cuda", (9, 0), frozenset(support.PACKAGES))
    for kind, fits in (("pab", False), ("faster", False), ("taylorseer", True)):
        variant = Variant.model_validate(
            {"cache": {"kind": kind, "interval": 2}, "compile": {"scope": "blocks"}}
        )
        assert (support.why_not(variant, machine) is None) == fits
