"""What a table may say: who is ranked with whom, who wins, and what could not run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from qbench.quality.ratios import paired_speed_up
from qbench.quality.statistics import Metric, summarise
from qbench.report import charts, tables, writer
from qbench.results import frame, store
from qbench.results.ranking import Ranking, label, rankings
from qbench.results.record import Record, Stage


def _variation(base: Record, name: str, **changes: Any) -> Record:
    recipe = base.recipe.model_copy(update={"name": name})
    prints = base.fingerprints.model_copy(
        update={"recipe": name, **changes.pop("fingerprints", {})}
    )
    return base.model_copy(update={"recipe": recipe, "fingerprints": prints, **changes})


@pytest.fixture(scope="module")
def base(finished: Path) -> Record:
    return store.read(next(finished.glob("*/int8-*/record.json")))


@pytest.fixture(scope="module")
def reference(finished: Path) -> Record:
    return store.read(next(finished.glob("*/fp32-*/record.json")))


def _timed(seconds: float, psnr: float) -> dict[str, Any]:
    samples = [seconds * (1 + i / 1000) for i in range(12)]
    quality = [psnr + i / 10 for i in range(12)]
    metric = Metric(
        value=sum(quality) / 12,
        unit="dB",
        better="higher",
        summary=summarise(quality),
        samples=quality,
    )
    return {
        "latency_s": samples,
        "latency": summarise(samples, of="median"),
        "quality": {"psnr": metric},
    }


def _rank(*found: Record) -> list[Ranking]:
    return rankings([(Path(f"{i}/record.json"), r) for i, r in enumerate(found)])


def test_machines_settings_and_weights_are_never_ranked_together(base: Record) -> None:
    others = [
        _variation(base, f"b{i}", fingerprints={name: "elsewhere"})
        for i, name in enumerate(("hardware", "settings", "model", "software", "prompts"))
    ]
    made = _rank(base, *others, _variation(base, "same"))
    assert [len(ranking.records) for ranking in made] == [2, 1, 1, 1, 1, 1]


def test_latest_of_two_runs_of_one_recipe_counts(base: Record) -> None:
    newer = base.model_copy(update={"started": "2999-01-01T00:00:00+00:00", "run": "newer"})
    (ranking,) = _rank(newer, base)
    assert [record.run for record in ranking.records] == ["newer"]


def test_slower_is_said_as_plainly_as_faster(base: Record, reference: Record) -> None:
    """In turns with the reference; runs one after the other carry no such word."""

    def turns(seconds: float) -> dict[str, Any]:
        jitter = [1 + (i * 5 % 12 - 6) / 10_000 for i in range(12)]
        pairs = paired_speed_up([2.0] * 12, [seconds * part for part in jitter])
        return {**_timed(seconds, 40), "paired_speed_up": pairs}

    ref = reference.model_copy(update=_timed(2.0, 50))
    (ranking,) = _rank(
        ref,
        _variation(base, "quick", **turns(1.0)),
        _variation(base, "slow", **turns(4.0)),
        _variation(base, "same", **turns(2.0)),
        _variation(base, "hardly", **turns(2.004)),
        _variation(base, "apart", **_timed(1.0, 40)),
    )
    cells = {
        row.cells[0]: row.cells[tables.HEADERS.index("speed-up (95 %)")]
        for row in tables.rows(ranking)
    }
    assert cells["fp32"] == "reference"
    assert cells["quick"].startswith("2.00x")
    assert cells["quick"].endswith("faster")
    assert cells["slow"].startswith("0.50x")
    assert cells["slow"].endswith("SLOWER")
    assert cells["same"].endswith("no difference")
    assert "SLOWER" in cells["hardly"]
    assert "1.00" not in cells["hardly"]  # or it would contradict itself
    assert cells["apart"].startswith("2.00x")
    assert cells["apart"].endswith("not interleaved")


def test_recipes_of_one_name_are_told_apart_by_what_differs(base: Record) -> None:
    """Not by all that the command line changed, most of which they share."""
    changes = {"model": "tiny-cogvideox", "measure.repeats": "1"}
    first = base.model_copy(update={"overrides": changes})
    memory = base.recipe.variant.memory.model_copy(update={"vae_tiling": True})
    variant = base.recipe.variant.model_copy(update={"memory": memory})
    recipe = base.recipe.model_copy(update={"variant": variant})
    prints = base.fingerprints.model_copy(update={"recipe": "tiled"})
    second = first.model_copy(update={"recipe": recipe, "fingerprints": prints})
    (ranking,) = _rank(first, second, _variation(base, "other"))
    assert sorted(label(record, ranking) for record in ranking.records) == [
        "int8 (variant.memory.vae_tiling=False)",
        "int8 (variant.memory.vae_tiling=True)",
        "other",
    ]


def _untimed(record: Record) -> Record:
    measured = record.recipe.measure.model_copy(update={"timing": False})
    return record.model_copy(
        update={"recipe": record.recipe.model_copy(update={"measure": measured})}
    )


def test_without_timing_no_figure_of_speed_is_shown(
    base: Record, reference: Record, tmp_path: Path
) -> None:
    """As for runs that shared a GPU: their seconds are in the record and in no table or chart."""
    near, far = (
        _untimed(_variation(base, name, **_timed(seconds, psnr)))
        for name, seconds, psnr in (("near", 9.0, 50), ("far", 1.0, 20))
    )
    found = [_untimed(reference.model_copy(update=_timed(2.0, 100))), far, near]
    (ranking,) = _rank(*found)
    assert [record.recipe.name for record in ranking.records] == ["fp32", "near", "far"]
    header = tables.markdown(ranking).splitlines()[0]
    assert "PSNR" in header
    for name in ("video", "step", "first call", "MFU", "speed-up"):
        assert name not in header
    numbers = [line for line in frame.rows(ranking) if line["recipe"] == "near"]
    assert numbers[0]["latency_median_s"] is numbers[0]["speed_up"] is None
    drawn = {path.stem for path in charts.draw(ranking, tmp_path, "")}
    assert not drawn & {"speed-quality", "latency-by-stage", "step-by-work"}
    assert "memory-by-stage" in drawn


def test_columns_give_way_where_the_terminal_is_narrow_and_the_status_stays(
    base: Record, reference: Record
) -> None:
    died = _variation(base, "died", status="crashed", reason="the process died", quality={})
    (ranking,) = _rank(reference, _variation(base, "quick", **_timed(1.0, 40)), died)
    found = tables.rows(ranking)
    row = next(row for row in found if row.status == "crashed")
    widths = []
    for width in (200, 120, 80):
        kept = tables.columns(found, width)
        assert row.shown(kept)[:2] == ["died", "crashed"]
        assert {"variant", "speed-up (95 %)", "verdict"} <= {tables.HEADERS[i] for i in kept}
        widths.append(len(kept))
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]
    assert tables.columns([row]) == [0, 1]


def test_cards_hold_the_largest_peak_at_least_and_what_was_reserved_surely(
    base: Record,
) -> None:
    from qbench.meters.memory import Peak
    from qbench.report import cards

    def on_gpu(name: str, denoise: float, decode: float, reserved: float) -> Record:
        peaks = {"denoise": denoise, "decode": decode, "text_encode": 0.1}
        stages = {
            stage: Stage(
                seconds=[1.0],
                peak=Peak(allocated_bytes=int(gib * 2**30), reserved_bytes=int(reserved * 2**30)),
            )
            for stage, gib in peaks.items()
        }
        environment = base.environment.model_copy(update={"device": "cuda"})
        return _variation(base, name, stages=stages, environment=environment, **_timed(1.0, 40))

    found = [on_gpu("a", 5, 7.4, 11.2), on_gpu("b", 5.2, 4, 5.25), on_gpu("c", 5, 150, 160)]
    (ranking,) = _rank(*found)
    rows = [line.strip("| ").split(" | ") for line in cards.ladder(ranking).splitlines()[4:]]
    assert [(row[0], *row[-2:]) for row in rows] == [
        ("b", "6 GB", "6 GB"),
        ("a", "10 GB", "12 GB"),
        ("c", "-", "-"),
    ]
    (ranking,) = _rank(on_gpu("b", 5.2, 4, 5.25))
    assert cards.ladder(ranking) == ""  # any card will do


def test_invalid_is_struck_through_and_on_no_front(base: Record, reference: Record) -> None:
    wrong = _variation(base, "wrong", status="invalid", reason="black in 2 of 2 videos")
    (ranking,) = _rank(reference, wrong)
    row = next(row for row in tables.rows(ranking) if row.cells[0] == "wrong")
    assert row.struck
    text = tables.markdown(ranking)
    assert "~~wrong~~" in text
    assert "black in 2 of 2 videos" in text
    assert "wrong" not in tables.ladder(ranking)


def test_what_could_not_run_is_a_row_with_its_reason(finished: Path) -> None:
    text = (finished / "stdout.txt").read_text()
    assert "tensorrt skipped: TensorRT needs an NVIDIA GPU" in text


def test_pareto_front_against_brute_force() -> None:
    rng = random.Random(0)
    points = [(rng.random(), rng.random()) for _ in range(60)]
    beaten = {
        i
        for i, (x, y) in enumerate(points)
        if any(p != (x, y) and p[0] <= x and p[1] >= y for p in points)
    }
    assert set(charts.pareto(points)) == set(range(60)) - beaten


def test_ladder_orders_by_quality_and_names_what_is_within_noise(base: Record) -> None:
    def psnr(values: list[float]) -> dict[str, Any]:
        mean = sum(values) / len(values)
        metric = Metric(
            value=mean, unit="dB", better="higher", summary=summarise(values), samples=values
        )
        return {"quality": {"psnr": metric}}

    rng = random.Random(1)
    video = [rng.gauss(40, 4) for _ in range(20)]
    (ranking,) = _rank(
        _variation(base, "worst", **psnr([v - 10 + rng.gauss(0, 0.1) for v in video])),
        _variation(base, "best", **psnr(video)),
        _variation(base, "twin", **psnr([v + rng.gauss(0, 0.5) - 0.001 for v in video])),
    )
    lines = tables.ladder(ranking).splitlines()[2:]
    names = [line.split("|")[1].strip() for line in lines]
    assert names[2] == "worst"
    assert "within noise" in lines[0]
    assert "beyond noise" in lines[1]


def test_a_chart_saved_with_a_palette_keeps_the_colours_of_thin_lines(tmp_path: Path) -> None:
    """Of a chart whose eight lines lie on each other, so that some show in the legend alone."""
    import numpy as np
    from PIL import Image, ImageColor

    found, _ = store.read_all(store.find([ROOT / "results/published/h200/quality"]))
    ranking = max(_rank(*(record for _, record in found)), key=lambda one: len(one.records))
    (path,) = charts.draw(ranking, tmp_path, "", only="error-by-step")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    drawn = (
        charts.RED, charts.ORANGE, charts.PINK, charts.BLACK,
        charts.BLUE, charts.SKY, charts.GREEN, charts.GREY,
    )  # fmt: skip
    for colour in drawn:
        assert np.abs(pixels - ImageColor.getrgb(colour)).max(1).min() <= 16, colour


def test_report_writes_tables_and_charts_that_are_pictures(finished: Path, tmp_path: Path) -> None:
    import pandas as pd
    from PIL import Image

    found, bad = store.read_all(store.find([finished]))
    writer.write(rankings(found), bad, tmp_path)
    csv = pd.read_csv(tmp_path / "results.csv")
    assert set(csv["recipe"]) == {"fp32", "int8", "tensorrt"}
    assert csv.set_index("recipe").loc["int8", "psnr"] > 20
    for name in ("speed-quality", "latency-by-stage", "memory-by-stage", "size"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 4, name
        assert f"{name}.png" in (tmp_path / "report.md").read_text()
    assert "contact-sheets.webp" in (tmp_path / "report.md").read_text()
    with Image.open(tmp_path / "contact-sheets.webp") as picture:
        assert picture.width > 1000
    assert (tmp_path / "speed-quality.svg").read_text().lstrip().startswith("<?xml")


def test_record_cannot_point_out_of_its_folder(base: Record, tmp_path: Path) -> None:
    from PIL import Image

    from qbench.report import sheets

    outside = tmp_path / "outside.png"
    Image.new("RGB", (60, 60), "red").save(outside)
    (tmp_path / "run").mkdir()
    evil = base.model_copy(update={"files": {"contact_sheet": "../outside.png"}})
    (made,) = rankings([(tmp_path / "run" / "record.json", evil)])
    assert sheets.side_by_side(made, tmp_path / "out.png") is None


def test_points_of_every_verdict_are_drawn() -> None:
    from typing import get_args

    from qbench.recipe.schema import Verdict

    assert set(charts.VERDICTS) == set(get_args(Verdict))
    assert len(set(charts.VERDICTS.values())) == len(charts.VERDICTS)
