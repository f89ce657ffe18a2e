"""What is said of a search's layers and of weights that are rounded to zero, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qbench.recipe.schema import Quantize
from scripts import search_limits
from scripts.search_limits import SCHEME

WANTED = Quantize(backend="qbench", scheme=SCHEME)


def test_weights_that_read_an_outlier_channel_are_told_by_their_columns() -> None:
    """Two of 64 inputs are a hundred times stronger; a row that is scaled besides is no column."""
    plain = nn.Sequential(nn.Linear(64, 32))
    values = 1 + torch.rand(32, 64, generator=torch.manual_seed(0))
    plain[0].weight.data = values
    outliers = nn.Sequential(nn.Linear(64, 32))
    outliers[0].weight.data = values.clone()
    outliers[0].weight.data[:, [3, 40]] /= 100
    outliers[0].weight.data[5] *= 100
    found = search_limits.rounded_to_zero(plain, outliers, WANTED)
    assert [one["bits"] for one in found] == [4, 5, 6, 8]
    assert [one["others"] for one in found] == [0, 0, 0, 0]
    # Between 0.01 and 0.02, where a level is about 2 / 7, 2 / 15 and then 2 / 127.
    assert [found[place]["reading"] for place in (0, 1, 3)] == [1, 1, 0]


def test_what_a_guess_loses_is_reckoned_by_what_was_seen() -> None:
    """Four bits everywhere, and three for one layer pay five for the other: the dearer one."""
    module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    bits = {f"int{count}_weight_only": count for count in (3, 4, 5)}

    def table(first: float, second: float) -> dict[str, dict[str, list[float]]]:
        return {
            name: {scheme: [most * 4.0**-count] for scheme, count in bits.items()}
            for name, most in (("0", first), ("1", second))
        }

    seen = table(100, 1)
    assert search_limits.lost_without_every(seen, seen, module, WANTED) == 0
    lost = search_limits.lost_without_every(seen, table(1, 100), module, WANTED)
    best, worst = (100 * 4.0**-a + 4.0**-b for a, b in ((5, 3), (3, 5)))
    assert lost == pytest.approx((worst / best) ** 0.5 - 1)


def test_errors_are_shared_out_over_kinds_and_steps() -> None:
    row = [0.0] * 3 + [1.0] * 3  # one prediction a step
    names = {
        f"transformer_blocks.0.{end}": scale
        for end, scale in (("attn1.to_q", 1.0), ("attn1.to_v", 2.0), ("ff.net.2", 5.0))
    }
    found = search_limits.where_the_error_is(
        {name: {SCHEME: [scale * each for each in row]} for name, scale in names.items()}
    )
    assert found["later"] == found["layers"] == 3
    assert found["kinds"] == pytest.approx(
        {"queries_and_keys": 0.125, "values": 0.25, "output_projections": 0, "feed_forward": 0.625}
    )
