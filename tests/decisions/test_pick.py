"""Which variant, for which card: on published records of an H200, and on planted ones."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from conftest import ROOT
from made_records import made, metric, of_recipe, placed, steady
from typer.testing import CliRunner

from qbench.cli import app
from qbench.decisions import pick_text
from qbench.decisions.card import bounds, fits
from qbench.decisions.evidence import Evidence, evidence
from qbench.decisions.exporting import export_command
from qbench.decisions.pick import _elsewhere, asked, pick
from qbench.decisions.picked import Picked
from qbench.errors import InputError
from qbench.meters.memory import CONTEXT_BYTES, Peak
from qbench.recipe import files, shipped
from qbench.recipe.variant import Parallel, SparseAttention
from qbench.results.record import Record, Stage

H200 = ROOT / "results/published/h200"
VERDICTS = [H200 / "length", H200 / "length-caches"]  # of clips of 3,352 tokens
GIB = 2**30


@pytest.fixture(scope="module")
def videos() -> Evidence:
    """CogVideoX-2B at 50 steps; cards simulated, and verdicts of the bundled model."""
    besides = [*VERDICTS, H200 / "cards", H200 / "memory"]
    return evidence([H200 / "videos"], besides, None, None)


def _ask(found: Evidence, *, unsettled: bool = True, **wanted: object) -> Picked:
    defaults: dict[str, object] = {
        "vram": None, "keep_free": None, "max_latency": None, "min_speed_up": None,
        "quality": "drift", "objective": "latency",
    }  # fmt: skip
    return pick(asked(**(defaults | wanted), accept_unsettled=unsettled), found)  # type: ignore[arg-type]


# docs/choosing.md, "One card of 24 GB" and "Smaller cards" ----------------------------------------


def test_24_gb_fast_cached_then_fast_with_the_text_encoder_beside_them(videos: Evidence) -> None:
    found = _ask(videos, vram="24GB", keep_free="8.87GiB", max_latency="60s")
    assert found.pick is not None
    assert found.next is not None
    assert (found.pick.variant, found.next.variant) == ("fast-cached", "fast")
    assert any("latency 5.69 s for 13.5 s" in line for line in found.gains)
    assert any("psnr 34.99 for 36.08 of tiny-cogvideox" in line for line in found.gives_up)
    (vram,) = [c for c in found.pick.criteria if c.name == "vram"]
    assert vram.said.startswith("needs 8.15 GiB to 12 GiB")
    refused = {c.variant: c for c in found.others}
    assert "out of memory" in str(refused["bf16"].criteria)


def test_verdicts_of_the_shortest_clips_refuse_what_loses_clip_score_there() -> None:
    besides = [H200 / "quality", H200 / "cards"]
    found = _ask(evidence([H200 / "videos"], besides, None, None), max_latency="60s")
    assert found.pick is not None
    assert found.pick.variant == "exact"
    refused = {c.variant: str(c.criteria) for c in found.others}
    assert all("degraded?" in refused[name] for name in ("fast-cached", "fast", "fp8-dynamic"))


def test_12_gb_only_fast_is_known_to_run(videos: Evidence) -> None:
    found = _ask(videos, vram="12GB", max_latency="60s")
    assert [c.variant for c in found.qualify] == ["fast"]
    text = "\n".join(pick_text.lines(found))
    assert "ran on a card of 12 GiB, simulated" in text
    assert "fast-cached: vram: needs 8.15 GiB to 12 GiB: only a try tells" in text


def test_8_gb_nothing_with_a_verdict_and_fast_tiling_without(videos: Evidence) -> None:
    assert _ask(videos, vram="8GB", max_latency="60s").pick is None
    besides = [*VERDICTS, H200 / "cards"]
    four_steps = evidence([H200 / "memory"], besides, None, None)
    strict = _ask(four_steps, vram="8GB", max_latency="60s")
    assert strict.pick is None
    assert strict.nearest is not None
    assert strict.nearest.variant == "offload/fast-tiling"
    assert [c.said for c in strict.nearest.missed] == ["no verdict was measured"]
    found = _ask(four_steps, vram="8GB", quality="any")
    assert [c.variant for c in found.qualify] == [
        "offload/fast-tiling", "offload/fast-group", "offload/group", "offload/model",
        "offload/sequential",
    ]  # fmt: skip
    assert "offload/fast-tiling" in found.export


def test_question_marks_and_single_samples_are_no_promise(videos: Evidence) -> None:
    found = _ask(videos, unsettled=False, vram="24GB", max_latency="60s")
    assert found.pick is None
    assert found.nearest is not None
    assert {c.name for c in found.nearest.unsettled} == {"latency", "quality"}
    assert "--accept-unsettled would take it" in "\n".join(pick_text.lines(found))


def test_what_a_text_encoder_needs_is_not_kept_silent(videos: Evidence) -> None:
    notes = " ".join(_ask(videos, vram="24GB").notes)
    assert "no text encoder ran here" in notes


# Bounds -------------------------------------------------------------------------------------------


def _ranking(tmp_path: Path, *records: Record) -> Evidence:
    for record in records:
        placed(record, tmp_path)
    return evidence([tmp_path], [], None, None)


def test_the_upper_end_of_the_interval_decides(tmp_path: Path) -> None:
    """Both are 1 s in the middle; of one the interval ends above 1.05 s."""
    steady = [1.0, 1.001, 0.999, 1.002, 0.998, 1.0, 1.001, 0.999, 1.0, 1.0, 1.002, 0.998]
    wild = [1.0, 1.2, 0.8, 1.25, 0.75, 1.0, 1.3, 0.7, 1.2, 0.8, 1.1, 0.9]
    found = _ranking(
        tmp_path, made("int8", latency=steady), made("fp16", latency=wild), made("fp32")
    )
    settled = _ask(found, unsettled=False, max_latency="1.05s", quality="any")
    assert settled.pick is not None
    assert [c.variant for c in settled.qualify if c.variant != "fp32"] == ["int8"]
    refused = {c.variant: c for c in settled.others}
    assert refused["fp16"].unsettled[0].said.endswith("may be above 1.05 s")
    none = _ask(found, max_latency="100ms", quality="any")
    assert none.pick is None
    assert none.nearest is not None
    assert "not 0.1 s" in none.nearest.missed[0].said


def test_min_speed_up_needs_its_lower_end_and_turns(tmp_path: Path) -> None:
    turns = steady(1.3)
    clear = made("int8", latency=steady(1.0, turn=3), turns=turns)
    alone = made("fp16", latency=steady(0.5))
    found = _ranking(tmp_path, clear, alone, made("fp32", latency=turns))
    settled = _ask(found, unsettled=False, min_speed_up=1.2, quality="any")
    assert [c.variant for c in settled.qualify] == ["int8"]
    refused = {c.variant: c for c in settled.others}
    assert "did not take turns" in refused["fp16"].unsettled[0].said
    assert "not 1.2x" in str(refused["fp32"].missed)


def test_the_verdict_is_of_a_model_whose_denoiser_is_of_the_same_kind(tmp_path: Path) -> None:
    """Though that of the other kind is the worse one."""
    for model, level in {"tiny-zeroscope": 47.0, "tiny-cogvideox": 12.0}.items():
        for name in ("fp32", "int8"):
            shell = made(name, f"{name}-{model}", latency=steady(1.0))
            changed: dict[str, object] = {
                "recipe": shell.recipe.model_copy(update={"model": model}),
                "fingerprints": shell.fingerprints.model_copy(update={"model": model}),
            }
            if name == "int8":
                changed["quality"] = {**shell.quality, "psnr": metric("psnr", steady(level))}
                assert shell.reference is not None
                run = {"run": f"fp32-{model}"}
                changed["reference"] = shell.reference.model_copy(update=run)
            placed(shell.model_copy(update=changed), tmp_path / model)
    for model, nearest in (
        ("zeroscope-v2-xl", "tiny-zeroscope"),
        ("wan2.1-1.3b", "tiny-cogvideox"),
    ):
        known = evidence([tmp_path / "tiny-zeroscope"], [tmp_path / "tiny-cogvideox"], None, None)
        recipe = made("int8").recipe.model_copy(update={"model": model})
        asked_for = made("int8").model_copy(update={"recipe": recipe})
        found = _elsewhere(asked_for, known.rankings)
        assert found is not None
        assert found[1] == f" of {nearest}"


def test_planted_faults_are_not_offered() -> None:
    found = evidence([ROOT / "results/published/planted-faults"], [], None, None)
    assert any(r.recipe.variant.fault for r in found.ranking.records)
    answer = _ask(found, quality="any")
    offered = [c.variant for c in (*answer.qualify, *answer.others)]
    assert "fp32" in offered
    assert not [name for name in offered if "fault-scale" in name or "seed" in name]


def test_memory_and_energy_as_the_objective(tmp_path: Path) -> None:
    peaks = {"int8": 2, "fp16": 1, "fp32": 3}
    records = []
    for name, size in peaks.items():
        stage = made(name).stages["denoise"]
        peak = stage.peak.model_copy(update={"resident_bytes": size * GIB})
        records.append(made(name, stages={"denoise": Stage(seconds=stage.seconds, peak=peak)}))
    found = _ranking(tmp_path, *records)
    asked_for = _ask(found, objective="memory", quality="any")
    assert [c.variant for c in asked_for.qualify] == ["fp16", "int8", "fp32"]
    assert _ask(found, objective="energy", quality="any").pick is None  # a CPU tells none


def test_what_ran_out_of_memory_on_a_larger_card_does_not_fit() -> None:
    """Whatever its peaks say: fragments are not in them."""
    peak = Peak(allocated_bytes=4 * GIB, reserved_bytes=5 * GIB)
    environment = made().environment.model_copy(
        update={"device": "cuda", "device_memory_bytes": 80 * GIB}
    )
    stages = {"denoise": Stage(seconds=[1.0], peak=peak)}
    record = made(stages=stages, environment=environment)
    assert bounds(record) == (4 * GIB + CONTEXT_BYTES, 5 * GIB + CONTEXT_BYTES)
    assert fits(record, [record], 6 * GIB, 0).result == "met"
    assert fits(record, [record], 6 * GIB, GIB).result == "missed"  # a try would tell
    assert fits(record, [record], 4 * GIB, 0).result == "missed"
    limited = of_recipe(record, measure={"memory_limit_gib": 7.0})
    ran_out = limited.model_copy(update={"status": "oom", "stage": "decode", "stages": {}})
    assert fits(record, [record, ran_out], 6 * GIB, 0).result == "missed"
    assert fits(record, [record, ran_out], 8 * GIB, 0).result == "met"
    small = of_recipe(record, measure={"memory_limit_gib": 5.0})
    assert fits(record, [record, small], 5 * GIB, 0).result == "met"
    other = of_recipe(small, generation={"frames": 99})
    other = other.model_copy(update={"generation": {**other.generation, "frames": 99}})
    assert fits(record, [record, other], 5 * GIB, 0).result == "missed"  # another video's peak


# The command --------------------------------------------------------------------------------------


def test_exit_codes_json_and_export(tmp_path: Path) -> None:
    call = CliRunner().invoke
    words = ["pick", "--records", str(H200 / "videos"), "--vram", "24GB"]
    none = call(app, words)
    assert none.exit_code == 1
    assert "nothing qualifies" in none.stdout
    found = call(app, [*words, "--quality", "any", "--accept-unsettled", "--json"])
    assert found.exit_code == 0
    facts = json.loads(found.stdout)
    assert facts["pick"]["variant"] == "fast-cached"
    said = ("qbench export fast-cached --out engines/fast-cached", "no format holds it")
    assert facts["export"].startswith(said)


@pytest.mark.parametrize(
    "text",
    [
        "extends: qbench:int8\nmodel: tiny-zeroscope\nvariant: {compile: {mode: default}}\n",
        "extends: qbench:onnx-int8\nvariant: {quantize: null}\ngeneration: {height: 128}\n",
        "extends: qbench:fp8\nvariant: {quantize: {exclude: [proj, norm]}, dtype: fp16}\n",
        "extends: qbench:int8\nmodel: zai-org/CogVideoX-2b\nweights_variant: '16'\n",
    ],
)
def test_the_export_is_of_the_variant_model_and_size_that_were_measured(
    text: str, tmp_path: Path
) -> None:
    """A recipe of one's own may have the name of a shipped one; the command is of the record."""
    path = tmp_path / "int8.yaml"
    path.write_text(text)
    measured = files.load(path, {"name": "int8"})
    words = shlex.split(export_command(made(recipe=measured)))
    name, rest = words[2], words[words.index("--out") + 2 :]
    changes = dict(zip(rest[::2], rest[1::2], strict=True))
    sets = [value for option, value in zip(rest[::2], rest[1::2], strict=True) if option == "--set"]
    given = {"model": changes["--model"]} if "--model" in changes else {}
    exported = files.load(shipped.path(name), files.overrides(sets) | given)
    assert exported.variant == measured.variant
    assert exported.model == measured.model
    assert exported.weights_variant == measured.weights_variant
    assert exported.generation == measured.generation
    # One that is not shipped is a file, which says all of this itself.
    own = made(recipe=measured.model_copy(update={"name": "mine"}))
    assert export_command(own) == "qbench export mine.yaml --out engines/mine"


@pytest.mark.parametrize(
    ("variant", "told"),
    [
        ({"parallel": Parallel(cfg=2)}, "parallel has several processes"),
        ({"sparse_attention": SparseAttention(threshold=0.1)}, "sparse_attention counts blocks"),
    ],
)
def test_what_no_format_holds_has_no_export(variant: dict[str, object], told: str) -> None:
    said = export_command(of_recipe(made(), variant=variant))
    assert said.startswith("no format holds it (")
    assert told in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--vram", "24"], "give a unit"),
        (["--vram", "24TBs"], "no unit"),
        (["--vram", "-1GB"], "above 0"),
        (["--vram", "8GB", "--keep-free", "9GB"], "leaves nothing"),
        (["--keep-free", "9GB"], "Give --vram too"),
        (["--max-latency", "fast"], "no number"),
        (["--quality", "drfit"], "did you mean 'drift'"),
        (["--objective", "latncy"], "did you mean 'latency'"),
        (["--min-speedup", "0"], "is no speed-up"),
        (["--model", "cogvideox-5b"], "did you mean 'cogvideox-2b'"),
    ],
)
def test_bad_questions_are_one_line(words: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["pick", "--records", str(H200 / "videos"), *words])
    assert isinstance(done.exception, InputError)
    assert told in str(done.exception)
    assert "\n" not in str(done.exception)


def test_several_rankings_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rankings, name one with --records") as error:
        evidence([H200], [], None, None)
    assert "4 steps" in str(error.value)
    places = [H200 / "videos", H200 / "memory"]  # of one model, at 50 steps and at 4
    with pytest.raises(InputError, match=r"model or --at: .*, 4 steps .*, 50 steps"):
        evidence(places, [], "cogvideox-2b", None)
    assert evidence(places, [], None, None, "4 STEPS").ranking.title().endswith(", 4 steps")
    for words in ("0 steps", "4 step", "33x128x128"):  # parts of words are none
        with pytest.raises(InputError, match=f"--at {words}: in no ranking's title: .*4 steps"):
            evidence(places, [], None, None, words)
    with pytest.raises(InputError, match="--at '': in no ranking's title"):
        evidence(places, [], None, None, "")
    broken = tmp_path / "record.json"
    broken.write_text("{")
    here: dict[str, object] = {"device": "cpu", "name": "mine", "threads": 1}
    with pytest.raises(InputError, match="nothing was measured on this machine") as error:
        evidence([H200 / "videos", tmp_path], [], None, here)
    assert error.value.lines[1].startswith(f"left out: {broken}: ")  # it may be in there
    assert evidence([H200 / "videos", tmp_path], [], None, None).unreadable
