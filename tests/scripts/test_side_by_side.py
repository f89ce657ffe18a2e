"""Which parts of the matrix run side by side, and where."""

from __future__ import annotations

import pytest

from scripts.matrix import PARTS
from scripts.side_by_side import chain


def test_parts_that_follow_come_along_and_share_a_reference_where_they_are_comparable() -> None:
    found = dict(chain(["zeroscope-quality", "calibrated"]))
    assert found["calibrated-zeroscope"] == "zeroscope-quality"
    assert found["calibrated-outliers"] == "calibrated-outliers"
    for part, folder in found.items():
        assert PARTS[part].recipes[0] == PARTS[folder].recipes[0]
        assert PARTS[part].settings == PARTS[folder].settings


def test_what_is_timed_is_not_run_beside_others() -> None:
    with pytest.raises(SystemExit, match="steps is timed"):
        dict(chain(["quality", "steps"]))
