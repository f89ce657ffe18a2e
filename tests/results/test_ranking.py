"""Who is compared with whom, and how fast a run is said to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from qbench.quality.ratios import paired_speed_up
from qbench.quality.statistics import summarise
from qbench.report import charts, tables
from qbench.results import archive, store
from qbench.results.frame import Results, load_results
from qbench.results.ranking import Ranking, rankings
from qbench.results.record import Record
from qbench.results.speed import payback_videos

PACKED = ROOT / "results/published/amd-epyc-2t" / archive.FILE


@pytest.fixture(scope="module")
def published() -> list[Record]:
    return [record for _, record in store.read_all([PACKED])[0]]


def _rank(records: list[Record]) -> list[Ranking]:
    return rankings([(Path(f"{i}/record.json"), record) for i, record in enumerate(records)])


def _reference(records: list[Record]) -> Record:
    return next(record for record in records if record.recipe.is_reference)


def test_seconds_and_speed_up_never_contradict_each_other(published: list[Record]) -> None:
    """Where they took turns: the reference's median over the speed-up, of every row."""
    (ranking,) = _rank(published)
    assert ranking.reference is not None
    theirs = ranking.timing(ranking.reference).video_s
    assert theirs is not None
    order = []
    for record in ranking.records[1:]:
        shown = ranking.timing(record)
        if record.status == "ok" and shown.speed_up:
            assert record.paired_speed_up
            assert shown.video_s is not None
            assert theirs / shown.video_s == pytest.approx(record.paired_speed_up.value)
            assert shown.step_s is not None
            assert record.step is not None
            own = record.latency.median if record.latency else 0.0
            assert shown.step_s / record.step.median == pytest.approx(shown.video_s / own)
            order.append(shown.speed_up.value)
    assert len(order) > 5
    assert order == sorted(order, reverse=True)
    for row in load_results(PACKED).rows():
        if row["speed_up"]:
            assert theirs / float(row["video_s"] or 0) == pytest.approx(float(row["speed_up"]))


@pytest.mark.parametrize(("pace", "told"), [(1.0, []), (1.6, ["1.60x"]), (0.5, ["0.50x"])])
def test_a_machine_that_changes_pace_between_runs_is_told(
    pace: float, told: list[str], published: list[Record]
) -> None:
    """The run and its turns of the reference took `pace` times as long as they would have."""
    reference = _reference(published)
    base = next(r for r in published if r.recipe.name == "fp16")
    assert reference.latency
    assert base.paired_speed_up
    beside = [reference.latency.median * pace] * 12
    own = [one / 1.2 for one in beside]
    run = base.model_copy(
        update={
            "latency_s": own,
            "latency": summarise(own, "median"),
            "paired_reference_s": beside,
            "paired_speed_up": paired_speed_up(beside, own),
        }
    )
    (ranking,) = _rank([reference, run])
    said = [note for note in ranking.notes() if "changed pace" in note]
    assert len(said) == len(told)
    assert all(f"beside fp16 ({times})" in said[0] for times in told)
    shown = ranking.timing(run).video_s
    assert shown == pytest.approx(reference.latency.median / 1.2)


def test_a_second_run_of_the_reference_takes_no_verdict_away(published: list[Record]) -> None:
    (before,) = _rank(published)
    reference = _reference(published)
    for started in ("2000-01-01", "2999-01-01"):
        quality = {
            name: metric.model_copy(update={"samples": [0.5 * x for x in metric.samples or []]})
            for name, metric in reference.quality.items()
        }
        other = reference.model_copy(
            update={"run": "other", "started": started, "quality": quality}
        )
        for records in ([other, *published], [*published, other]):
            (ranking,) = _rank(records)
            assert ranking.reference is not None
            assert ranking.reference.run == reference.run
            verdicts = {run: judged.text for run, judged in ranking.judged.items()}
            assert verdicts == {run: judged.text for run, judged in before.judged.items()}


def test_another_recipe_that_is_a_reference_is_not_the_ranking_s_own(
    published: list[Record],
) -> None:
    """As where bf16 was once named as the reference of others."""
    (before,) = _rank(published)
    bf16 = next(record for record in published if record.recipe.name == "bf16")
    recipe = bf16.recipe.model_copy(update={"reference": None, "name": "also"})
    other = bf16.model_copy(
        update={"run": "other", "recipe": recipe, "reference": None, "started": "2999"}
    )
    (ranking,) = _rank([other, *published])
    assert ranking.reference is not None
    assert ranking.reference.run == _reference(published).run
    assert {run: j.text for run, j in before.judged.items()} == {
        run: j.text for run, j in ranking.judged.items()
    }


def test_a_reference_that_ran_again_alone_leaves_a_note(published: list[Record]) -> None:
    reference = _reference(published)
    again = reference.model_copy(update={"run": "again", "started": "2999"})
    (ranking,) = _rank([again, *(r for r in published if r is not reference)])
    assert not ranking.judged
    note, *_ = ranking.notes()
    assert "an earlier run of the reference, which is not here" in note
    assert "no verdict" in note
    assert note in tables.remarks(ranking)
    (whole,) = _rank(published)
    assert not any("compared with" in note for note in whole.notes())


def test_pairs_with_a_reference_of_other_settings_give_no_speed_up(
    published: list[Record],
) -> None:
    """A base of ten steps and a variant timed by the step once showed 14.1x for the same code."""
    reference = _reference(published)
    bf16 = next(record for record in published if record.recipe.name == "bf16")
    measure = bf16.recipe.measure.model_copy(update={"unit": "step"})
    recipe = bf16.recipe.model_copy(update={"measure": measure})
    settings = {"settings": recipe.settings_fingerprint()}
    other = bf16.model_copy(
        update={
            "recipe": recipe,
            "fingerprints": bf16.fingerprints.model_copy(update=settings),
        }
    )
    made = _rank([reference, other])
    (ranking,) = [one for one in made if one.records[0] is other]
    assert ranking.timing(other).speed_up is None
    assert "other settings" in ranking.notes()[0]
    assert ranking.judged == {}


def test_code_is_a_column_where_it_differs(published: list[Record]) -> None:
    (ranking,) = _rank(published)
    assert "code" not in tables.markdown(ranking).splitlines()[0]
    reference = _reference(published)
    environment = reference.environment.model_copy(update={"commit": "0123456789ab"})
    other = reference.model_copy(update={"environment": environment})
    (ranking,) = _rank([other, *(r for r in published if r is not reference)])
    head, _, first = tables.markdown(ranking).splitlines()[:3]
    assert head.endswith("| code |")
    assert first.endswith("| 0123456789ab |")


def test_plain_bf16_has_nothing_to_pay_back(published: list[Record]) -> None:
    rows = {str(row["recipe"]): row for row in load_results(PACKED).rows()}
    assert rows["bf16"]["payback_videos"] is None
    assert float(rows["compile"]["payback_videos"] or 0) > 1


def test_payback_rests_on_the_first_call_with_empty_caches(published: list[Record]) -> None:
    reference = _reference(published).model_copy(update={"first_call_s": 1.0})
    found = next(record for record in published if record.recipe.name == "compile")
    compiled = found.model_copy(update={"first_call_s": 34.0, "first_call_warm_s": 4.0})
    (ranking,) = _rank([reference, compiled])
    shown = ranking.timing(compiled), ranking.timing(reference)
    saved = (shown[1].video_s or 0) - (shown[0].video_s or 0)
    videos = payback_videos(compiled, reference, *shown)
    prepared = [record.stages["quantize"].seconds[0] for record in (compiled, reference)]
    assert videos == pytest.approx((33.0 + prepared[0] - prepared[1]) / saved)
    assert "34 s (4 s warm)" in tables.markdown(ranking)
    (row,) = [row for row in Results((ranking,)).rows() if row["recipe"] == "compile"]
    assert (row["first_call_s"], row["first_call_warm_s"]) == (34.0, 4.0)
    assert row["payback_videos"] == videos


def test_turns_that_drift_together_are_told(published: list[Record]) -> None:
    reference = _reference(published)
    bf16 = next(record for record in published if record.recipe.name == "bf16")
    theirs = [1.0] * 12
    for own, told in (
        ([0.8 + 0.02 * i for i in range(12)], True),
        ([0.8 + 0.02 * (i % 2) for i in range(12)], False),
    ):
        ratio = paired_speed_up(theirs, own)
        (ranking,) = _rank([reference, bf16.model_copy(update={"paired_speed_up": ratio})])
        assert any("alike: bf16" in note for note in ranking.notes()) == told


def test_load_results_has_a_row_a_record_with_units(tmp_path: Path) -> None:
    from qbench.errors import InputError

    frame = load_results(PACKED).to_pandas()
    assert len(frame) == 15
    assert set(frame["status"]) == {"ok", "skipped"}
    assert {"video_s", "step_s", "speed_up", "weights_bytes", "psnr", "verdict", "mfu"} <= set(
        frame
    )
    one = load_results(str(PACKED / "compile-a6bfa347")).to_pandas()
    assert list(one["recipe"]) == ["compile"]
    for place in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError):
            load_results(place)


def test_names_stand_at_their_points() -> None:
    """No name over another or over a point; the nearest point is its own, or a line leads there."""
    import matplotlib as mpl

    mpl.use("Agg")
    import random

    import matplotlib.pyplot as plt

    from qbench.report import labels

    rng = random.Random(3)
    points = [(rng.gauss(1.0, 0.05), rng.gauss(40, 2)) for _ in range(12)]
    points += [(rng.uniform(0.5, 2), rng.uniform(20, 60)) for _ in range(12)]
    names = [f"variant-{i}" for i in range(len(points))]
    figure, axes = plt.subplots(figsize=(8, 5))
    axes.scatter(*zip(*points, strict=True))
    lost = labels.place(axes, points, names)
    assert len(lost) <= 1
    figure.canvas.draw()
    boxes = {
        text.get_text(): text.get_window_extent().padded(-0.5)
        for text in axes.texts
        if text.get_text()
    }
    assert len(boxes) == len(names) - len(lost)
    places = axes.transData.transform(points)
    ends = [axes.transData.transform(line.get_xydata()) for line in axes.lines]
    for name, box in boxes.items():
        assert not any(box.overlaps(other) for key, other in boxes.items() if key != name)
        assert not any(box.contains(x, y) for x, y in places)
        own = places[names.index(name)]

        def away(at: object, box: object = box) -> float:
            x, y = at  # type: ignore[misc]
            dx = max(box.x0 - x, 0, x - box.x1)  # type: ignore[attr-defined]
            dy = max(box.y0 - y, 0, y - box.y1)  # type: ignore[attr-defined]
            return float((dx**2 + dy**2) ** 0.5)

        nearest = min(away(at) for at in places)
        led = any(abs(end[0] - own).max() < 1e-6 and away(end[1]) < 2 for end in ends)
        assert led or away(own) <= nearest + 1e-6, name
    plt.close(figure)


def test_charts_of_hostile_names_are_drawn(published: list[Record], tmp_path: Path) -> None:
    records = []
    for record in published:
        recipe = record.recipe.model_copy(update={"model": "a $\\frac$ b x[/y] \x1b[31m \u4e2d"})
        records.append(record.model_copy(update={"recipe": recipe}))
    (ranking,) = _rank(records)
    (path,) = charts.draw(ranking, tmp_path, "", only="speed-quality")
    assert "$\\frac$ b x[/y]  \u4e2d" in path.with_suffix(".svg").read_text()


def test_a_report_removes_the_charts_of_an_earlier_one_and_nothing_else(
    published: list[Record], tmp_path: Path
) -> None:
    from qbench.report import writer

    (tmp_path / "mine.png").write_text("mine")
    (tmp_path / "size-7.png").write_text("mine")
    found = [(Path("1/record.json"), published[0]), (Path("2/record.json"), published[1])]
    writer.write(rankings(found), [], tmp_path)
    assert (tmp_path / "size.png").is_file()
    skipped = next(record for record in published if record.status == "skipped")
    writer.write(rankings([(Path("1/record.json"), skipped)]), [], tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        "report.md",
        "results.csv",
        "index.html",
        writer.MANIFEST,
        "mine.png",
        "size-7.png",
    }
    (tmp_path / "file").write_text("x")
    from qbench.errors import InputError

    with pytest.raises(InputError, match="cannot be written"):
        writer.write(rankings(found), [], tmp_path / "file")


def _changed(record: Record, path: str, value: object, prints: dict[str, str]) -> Record:
    """With another value at a dotted path, and the fingerprints that follow from it."""
    facts = record.model_dump(mode="json")
    *above, last = path.split(".")
    inner = facts
    for name in above:
        inner = inner[name]
    inner[last] = value
    facts["fingerprints"] |= prints
    facts["run"] += f"-{value}"
    return Record.model_validate(facts)


def test_rankings_of_one_title_say_what_tells_them_apart(published: list[Record]) -> None:
    plain = _reference(published)
    assert [ranking.apart for ranking in _rank(published)] == [""]
    step = _changed(plain, "recipe.measure.unit", "step", {"settings": "1"})
    other = _changed(plain, "environment.libraries.torch", "9.9", {"software": "2"})
    elsewhere = _changed(plain, "environment.device_name", "Another", {"hardware": "3"})
    torch = plain.environment.libraries["torch"]
    titles = {one.records[0].run: one for one in _rank([plain, step, other, elsewhere])}
    assert titles[step.run].apart == f"measure.unit=step, libraries.torch={torch}"
    assert titles[other.run].apart == "measure.unit=video, libraries.torch=9.9"
    assert titles[elsewhere.run].apart == ""
    assert titles[step.run].title().endswith(titles[step.run].apart)
    assert len({one.title() for one in titles.values()}) == 4
