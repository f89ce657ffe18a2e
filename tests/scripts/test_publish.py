"""What is published says of its samples what they say, and keeps the verdicts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from qbench.results import archive, store
from qbench.results.derive import ANEW
from qbench.results.record import Record
from scripts import publish

STEPS = publish.PUBLISHED / "h200" / "engines-aoti"
FP8 = publish.PUBLISHED / "h200" / "calibrated-outliers-1000"
NOISE = 1 + 1e-8 / 3  # of a clock or of float32


def _publish(source: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Record]:
    monkeypatch.setattr(sys, "argv", ["publish", str(source), str(target)])
    publish.main()
    return _records(target)


def _records(place: Path) -> dict[str, Record]:
    return {record.run: record for _, record in store.read_all(store.find([place]))[0]}


def _noisy(value: object) -> object:
    """As a run writes it: with digits that nobody measured. Counts stay whole."""
    if isinstance(value, dict):
        return {name: _noisy(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_noisy(inner) for inner in value]
    return value * NOISE if isinstance(value, float) and not value.is_integer() else value


def _as_run(published: Path, folder: Path) -> Path:
    """The runs that were published, in folders and with noise in what was measured."""
    for name, text in archive.lines(published / archive.FILE):
        content = json.loads(text)
        for field in content:
            if field not in publish.EXACT and field != "quality":
                content[field] = _noisy(content[field])
        for metric in (content.get("quality") or {}).values():
            metric["samples"] = _noisy(metric.get("samples"))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def _floats(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _floats(inner)
    elif isinstance(value, float):
        yield value


@pytest.mark.parametrize("published", [STEPS, FP8], ids=["steps", "quality"])
def test_digits_that_nobody_measured_go_and_figures_stay(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = _as_run(published, tmp_path / "runs")
    before = _records(runs)
    after = _publish(runs, tmp_path / "made", monkeypatch)
    assert before.keys() == after.keys()
    for run, record in after.items():
        assert not [note for note in record.notes if ANEW in note]
        for name, metric in record.quality.items():
            samples, whole = metric.samples or [0.0], before[run].quality[name]
            assert samples == [float(f"{value:.5g}") for value in samples], name
            most = max(map(abs, samples))
            assert metric.value == pytest.approx(whole.value, rel=1e-6, abs=1e-4 * most), name
        for seconds, run_s in (
            (record.step_seconds(), before[run].step_seconds()),
            (record.first_call_s, before[run].first_call_s),
        ):
            assert seconds == (run_s and pytest.approx(run_s, rel=1e-6))
        assert record.recipe == before[run].recipe
        assert record.fingerprints == before[run].fingerprints
        assert record.weights_bytes == before[run].weights_bytes
    for name, text in archive.lines(tmp_path / "made" / archive.FILE):
        content = cast(dict[str, object], json.loads(text))
        measured = {key: value for key, value in content.items() if key not in publish.EXACT}
        found = [value for value in _floats(measured) if not value.is_integer()]
        assert found == [float(f"{value:.7g}") for value in found], name
    sizes = [(place / archive.FILE).stat().st_size for place in (tmp_path / "made", published)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_what_is_published_already_stays_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish(STEPS, tmp_path, monkeypatch)
    same = (tmp_path / archive.FILE).read_bytes() == (STEPS / archive.FILE).read_bytes()
    assert same


def test_a_rounding_that_changes_a_verdict_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "DIGITS", 1)
    with pytest.raises(SystemExit):
        _publish(FP8, tmp_path, monkeypatch)
    assert not list(tmp_path.iterdir())


def test_finer_steps_are_taken_where_a_verdict_hangs_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _publish(FP8, tmp_path / "made", monkeypatch)
    monkeypatch.setattr(publish, "LEVELS", (0.01, *publish.LEVELS))  # too coarse
    refined = _publish(FP8, tmp_path / "refined", monkeypatch)
    for run, record in made.items():
        assert record.quality == refined[run].quality


@pytest.mark.parametrize("levels", publish.LEVELS)
@pytest.mark.parametrize("spread", [3.0, 0.04, 1.01e-3, 700.0])
def test_a_videos_value_has_so_many_levels_and_a_mean_that_stays(
    spread: float, levels: int
) -> None:
    draw = np.random.default_rng(1)
    for values in (
        46 + spread * draw.standard_normal(256),
        spread * draw.lognormal(0, 1, 256),
        spread * draw.standard_t(3, 256),
    ):
        kept = publish._levelled(values.tolist(), levels)
        # Rounded to steps of a tenth of the middle half, 1.35 standard deviations of a normal one,
        # a mean of n moves by 0.39 / 10 of its error or less in two of three cases.
        error = 3 * 1.35 / levels / math.sqrt(12) * values.std() / 16
        assert abs(np.mean(kept) - values.mean()) < max(error, 46e-5 / 16)
        low, high = np.quantile(values, [0.25, 0.75])
        finest = np.diff(np.unique(kept)).min()
        five_digits = 1e-4 * abs(values).max()
        assert finest <= max((high - low) / levels, five_digits)
        assert finest > min((high - low) / levels / 5.2, five_digits) - 1e-12  # not for nothing
        assert publish._levelled(kept, levels) == kept


def test_a_video_is_kept_in_steps_of_one_or_five() -> None:
    assert publish._levelled([46.51234, 43.51239, 49.51231], 25) == [46.5, 43.5, 49.5]
    assert publish._levelled([46.51234, 43.51239, 49.51231], 100) == [46.5, 43.5, 49.5]
    assert publish._levelled([46.53234, 43.51239, 49.51231], 100) == [46.55, 43.5, 49.5]
    assert publish._levelled([1.0, 1.0, 0.123456789], 50) == [1.0, 1.0, 0.12]
    assert publish._levelled([0.0, 0.0, 0.0, 0.0, 123.456789], 50) == [0.0] * 4 + [123.0]
    assert publish._levelled([0.123456789], 25) == [0.12346]
