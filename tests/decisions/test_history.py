"""A recipe over time: what belongs together, and where it changes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import qbench
from made_records import made, of_recipe, of_software, placed
from typer.testing import CliRunner

from qbench.cli import app
from qbench.decisions import changepoints, history_text
from qbench.decisions.changepoints import change_points
from qbench.decisions.history import history
from qbench.errors import InputError
from qbench.results import store


def _energy(x: np.ndarray, split: int) -> float:
    """Matteson and James's divergence, pair by pair."""
    a, b = x[:split], x[split:]
    n, m = len(a), len(b)
    between = np.mean([abs(p - q) for p in a for q in b])
    first = np.mean([abs(p - q) for i, p in enumerate(a) for q in a[i + 1 :]])
    second = np.mean([abs(p - q) for i, p in enumerate(b) for q in b[i + 1 :]])
    return float(n * m / (n + m) * (2 * between - first - second))


def test_the_divergence_is_the_published_one() -> None:
    x = np.random.default_rng(0).normal(0, 1, 17)
    at, value = changepoints._best(x, np.abs(x[:, None] - x[None, :]).sum(0))
    every = {split: _energy(x, split) for split in range(3, 15)}
    assert at == max(every, key=lambda split: every[split])
    assert value == pytest.approx(every[at])


@pytest.mark.parametrize("count", [6, 31, 64, 257, 1000])
def test_distances_to_earlier_values_are_those_of_all_pairs(count: int) -> None:
    x = np.random.default_rng(count).normal(100, 1, count)
    x[::3] = np.round(x[::3])  # many of them alike
    pairs = [sum(abs(x[i] - x[:i])) for i in range(count)]
    assert changepoints._to_earlier(x) == pytest.approx(pairs, rel=1e-12, abs=1e-9)


def test_a_planted_step_is_found_where_it_is_and_two_are_two() -> None:
    rng = np.random.default_rng(1)
    one = np.r_[rng.normal(1, 0.01, 12), rng.normal(1.05, 0.01, 12)]
    assert [point.at for point in change_points(one.tolist())] == [12]
    two = np.r_[one, rng.normal(0.95, 0.01, 12)]
    assert [point.at for point in change_points(two.tolist())] == [12, 24]


def test_noise_has_change_points_as_often_as_said() -> None:
    rng = np.random.default_rng(2)
    alarms = sum(bool(change_points(rng.normal(0, 1, 16).tolist())) for _ in range(200))
    assert alarms / 200 < 0.09  # 5 %, known to 1.5 points


def test_too_few_and_constant_series_have_none() -> None:
    assert change_points([1.0, 1.0, 9.0, 9.0, 9.0]) == []
    assert change_points([2.0] * 30) == []


def _nightly(tmp_path: Path, nights: int = 14, slow_from: int = 7) -> None:
    rng = np.random.default_rng(3)
    for night in range(nights):
        centre = 1.07 if night >= slow_from else 1.0
        times = [float(x) for x in centre * np.exp(rng.normal(0, 0.01, 12))]
        record = made(run=f"n{night}", latency=times, started=f"2026-03-{night + 1:02d}T00:00:00")
        torch = "2.12.0" if night >= slow_from else "2.11.0"
        placed(of_software(record, torch, f"{night:012x}"), tmp_path / f"night-{night:02d}")


def test_a_chart_is_a_png_where_it_was_asked_for_or_the_one_before(tmp_path: Path) -> None:
    _nightly(tmp_path / "nights")
    words = "history", str(tmp_path / "nights")
    for place in ("chart", "chart.svg", "nights", ".png"):
        done = qbench(*words, f"--out={tmp_path / place}")
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 1
    chart = tmp_path / "new" / "chart.png"
    assert qbench(*words, f"--out={chart}").stderr == f"chart: {chart}\n"
    before = chart.read_bytes()
    full = qbench(*words, f"--out={chart}", limits={"RLIMIT_FSIZE": 4096})
    assert full.returncode == 2
    assert full.stderr.endswith("cannot be written: File too large\n")
    assert chart.read_bytes() == before
    assert list(chart.parent.iterdir()) == [chart]


def test_a_slow_down_is_marked_with_what_changed_there(tmp_path: Path) -> None:
    _nightly(tmp_path)
    (series,) = history([tmp_path], None, None).series
    (step,) = series.steps
    assert step.at == 7
    assert step.after / step.before == pytest.approx(1.07, abs=0.01)
    assert "torch 2.11.0 -> 2.12.0" in [str(change) for change in step.software]
    text = "\n".join(history_text.lines(history([tmp_path], None, None)))
    assert re.search(r"change point: .* \(\+[67]\.\d%\), p = 0\.0", text)
    assert text.index("change point") < text.index("2026-03-08")
    assert text.index("2026-03-07") < text.index("change point")
    path = history_text.draw(history([tmp_path], None, None), tmp_path / "chart.png")
    from PIL import Image

    with Image.open(path) as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    red = (np.abs(colours.astype(int) - (0xD5, 0x5E, 0x00)).sum(axis=1) < 30).sum()
    assert red > 100  # the line of the change point


def test_other_workloads_recipes_and_machines_are_other_series(tmp_path: Path) -> None:
    for i in range(3):
        placed(made(run=f"a{i}", started=f"2026-01-0{i + 1}"), tmp_path / str(i))
    long = of_recipe(made(run="steps"), generation={"steps": 99})
    placed(long, tmp_path / "long")
    variant = of_recipe(made(run="dtype"), variant={"dtype": "fp16"})
    placed(variant, tmp_path / "variant")
    prints = made().fingerprints.model_copy(update={"hardware": "another"})
    placed(made(run="card", fingerprints=prints), tmp_path / "card")
    placed(made("fp16", run="f", status="failed"), tmp_path / "failed")
    (series,) = history([tmp_path / name for name in map(str, range(3))], None, None).series
    assert len(series.points) == 3
    everything = history([tmp_path], None, "psnr")
    assert [len(one.points) for one in everything.series] == [3]
    assert "looked for from 6 on" in series.notes[0]


def test_the_command_and_what_it_refuses(tmp_path: Path) -> None:
    _nightly(tmp_path, nights=7, slow_from=99)
    call = CliRunner().invoke
    done = call(app, ["history", str(tmp_path), "--figure", "peak", "--json"])
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert facts["series"][0]["figure"] == "peak"
    assert facts["series"][0]["steps"] == []
    for words, told in (
        (["--recipe", "int9"], "did you mean 'int8'"),
        (["--figure", "latncy"], "did you mean 'latency'"),
        (["--figure", "energy"], "no recipe has two records with energy"),
    ):
        refused = call(app, ["history", str(tmp_path), *words])
        assert isinstance(refused.exception, InputError)
        assert told in str(refused.exception)
    for name in ("int8", "attention/fp8", "my-own"):
        refused = call(app, ["history", name])
        assert str(refused.exception).endswith(f"is it a recipe? --recipe {name}")
    assert "recipe?" not in str(call(app, ["history", str(tmp_path / "none")]).exception)
    broken = tmp_path / "night-x" / store.FILE
    broken.parent.mkdir()
    broken.write_text("{")
    refused = call(app, ["history", str(tmp_path), "--figure", "energy"])
    assert isinstance(refused.exception, InputError)  # what is missing may be in there
    assert refused.exception.lines[1].startswith(f"left out: {broken}: not a record")
    done = call(app, ["power", str(tmp_path)])
    assert done.stderr.startswith(f"qbench: left out: {broken}: not a record")
