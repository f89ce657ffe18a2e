"""Figures in the documents are those of the published records."""

import typing
from pathlib import Path

import pytest

from qbench.meters.profile import Class
from qbench.recipe import schema
from scripts.figures import __main__ as command
from scripts.figures import chart, documents, model_rows, values

TABLE = """<!-- figures
from: h100/videos
columns: {video: video, speed-up: speed-up speed-up-interval}
rows: {fast: "**fast**", bf16: plain}
-->
<!-- /figures -->
"""


@pytest.mark.parametrize("document", documents.documents(), ids=lambda path: path.name)
def test_document_agrees_with_its_records(document: Path) -> None:
    new, faults = documents.drawn(document)
    assert not faults
    assert new == document.read_text(encoding="utf-8")


def test_chart_shows_what_the_records_say() -> None:
    assert chart.faults() == []


def test_wrong_figure_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "page.md"
    document.write_text("One\n\nIt takes <!--= h100/videos fast video -->12.0 s<!--/-->.\n")
    monkeypatch.setattr("sys.argv", ["figures", str(document)])
    with pytest.raises(SystemExit, match="1"):
        command.main()
    shown = capsys.readouterr().err
    assert "page.md:3: the records say" in shown
    assert "-->14.4 s<!--/-->" in shown


def test_every_kind_of_kernels_is_in_a_share() -> None:
    kinds = [kind for parts in values.KERNELS.values() for kind in parts]
    assert sorted(kinds) == sorted(typing.get_args(Class))


def test_every_verdict_has_a_colour_in_the_chart_and_a_model_that_is_none_no_cell() -> None:
    assert set(typing.get_args(schema.Verdict)) == chart.COLOURS.keys()
    with pytest.raises(KeyError, match="wam"):
        model_rows.row("speed", wam=("none", []))


def test_seconds_do_not_contradict_the_speed_up_beside_them() -> None:
    """INT8 on a CPU: 0.79 s unpaired and 0.77 s for FP32, yet 1.16 times as fast in pairs."""
    row = values.row_of("amd-epyc-2t", "int8", {})
    reference = values.row_of("amd-epyc-2t", "fp32", {})
    seconds, speed = values.FIGURES["video"](row).value, values.FIGURES["speed-up"](row).value
    whole = values.FIGURES["video"](reference).value
    assert None not in (seconds, speed, whole)
    assert whole == pytest.approx((seconds or 0.0) * (speed or 0.0))


def test_table_holds_the_records_own_figures(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(TABLE)
    new, faults = documents.drawn(document)
    assert not faults
    assert "| **fast** | 14.4 s | 2.36x |" in new  # one video each: no interval
    assert "| plain | 34 s | reference |" in new
    document.write_text(new)
    assert documents.drawn(document) == (new, [])


def test_expressions_relate_figures_and_choose_by_field() -> None:
    # Both were timed in pairs with the reference, 2.406 and 1.296 times as fast.
    ratio = values.evaluate("h200/peers diffusers-torchao step / fast step")
    assert ratio.value == pytest.approx(2.406 / 1.296, rel=0.002)
    assert ratio.text == "1.86"
    fragments = values.evaluate("h200/cards bf16 measure.memory_limit_gib=12 fragments")
    assert fragments.value == pytest.approx(1138166333.44)
    folder = "h200/peers-caches peers"
    by_means = values.evaluate(f"{folder}/sea-20 psnr - peers/steps-20 psnr")
    clear = values.evaluate(f"{folder}/sea-20 psnr against peers/steps-20")
    assert clear.value == pytest.approx(by_means.value, abs=1e-5)  # two means of seven digits
    assert clear.text.startswith("**+5.3 [+")
    unclear = values.evaluate(f"{folder}/mag-25 psnr against cache/half-steps")
    assert unclear.text.startswith("-0.3 [-")  # up to above zero


@pytest.mark.parametrize(
    ("mark", "says"),
    [
        ("a <!--= h100/videos nothing video -->1<!--/-->", "0 records nothing"),
        ("a <!--= h100/nowhere fast video -->1<!--/-->", "no results/published/h100/nowhere"),
        ("a <!--= h100/videos fast sped -->1<!--/-->", "'sped' is not a figure"),
        ("a <!--= h100/videos fast psnr against bf16 -->1<!--/-->", "bf16 has no psnr of the same"),
        ("a <!--= h200/cards fast peak -->1<!--/-->", "3 records fast"),
        ("a <!--= h100/steps fast psnr -->1<!--/-->", "the record has none"),
        ("a <!--= h100/videos fast measure.steps=None video -->1<!--/-->", "no field measure.step"),
        ("a <!--= h100/videos fast speed-up - exact speed-up -->1<!--/-->", "2.36x are not added"),
        ("<!--= h100/videos fast video -->1<!--/-->", "may not begin a line"),
        ("- In\n  <!--= h100/videos fast video -->1<!--/-->", "2: a mark may not begin a line"),
        ("- <!--= h100/videos fast video -->1<!--/-->", "may not begin a line"),
        ("<!-- figures: all -->\nIt takes 14.4 s.", "2: '14.4 s' is not drawn from a record"),
    ],
)
def test_mark_that_cannot_be_drawn_is_one_line(tmp_path: Path, mark: str, says: str) -> None:
    document = tmp_path / "page.md"
    document.write_text(mark)
    new, faults = documents.drawn(document)
    assert len(faults) == 1
    assert says in faults[0]
    assert new == mark


def test_measurements_with_a_stated_source_need_no_record(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(
        "<!-- figures: all -->\n49x480x720 on a card of <!--: its size -->24 GiB<!--/-->, `8 ms`.\n"
    )
    assert documents.drawn(document)[1] == []
