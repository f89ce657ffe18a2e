"""The model of the attention kernel's ring: right as it is, and every planted fault is found."""

from __future__ import annotations

import pytest

from scripts.attention_protocol import Protocol, Wrong


@pytest.mark.parametrize(("warps", "stages", "tiles"), [(1, 2, 5), (2, 2, 3), (1, 3, 4)])
def test_no_order_has_a_copy_over_what_is_still_read(warps: int, stages: int, tiles: int) -> None:
    assert Protocol(warps, stages, tiles).searched() > 1000


@pytest.mark.parametrize(
    ("protocol", "found"),
    [
        (Protocol(1, 2, 4, arrivals=1), "still read"),
        (Protocol(1, 2, 4, arrivals=3), "waits for ever"),
        (Protocol(1, 2, 4, hasty=True), "reads another tile"),
    ],
)
def test_planted_faults_are_found(protocol: Protocol, found: str) -> None:
    with pytest.raises(Wrong, match=found):
        protocol.searched()
