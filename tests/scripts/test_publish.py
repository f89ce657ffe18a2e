"""What is published says of its samples what they say, and keeps the verdicts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qbench.results import archive, store
from qbench.results.derive import ANEW
from scripts import publish

RANKS = publish.PUBLISHED / "amd-epyc-1t" / "ranks"  # with the seven digits of a run
FP8 = publish.PUBLISHED / "h200" / "calibrated-outliers-1000"


def _publish(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["publish", str(source), str(target)])
    publish.main()


def test_samples_keep_five_digits_and_figures_are_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(RANKS, tmp_path, monkeypatch)
    before, after = (
        {record.run: record for _, record in store.read_all(store.find([place]))[0]}
        for place in (RANKS, tmp_path / archive.FILE)
    )
    assert before.keys() == after.keys()
    for run, record in after.items():
        assert not [note for note in record.notes if ANEW in note]
        for name, metric in record.quality.items():
            samples, whole = metric.samples or [0.0], before[run].quality[name]
            assert samples == [float(f"{value:.5g}") for value in samples], name
            most = max(map(abs, samples))
            assert metric.value == pytest.approx(whole.value, rel=1e-9, abs=1e-4 * most), name


def test_a_rounding_that_changes_a_verdict_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "DIGITS", 1)
    with pytest.raises(SystemExit):
        _publish(FP8, tmp_path, monkeypatch)
    assert not list(tmp_path.iterdir())
