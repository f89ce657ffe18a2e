"""The model of costs against cases that can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from scripts.ranks_costs import Model, Shape, Split, splits

SECONDS_PER_BYTE = 1e-9
MEASURED: dict[str, Any] = {
    "exchange": [{"bytes": 2**n, "trade_s": 2**n * SECONDS_PER_BYTE} for n in (10, 20, 30)],
    "attention": {"one_s": 0.02, "shared_s": 0.02},
    "decode": {"one_s": 1.0, "shared_s": 0.6},
}
SHAPE = Shape(tokens=1000, heads=12, channels=10, blocks=5, latents=1000)


def test_halves_of_guidance_send_one_prediction_a_step() -> None:
    cost = Model(MEASURED, SHAPE, 1.0, 1.0).cost(Split(2, 1, 1), 10)
    sent = 1000 * 2 * SECONDS_PER_BYTE
    assert cost.exchange_s == pytest.approx(sent)
    assert cost.video_s == pytest.approx(10 * (0.5 + sent) + 0.6)  # the decode as measured
    assert cost.speed_up == pytest.approx(11 / cost.video_s)


def test_ulysses_on_two_costs_what_attention_on_two_was_measured_to() -> None:
    """Trades and packing together are all that shared attention takes beyond half of one's."""
    cost = Model(MEASURED, SHAPE, 1.0, 1.0).cost(Split(1, 2, 1), 10)
    last = 2 * 1000 * 2 * SECONDS_PER_BYTE
    assert cost.exchange_s == pytest.approx(5 * (0.02 - 0.01) + last)


def test_of_two_pieces_half_the_trades_of_ulysses_hide_behind_attention() -> None:
    last = 2 * 1000 * 2 * SECONDS_PER_BYTE
    trades = 4 * 2 * 500 * 120 * 2 / 2 * SECONDS_PER_BYTE  # query, key, value and the result
    for one_s, share in ((0.02, 0.5), (0.0, 1.0)):
        measured = MEASURED | {"attention": {"one_s": one_s, "shared_s": one_s / 2}}
        found = Model(measured, SHAPE, 1.0, 1.0).cost(Split(1, 2, 1), 10).exchange_s
        assert found == pytest.approx(5 * share * trades + last)


def test_ring_is_hidden_behind_attention_until_it_takes_longer() -> None:
    model = Model(MEASURED, SHAPE, 1.0, 1.0)
    last = 2 * 1000 * 2 * SECONDS_PER_BYTE
    assert model.cost(Split(1, 1, 2), 10).exchange_s == pytest.approx(last)
    slow = MEASURED | {"attention": {"one_s": 0.0, "shared_s": 0.0}}
    parts = 2 * 2 * 500 * 120 * 2 * SECONDS_PER_BYTE  # keys and values of two halves, once round
    found = Model(slow, SHAPE, 1.0, 1.0).cost(Split(1, 1, 2), 10).exchange_s
    assert found == pytest.approx(5 * parts + last)


def test_every_split_multiplies_to_the_gpus_and_divides_the_heads() -> None:
    found = list(splits(8, 30))
    assert Split(2, 2, 2) in found
    assert all(one.gpus == 8 and 30 % one.ulysses == 0 for one in found)
    assert Split(1, 4, 2) not in found
