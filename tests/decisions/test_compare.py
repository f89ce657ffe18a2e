"""Two measurements against each other: words, limits, refusals, and how often they err."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from made_records import made, of_recipe, of_software, placed, steady
from typer.testing import CliRunner

from qbench.cli import app
from qbench.decisions import compare_text, limits
from qbench.decisions.changes import KINDS, LABELS
from qbench.decisions.compare import compare
from qbench.decisions.compared import Compared
from qbench.decisions.limits import parsed
from qbench.errors import InputError
from qbench.quality.means import difference, moments
from qbench.quality.ratios import Ratio, paired_speed_up, speed_up
from qbench.recipe.schema import Outliers, Recipe

PUBLISHED = ROOT / "results/published"
Latencies = list[float]


def _times(rng: np.random.Generator, centre: float, n: int = 12, sigma: float = 0.02) -> Latencies:
    return [float(x) for x in centre * np.exp(rng.normal(0, sigma, n))]


def _compared(tmp_path: Path, before: object, after: object, *limit: str) -> Compared:
    a = placed(before, tmp_path / "a")  # type: ignore[arg-type]
    b = placed(after, tmp_path / "b")  # type: ignore[arg-type]
    return compare(a, b, fail_if=limit)


# Words --------------------------------------------------------------------------------------------


def test_the_reference_s_own_turns_decide_where_it_is_one_of_the_two() -> None:
    """int8 against fp32 of one sitting: the published paired speed-up itself."""
    found = compare(PUBLISHED / "amd-epyc-2t", PUBLISHED / "amd-epyc-2t")
    assert {row.variant for row in found.rows} >= {"fp32", "int8", "compile"}
    runs = {row.variant: row.after for row in found.rows}
    archive = PUBLISHED / "amd-epyc-2t/records.jsonl.xz"
    from qbench.results import store

    places = {record.run: path.parent for path, record in store.read_all([archive])[0]}
    (row,) = compare(places[runs["fp32"]], places[runs["int8"]]).rows
    assert row.time is not None
    assert row.time.how == "turns"
    assert row.time.word == "faster"
    record = next(r for _, r in store.read_all([archive])[0] if r.run == runs["int8"])
    assert row.time.speed == record.paired_speed_up
    (back,) = compare(places[runs["int8"]], places[runs["fp32"]]).rows
    assert back.time is not None
    assert back.time.word == "slower"
    assert back.time.speed.value == pytest.approx(1 / row.time.speed.value)


def test_by_way_of_the_reference_drift_between_the_sittings_cancels(tmp_path: Path) -> None:
    """The machine is 30 % slower in the second sitting, and the variant 5 % faster."""
    rng = np.random.default_rng(0)
    first = made(run="a", latency=_times(rng, 1.0), turns=_times(rng, 1.5))
    second = made(run="b", latency=_times(rng, 1.3 * 0.95), turns=_times(rng, 1.3 * 1.5))
    (row,) = _compared(tmp_path, first, second).rows
    assert row.time is not None
    assert row.time.how == "by way of the reference"
    assert row.time.word == "faster"
    assert row.time.speed.value == pytest.approx(1 / 0.95, rel=0.03)


def test_one_after_the_other_has_a_question_mark_unless_turns_say_the_same(tmp_path: Path) -> None:
    plain = made(run="a", latency=steady(1.0))
    slower = of_software(made(run="b", latency=steady(1.2, turn=2)), "9.9.9")
    (row,) = _compared(tmp_path / "plain", plain, slower).rows
    assert row.time is not None
    assert row.time.word == "slower?"
    assert "drift" in " ".join(row.notes)
    turns = steady(1.5, turn=4)
    before = made(run="a", latency=steady(1.0), turns=turns)
    alone = of_software(made(run="b", latency=steady(1.2, turn=2), turns=turns), "9.9.9")
    (row,) = _compared(tmp_path / "alone", before, alone).rows
    assert row.time is not None
    assert row.time.word == "slower"
    drifted = [1.2 * x for x in turns]  # the whole machine
    shared = of_software(made(run="b", latency=steady(1.2, turn=2), turns=drifted), "9.9.9")
    (row,) = _compared(tmp_path / "drifted", before, shared).rows
    assert row.time is not None
    assert row.time.word == "slower?"
    assert "drift of the machine, or a change that the reference shares" in " ".join(row.notes)


def test_metrics_are_paired_by_prompt_and_get_the_right_word(tmp_path: Path) -> None:
    """The spread between videos is ten times the difference: only pairs can see it."""
    rng = np.random.default_rng(2)
    base = rng.normal(40, 3, 48)
    noise = rng.normal(0, 0.05, 48)
    score = rng.normal(93, 3, 48)
    before = made(
        run="a", quality={"psnr": base, "clip_score": score, "flicker": 0.1 + score / 1e4}
    )
    after = made(
        run="b",
        quality={
            "psnr": base - 0.3 + noise,  # no margin of its own: a difference is all there is
            "clip_score": score + noise,  # margin 0.15 of the spread, 0.45
            "flicker": 0.1 + score / 1e4,
        },
    )
    (row,) = _compared(tmp_path, before, after).rows
    words = {q.metric: q.word for q in row.quality}
    assert words == {"psnr": "worse", "clip_score": "equivalent", "flicker": "same"}
    psnr = next(q for q in row.quality if q.metric == "psnr")
    assert psnr.paired
    assert psnr.gain == pytest.approx(-0.3 + noise.mean(), abs=1e-4)
    (back,) = compare(placed(after, tmp_path / "b"), placed(before, tmp_path / "a")).rows
    assert {q.metric: q.word for q in back.quality}["psnr"] == "better"


def test_other_seeds_are_not_paired_and_say_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    before = made(run="a", quality={"clip_score": rng.normal(93, 1, 40)})
    other = of_recipe(
        made(run="b", quality={"clip_score": rng.normal(80, 1, 30)}), generation={"seed": 7}
    )
    with pytest.raises(InputError, match=r"generation.seed 0 -> 7; --across"):
        _compared(tmp_path, before, other)
    (row,) = compare(tmp_path / "a", tmp_path / "b", across=True).rows
    (score,) = row.quality
    assert not score.paired
    assert score.word == "worse"
    from scipy import stats

    ours, theirs = (r.quality["clip_score"].samples for r in (other, before))
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    # Degrees of freedom are rounded down here.
    assert score.low == pytest.approx(interval.low, rel=1e-3)
    assert score.high == pytest.approx(interval.high, rel=1e-3)


def test_outliers_are_another_workload_and_every_field_of_a_recipe_has_its_kind(
    tmp_path: Path,
) -> None:
    """As in rankings: all fields but the variant's are to be the same, or are known to be less."""
    fields = {*KINDS, *LABELS, "prompts"}
    assert {name.partition(".")[0] for name in fields} == set(Recipe.model_fields)
    plain = made(run="a", latency=steady(1.0))
    recipe = plain.recipe.model_copy(update={"outliers": Outliers(factor=30)})
    other = of_recipe(plain.model_copy(update={"recipe": recipe, "run": "b"}))
    assert other.fingerprints.settings != plain.fingerprints.settings
    with pytest.raises(InputError, match=r"outliers .*--across"):
        _compared(tmp_path, plain, other)


def test_welch_is_scipy_s() -> None:
    from scipy import stats

    rng = np.random.default_rng(4)
    a, b = rng.normal(1, 2, 200), rng.normal(0, 5, 90)
    found = difference(moments(a), moments(b))
    t = stats.ttest_ind(a, b, equal_var=False)
    assert found.mean / found.error == pytest.approx(t.statistic)
    assert found.n - 1 == int(t.df)


# What is the same and what is not -----------------------------------------------------------------


def test_what_changed_is_named(tmp_path: Path) -> None:
    before = made(run="a")
    after = of_recipe(of_software(made(run="b"), "9.9.9"), variant={"dtype": "fp16"})
    (row,) = _compared(tmp_path, before, after).rows
    said = [f"{change.kind}: {change}" for change in row.changes]
    assert "recipe: variant.dtype bf16 -> fp16" in said
    assert any(text.startswith("software: torch ") and "-> 9.9.9" in text for text in said)
    assert any(text.startswith("code: commit") for text in said)
    assert not any(text.startswith(("hardware", "prompts", "workload")) for text in said)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("hardware", {"device_name": "another card"}, "hardware: name AMD"),
        ("prompts", "other", "prompts: prompts"),
    ],
)
def test_hardware_and_prompts_need_across(
    tmp_path: Path, field: str, value: object, told: str
) -> None:
    after = made(run="b")
    if field == "hardware":
        environment = after.environment.model_copy(update=value)
        after = after.model_copy(update={"environment": environment})
    else:
        prints = after.fingerprints.model_copy(update={field: value})
        after = after.model_copy(update={"fingerprints": prints})
    with pytest.raises(InputError, match=told):
        _compared(tmp_path, made(run="a"), after)
    assert compare(tmp_path / "a", tmp_path / "b", across=True).rows


def test_folders_are_matched_by_recipe_and_what_only_one_has_is_said(tmp_path: Path) -> None:
    for name in ("int8", "fp16", "bf16"):
        placed(made(name, run=f"{name}-a"), tmp_path / "a")
    for name in ("int8", "fp16", "compile"):
        placed(of_software(made(name, run=f"{name}-b"), "9.9.9"), tmp_path / "b")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert sorted(row.variant for row in found.rows) == ["fp16", "int8"]
    assert (found.only_before, found.only_after) == (("bf16",), ("compile",))
    text = "\n".join(compare_text.lines(found))
    assert text.count("9.9.9") == 1  # what is changed in every row is said once
    placed(made("fp8", run="c"), tmp_path / "c")
    placed(made("fp8-dynamic", run="d"), tmp_path / "c")
    with pytest.raises(InputError, match="no recipe is in both"):
        compare(tmp_path / "a", tmp_path / "c")


# Limits -------------------------------------------------------------------------------------------


def test_rows_of_one_name_are_told_apart_by_their_models(tmp_path: Path) -> None:
    two = []
    for number, model in enumerate(("mine", "yours", "theirs")):
        record = made(run=model)
        recipe = record.recipe.model_copy(update={"model": model})
        prints = record.fingerprints.model_copy(update={"model": f"{number:012d}"})
        two.append(record.model_copy(update={"recipe": recipe, "fingerprints": prints}))
    for record in two[:2]:
        placed(record, tmp_path / "both")
    placed(two[2], tmp_path / "other/a")
    placed(made("bf16"), tmp_path / "other/b")
    found = compare(tmp_path / "both", tmp_path / "both")
    assert sorted(row.variant for row in found.rows) == ["int8 (mine)", "int8 (yours)"]
    with pytest.raises(InputError, match=r"int8: in both of other models .* name two runs"):
        compare(tmp_path / "both", tmp_path / "other", across=True)


def test_a_slow_down_of_seven_percent_fails_five_and_noise_does_not(tmp_path: Path) -> None:
    before = made(run="a", latency=steady(1.0))
    slow = of_software(made(run="b", latency=steady(1.07, turn=4)), "9.9.9")
    same = of_software(made(run="c", latency=steady(1.0, turn=4)), "9.9.9")
    assert _compared(tmp_path, before, slow, "latency +5%").exit_code == 1
    assert _compared(tmp_path / "same", before, same, "latency +5%").exit_code == 0
    both = _compared(tmp_path / "and", before, slow, "latency +5% and +0.5s")
    assert both.checks[0].result == "passes"  # 70 ms are not half a second
    assert both.exit_code == 0


def test_false_alarms_and_misses_are_as_often_as_said() -> None:
    """Hundreds of pairs of runs each: none slower, just at the limit, and beyond it."""
    (change,) = parsed("latency +5%").changes
    figure = parsed("latency +5%").figure
    rng = np.random.default_rng(6)

    def failed(factor: float, sigma: float = 0.02) -> float:
        results = []
        for _ in range(300):
            times = (_times(rng, centre, 24, sigma) for centre in (1.0, factor))
            speed = speed_up(*times)
            answer = limits.of_ratio(change, speed, 1.0, figure, limits.one_sided(1))
            results.append(answer.result)
        return results.count("FAILS") / len(results)

    assert failed(1.0) == 0
    assert failed(1.05) < 0.05  # 2.5 % are aimed at; 300 cases tell it to 0.9 points
    assert failed(1.07, 0.005) > 0.9


def test_checks_of_metrics_keep_their_level_over_many_rows() -> None:
    """Ten rows at a true loss of just the limit: 2.5 % for all of them together."""
    limit = parsed("psnr -0.5")
    (change,) = limit.changes
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(100):
        failed = False
        for _ in range(10):
            base = rng.normal(40, 3, 24)
            ours = base - 0.5 + rng.normal(0, 0.4, 24)
            answer = limits.of_metric(
                change, list(ours), list(base), limit.figure, limits.one_sided(10), True
            )
            failed |= answer.result == "FAILS"
        alarms += failed
    assert alarms / 100 < 0.08
    sure = base - 2 + rng.normal(0, 0.4, 24)
    answer = limits.of_metric(change, list(sure), list(base), limit.figure, 0.001, True)
    assert answer.result == "FAILS"


def test_undecided_says_how_many_samples_would_tell(tmp_path: Path) -> None:
    before = made(run="a", latency=steady(1.0, 0.08))
    after = of_software(made(run="b", latency=steady(1.09, 0.08, turn=3)), "9.9.9")
    found = _compared(tmp_path, before, after, "latency +5%")
    (check,) = found.checks
    assert check.result == "undecided"
    assert check.needed is not None
    assert check.needed > 12
    assert found.exit_code == 0
    assert f"about {check.needed} of each would tell" in "\n".join(compare_text.lines(found))


def test_needed_samples_are_those_of_the_closed_form() -> None:
    """sigma 0.1 and a gap of 0.1 in the logarithm at 2.5 % and 80 %: 10 pairs (Cohen 1988)."""
    assert limits._needed(0.1, 0.1, 0.025) == 10
    assert limits._needed(0.1, 1e-9, 0.025) is None


def test_bounds_of_a_ratio_are_its_own_interval_at_95_percent() -> None:
    rng = np.random.default_rng(9)
    ratio = speed_up(_times(rng, 1.0), _times(rng, 1.1))
    low, high = ratio.bounds(0.025)
    assert (low, high) == pytest.approx((ratio.low, ratio.high))
    wider = ratio.bounds(0.001)
    assert wider[0] < low < high < wider[1]
    few = speed_up([1.0, 1.0], [1.1, 1.2])
    assert few.bounds(0.025) == (0.0, math.inf)
    # Four of which neighbours are alike are hardly more than one: no interval, and more would help.
    told = limits.of_ratio(
        limits.Change(0.05, "share", "+5%"),
        Ratio(value=0.9, low=0.0, high=math.inf, n=4, effective_n=1.0),
        1.0, parsed("latency +5%").figure, 0.025,
    )  # fmt: skip
    assert told.result == "undecided"
    assert "too few independent samples" in told.said
    turned = ratio.inverse()
    assert (turned.low, turned.high) == pytest.approx((1 / ratio.high, 1 / ratio.low))
    old = Ratio(value=1.1, low=1.0, high=1.21)  # of a record that does not hold its n
    assert old.bounds(0.025) == pytest.approx((1.0, 1.21))


def test_a_share_of_videos_is_tested_exactly(tmp_path: Path) -> None:
    """Four of twelve lost is beyond 0.05, by McNemar's kin; one of twelve may be chance."""
    kept, lost = [1.0] * 12, [0.0] * 8 + [1.0] * 4
    before = made(run="a", quality={"adherence": kept})
    after = made(run="b", quality={"adherence": lost})
    found = _compared(tmp_path, before, after, "adherence -0.05")
    assert found.checks[0].result == "FAILS"
    one = made(run="b", quality={"adherence": [0.0, *kept[1:]]})
    assert _compared(tmp_path / "1", before, one, "adherence -0.05").checks[0].result == "undecided"


def test_sizes_decide_by_themselves_and_first_calls_need_runs(tmp_path: Path) -> None:
    shell = made(run="a")
    heavy = made(run="b", weights_bytes=(shell.weights_bytes or 0) + 2**20, first_call_s=99.0)
    found = _compared(tmp_path, shell, heavy, "size +512KiB", "size +50%", "first_call +10%")
    assert [check.result for check in found.checks] == ["FAILS", "passes", "undecided"]
    for i, (one, other) in enumerate(zip(steady(1.0)[:6], steady(2.0)[:6], strict=True)):
        when = f"2026-05-{i + 1:02d}"
        placed(made(run=f"a{i}", started=when, first_call_s=one), tmp_path / "many-a")
        placed(made(run=f"b{i}", started=when, first_call_s=other), tmp_path / "many-b")
    found = compare(tmp_path / "many-a", tmp_path / "many-b", fail_if=["first_call +10%"])
    assert found.checks[0].result == "FAILS"


def test_a_run_that_died_is_a_regression_and_a_missing_figure_is_no_pass(tmp_path: Path) -> None:
    before = made(run="a")
    dead = made(run="b", status="oom", reason="out of memory in decode")
    found = _compared(tmp_path, before, dead, "latency +5%")
    assert found.exit_code == 1
    assert "oom: out of memory in decode" in "\n".join(compare_text.lines(found))
    early = made(run="b", status="crashed", reason="died in load", generation={}, stages={})
    found = _compared(tmp_path / "early", before, early, "latency +5%")
    assert found.exit_code == 1  # a workload that it never came to is no other one
    lacking = _compared(tmp_path / "2", before, made(run="b"), "energy +5%")
    assert lacking.checks[0].result == "not measured"
    assert lacking.exit_code == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("latncy +5%", "did you mean 'latency'"),
        ("latency 5%", "has no sign"),
        ("latency -5%", "is no loss of latency"),
        ("latency +5", "give a unit"),
        ("latency +5 parsecs", "no unit 'parsecs'"),
        ("psnr +1", "is no loss of psnr"),
        ("sharpness +3%", "best at 0"),
        ("latency +1e999%", "no unit"),
        ("latency +5% and", "has no sign"),
        ("psnr", "name a figure and a change"),
        ("", "name a figure and a change"),
        ("latency +nan%", "no number"),
        ("\x1b[31m +5%", "no figure"),
    ],
)
def test_a_limit_that_is_none_is_one_line(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        parsed(text)
    assert "\n" not in str(error.value)


# The command --------------------------------------------------------------------------------------


def test_exit_codes_json_and_markdown(tmp_path: Path) -> None:
    a = placed(made(run="a", latency=steady(1.0)), tmp_path / "a")
    hostile = "| <script>alert(1)</script> [x](http://y) `"
    slow = of_software(made(run="b", latency=steady(1.3)), hostile)
    b = placed(slow, tmp_path / "b")
    call = CliRunner().invoke
    words = ["compare", str(a), str(b)]
    assert call(app, words).exit_code == 0
    failed = call(app, [*words, "--fail-if", "latency +5% and +0.05s", "--json"])
    assert failed.exit_code == 1
    facts = json.loads(failed.stdout)
    assert facts["checks"][0]["result"] == "FAILS"
    assert facts["rows"][0]["time"]["word"] == "slower?"
    shown = call(app, [*words, "--markdown", "--fail-if", "latency +5%"]).stdout
    assert "<script>" not in shown
    assert not re.search(r"(?<!\\)\]\(", shown)
    table = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table[:3]}) == 1
    missing = call(app, ["compare", str(a), str(tmp_path / "none")])
    assert isinstance(missing.exception, InputError)
    assert "no such file or folder" in str(missing.exception)


def test_paired_ratios_and_unpaired_ones_agree_where_nothing_drifts() -> None:
    rng = np.random.default_rng(11)
    a, b = _times(rng, 1.0, 40), _times(rng, 1.25, 40)
    assert paired_speed_up(b, a).value == pytest.approx(speed_up(b, a).value, rel=0.02)
