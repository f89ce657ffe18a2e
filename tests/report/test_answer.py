"""The sentence that a page begins with: it claims what the table claims, and no more."""

from __future__ import annotations

import pytest
from conftest import ROOT

from qbench.report.page.answer import answer
from qbench.results import archive, store
from qbench.results.ranking import rankings

PUBLISHED = ROOT / "results/published"


def _answer(folder: str, *only: str, without: tuple[str, ...] = ()) -> str:
    """Of a published matrix, or of some of its recipes."""
    found, _ = store.read_all([PUBLISHED / folder / archive.FILE], compact=True)
    kept = [
        (path, record)
        for path, record in found
        if (not only or record.recipe.name in only) and record.recipe.name not in without
    ]
    return answer(rankings(kept)[0])


def test_the_fastest_as_good_comes_first_and_what_is_faster_with_its_price() -> None:
    said = _answer("amd-epyc-2t")
    assert said.startswith("onnx is the fastest that is as good as fp32: 1.15x [1.13, 1.19]; ")
    assert said.endswith(
        "onnx-int8 is faster at drift, not settled: 1.67x [1.01, 2.61] "
        "(too few independent samples)."
    )


def test_without_one_as_good_it_is_the_fastest_in_which_no_loss_was_found() -> None:
    said = _answer("amd-epyc-2t", without=("onnx", "onnx-int8"))
    assert said == (
        "compile is the fastest in which no loss against fp32 was found: 1.40x [1.35, 1.41], "
        "drift, not settled."
    )


@pytest.mark.parametrize(
    ("only", "said"),
    [
        (("fp32", "fp16"), "Nothing here was shown to be faster than fp32."),
        (("fp32", "tensorrt"), "Only the reference, fp32, was measured here."),
        (("tensorrt", "fast"), "Nothing ran to its end: skipped."),
        (("int8",), "There is no sound run of the reference here"),
    ],
)
def test_where_there_is_no_winner_it_says_why(only: tuple[str, ...], said: str) -> None:
    assert _answer("amd-epyc-2t", *only).startswith(said)


def test_what_is_broken_wins_nothing_however_fast() -> None:
    """fault-last-frames-repeated is invalid at 1.18x, fault-block-skipped broken at 1.03x."""
    assert "fault-last-frames-repeated" not in _answer("planted-faults")
    left = _answer("planted-faults", "fp32", "fault-block-skipped", "fault-black")
    assert left.startswith("Nothing here was shown to be faster than fp32; ")
    assert "came nearest" in left
    assert left.endswith("broken.")


def test_speed_alone_and_quality_alone_say_what_was_not_measured() -> None:
    assert _answer("h200/steps").endswith("over bf16; quality was not measured here.")
    untimed = _answer("h200/quality")
    assert untimed.startswith("No latency is compared here; fp16 is closest to the reference")
