"""One video on two ranks is the video of one process, whatever is split and whatever else is on."""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from optimizations import ranks

from qbench import support
from qbench.errors import Unsupported
from qbench.optimizations.parallel import tokens
from qbench.optimizations.parallel.groups import Ranks
from qbench.recipe.schema import Parallel, Variant

Found = dict[str, Any]
FULL = support.Machine("cuda", (9, 0), frozenset({*support.PACKAGES}), devices=8)
ROUNDING = 1e-4  # of the spread, in FP32 over three steps; a token that is lost moves it by 1


def _ranks(folder: Path, world: int) -> list[Found]:
    """What each of so many ranks found."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["optimizations.ranks"])
    pipes = [context.Pipe() for _ in range(world)]
    started = [
        context.Process(target=ranks.work, args=(rank, str(folder / "meeting"), world, theirs))
        for rank, (_, theirs) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    found = []
    for ours, _ in pipes:
        assert ours.poll(300), "a rank says nothing"
        found.append(ours.recv())
    for process in started:
        process.join(30)
    for one in found:
        assert "failed" not in one, one["failed"]
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """Of two ranks: one pair of processes for all that is checked here."""
    first, second = _ranks(tmp_path_factory.mktemp("ranks"), 2)
    return first, second


def test_denoises_the_video_of_one_process_and_undoes_it(both: tuple[Found, Found]) -> None:
    for name, splits in ranks.FAMILIES.items():
        for split in splits:
            for found in both:
                error, undone = found[f"{name} {split}"]
                assert error < ROUNDING, (name, split)
                assert undone, (name, split)


def test_two_calls_of_guidance_are_the_very_calls_of_one_process(
    both: tuple[Found, Found],
) -> None:
    """Wan's halves are calls of their own, so nothing is even rounded otherwise."""
    assert [found["wan {'cfg': 2}"][0] for found in both] == [0, 0]


def test_caches_skip_the_same_steps_on_all_ranks(both: tuple[Found, Found]) -> None:
    for cache, split in ranks.CACHES:
        name = f"{cache['kind']} {split}"
        for found in both:
            one, two, error = found[name]
            assert one == two, name
            assert one < ranks.STEPS, name  # it did skip
            # TaylorSeer keeps what it extrapolates from in BF16, whatever the model computes in.
            assert error < (0.02 if cache["kind"] == "taylorseer" else 10 * ROUNDING), name


def test_ranks_agree_on_what_each_calibrated(both: tuple[Found, Found]) -> None:
    """0 and 0.2 above what one process finds: their mean, on both."""
    assert both[0]["calibrated"] == both[1]["calibrated"]
    ratios, alone, _ = both[0]["calibrated"]
    assert ratios == pytest.approx([x + 0.1 for x in alone], abs=1e-4)


def test_fp8_linears_and_fused_projections_on_two_ranks(both: tuple[Found, Found]) -> None:
    """Rows are quantized one by one; how some CPUs round a row depends on how many there are."""
    assert both[0]["fast"] == both[1]["fast"] < 0.05


def test_decodes_the_video_of_one_process(both: tuple[Found, Found]) -> None:
    for found in both:
        for way in ranks.WAYS:
            assert found[f"decode {way}"] < 1e-5, way
        assert found["decode undone"]


def test_ring_merges_uneven_parts_to_the_softmax_over_all(both: tuple[Found, Found]) -> None:
    for found in both:
        for kernel in ("auto", "math", "flash"):
            assert found[f"ring {kernel}"] < 1e-4, kernel


def test_ulysses_gives_every_head_all_tokens_of_uneven_shares(
    both: tuple[Found, Found],
) -> None:
    """Bit for bit what one process computes: exchanges only move values."""
    for found in both:
        for shape in ranks.SHAPES:
            assert found[f"ulysses {shape}"], shape


def test_ulysses_has_kernels_see_tokens_in_the_order_of_one_process(
    both: tuple[Found, Found],
) -> None:
    """FP8 in tiles gives the same to the bit; it does not where ranks' text is not told of."""
    for found in both:
        assert found["ulysses, 29 of text"]
        assert not found["ulysses, 0 of text"]


@pytest.mark.parametrize("world", [3, 4])
def test_tokens_keep_their_order_on_three_ranks_and_in_each_row_of_a_ring(
    tmp_path: Path, world: int
) -> None:
    for found in _ranks(tmp_path, world):
        assert found["order"]
        assert found["error"] < 1e-5


def test_who_waits_has_the_longer_exchanges(both: tuple[Found, Found]) -> None:
    first, second = both
    assert first["waited"] > 0.3 > second["waited"]
    assert first["begun"] == second["begun"] == 2


def test_ranks_with_other_weights_make_no_video(both: tuple[Found, Found]) -> None:
    for found in both:
        assert "hold different weights" in found["other weights"]


@pytest.mark.parametrize(
    ("heads", "wanted", "near"),
    [(30, 4, "3, 5;"), (30, 7, "6, 10;"), (12, 5, "4, 6;"), (4, 3, "2, 4;")],
)
def test_heads_that_do_not_divide_are_refused_with_the_nearest(
    heads: int, wanted: int, near: str
) -> None:
    with pytest.raises(Unsupported, match=f"the nearest that do: {near}"):
        tokens.check_heads(heads, wanted)
    for fits in (1, 2, heads):
        tokens.check_heads(heads, fits)


def test_without_other_processes_it_says_how_to_start_them() -> None:
    with pytest.raises(Unsupported, match="torchrun"):
        Ranks(Parallel(cfg=2, ulysses=3), "cpu")


def _why_not(parallel: dict[str, Any], machine: support.Machine = FULL, **fields: Any) -> str:
    variant = Variant.model_validate({"dtype": "bf16", "parallel": parallel, **fields})
    return support.why_not(variant, machine) or ""


def test_rules_of_what_goes_together() -> None:
    few = dataclasses.replace(FULL, devices=2)
    assert "has fewer" in _why_not({"cfg": 2, "ulysses": 2}, few)
    assert _why_not({"cfg": 2}, few) == ""
    assert _why_not({"cfg": 2, "ulysses": 64}, support.Machine("cpu")) == ""
    for offload in ("model", "sequential", "group"):
        assert "same bus" in _why_not({"cfg": 2}, memory={"offload": offload})
    tiles = {"vae_tiling": True}
    assert "choose one" in _why_not({"cfg": 2, "decode": True}, memory=tiles)
    assert _why_not({"cfg": 2}, memory=tiles) == ""
    assert "scope blocks" in _why_not({"cfg": 2}, compile={"scope": "model"})
    graphs = {"mode": "reduce-overhead"}
    assert "captured graph" in _why_not({"ring": 2}, compile=graphs)
    assert _why_not({"cfg": 2}, compile=graphs) == ""
    assert "log-sum-exp" in _why_not({"ring": 2}, attention="fp8")
    assert _why_not({"ulysses": 2}, attention="fp8") == ""
    faster = {"kind": "faster", "interval": 2}
    assert "FasterCache" in _why_not({"cfg": 2}, cache=faster)
    assert _why_not({"ulysses": 2}, cache=faster) == ""


def test_a_number_of_ranks_is_their_product_and_no_less_than_two() -> None:
    assert Parallel(cfg=2, ulysses=3, ring=4).ranks == 24
    with pytest.raises(ValueError, match="one GPU"):
        Parallel(decode=True)
    with pytest.raises(ValueError, match="whole steps"):
        Variant.model_validate({"engine": "onnxruntime", "parallel": {"cfg": 2}})
