"""What a sweep runs: references, overrides and checks, before any process starts."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import RECIPES, ROOT, as_anybody

from qbench.errors import InputError
from qbench.meters.environment import Environment
from qbench.recipe.schema import Variant
from qbench.results import store
from qbench.results.record import Record
from qbench.run import execution, recorder, sweep
from qbench.run.here import Task
from qbench.run.interrupts import Interrupts
from qbench.run.machines import read_environment
from qbench.run.parts import Load
from qbench.run.plan import Planned, outputs_bytes, plan


def _plan(*names: str, **overrides: str) -> dict[str, Planned]:
    paths = [RECIPES / f"{name}.yaml" for name in names]
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    return {item.recipe.name: item for item in plan(paths, changes)}


def test_overrides_of_the_variant_leave_the_reference_alone_whether_named_or_not() -> None:
    for names in (("bf16",), ("fp32", "bf16")):
        planned = _plan(*names, variant__dtype="fp16", generation__steps="3")
        assert list(planned) == ["fp32", "bf16"]
        assert planned["fp32"].recipe.variant.dtype == "fp32"
        assert planned["bf16"].recipe.variant.dtype == "fp16"
        assert {item.recipe.generation.steps for item in planned.values()} == {3}
        assert "variant.dtype" not in planned["fp32"].overrides
        assert "stays as it is" in planned["fp32"].notes[0]
        assert not planned["bf16"].notes


def test_a_reference_that_runs_alone_is_what_was_named() -> None:
    planned = _plan("fp32", variant__dtype="bf16")
    assert planned["fp32"].recipe.variant.dtype == "bf16"


def test_another_name_is_the_variants_own() -> None:
    planned = _plan("bf16", name="mine")
    assert list(planned) == ["fp32", "mine"]
    assert planned["mine"].recipe.reference == "fp32"
    assert not planned["fp32"].notes  # nobody asked for it
    both = _plan("fp32", "bf16", name="mine", noise_floor="true")
    assert list(both) == ["fp32", "mine"]
    assert not both["fp32"].recipe.noise_floor
    with pytest.raises(InputError, match=r"--set name=mine: .*would have one name"):
        _plan("bf16", "int8", name="mine")


def test_one_recipe_named_twice_runs_once_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    assert list(_plan("bf16", "bf16")) == ["fp32", "bf16"]
    (tmp_path / "other.yaml").write_text("name: bf16\nextends: qbench:bf16\n")
    with pytest.raises(InputError, match=r"other\.yaml:1: a second recipe named 'bf16'"):
        plan([RECIPES / "bf16.yaml", tmp_path / "other.yaml"], {})
    (tmp_path / "base.yaml").write_text("name: base\nextends: qbench:bf16\n")
    (tmp_path / "bf16.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(InputError, match=r"bf16\.yaml:1: a second"):  # whose base has another name
        plan([RECIPES / "bf16.yaml", tmp_path / "bf16.yaml"], {})


def test_a_reference_is_found_beside_then_among_the_shipped_and_is_the_end(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: qbench:int8\nreference: bf16\n")
    bf16, variant = plan([own], {})
    # The shipped bf16 is compared with fp32; here it is what others are compared with.
    assert (bf16.recipe.name, bf16.recipe.is_reference, bf16.implied) == ("bf16", True, True)
    assert variant.recipe.reference == "bf16"
    (tmp_path / "bf16.yaml").write_text("generation: {guidance: 2.0}\n")
    assert plan([own], {})[0].recipe.generation.guidance == 2.0
    own.write_text("extends: qbench:int8\n\nreference: bf61\n")
    with pytest.raises(InputError, match=r"own\.yaml:3: reference: no recipe .*'bf16'"):
        plan([own], {})


def test_a_folder_that_nobody_may_look_into_for_a_reference_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one above a current folder: what is above may be locked where what is here is not."""
    (tmp_path / "locked/here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "locked/here")
    Path("cache").mkdir()
    Path("cache").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    own = Path("own.yaml")
    own.write_text("extends: qbench:int8\nreference: bf16\n")
    plan([own], {})  # what it imports may be root's
    Path("..").chmod(0)
    with as_anybody():
        bf16, _ = plan([own], {})
        with pytest.raises(InputError, match="no recipe 'none' beside it") as caught:
            plan([own], {"reference": "none"})
    Path("..").chmod(0o755)
    above = f"{tmp_path / 'locked/bf16.yaml'}: cannot be read: Permission denied"
    assert f"bf16 is the shipped one: {above}" in bf16.notes
    assert above.replace("bf16", "none") in caught.value.lines


def test_a_shipped_reference_is_of_the_model_and_size_of_the_recipe_that_names_it(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "extends: qbench:int8\nmodel: tiny-zeroscope\ngeneration: {steps: 7}\n"
        "prompts: {count: 3}\nnoise_floor: true\n"
    )
    fp32, variant = plan([own], {"measure.repeats": "2"})
    assert fp32.recipe.settings_fingerprint() == variant.recipe.settings_fingerprint()
    assert (fp32.recipe.name, fp32.recipe.variant.dtype, fp32.recipe.variant.quantize) == (
        "fp32", "fp32", None,
    )  # fmt: skip
    assert not fp32.recipe.noise_floor
    assert len(fp32.prompts.prompts) == 3


def test_a_chain_of_references_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: qbench:int8\nreference: bf16\n")
    with pytest.raises(InputError, match="itself compared with fp32"):
        plan([own, RECIPES / "bf16.yaml"], {})
    assert len(plan([own, RECIPES / "bf16.yaml"], {"reference": "bf16"})) == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("model: tiny-cogvideo", "did you mean 'tiny-cogvideox'?"),
        ("prompts: {set: word-v1}", "did you mean 'world-v1'?"),
        ("generation: {height: 70}", "the nearest is 64"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"extends: qbench:int8\n\n{line}\n")
    with pytest.raises(InputError) as caught:
        plan([path], {})
    assert str(caught.value).startswith(f"{path}:3: ")
    assert said in str(caught.value)


def test_what_is_wrong_on_the_command_line_is_told_with_the_option() -> None:
    with pytest.raises(InputError, match=r"^--model tiny-cogvideo: "):
        plan(
            [RECIPES / "int8.yaml"], {"model": "tiny-cogvideo"}, {"model": "--model tiny-cogvideo"}
        )
    with pytest.raises(InputError, match=r"^--device tpu: device: 'tpu' is not a choice"):
        plan([RECIPES / "int8.yaml"], {"device": "tpu"}, {"device": "--device tpu"})


def test_mistakes_of_several_recipes_and_options_are_named_at_once(tmp_path: Path) -> None:
    """What was mended and started again would otherwise stop at the next."""
    one, two, three = (tmp_path / f"{name}.yaml" for name in ("one", "two", "three"))
    one.write_text("extends: qbench:int8\nvariant: {dtyp: fp16}\n")
    two.write_text("extends: qbench:int8\ngeneration: {step: 3}\n")
    three.write_text(
        "extends: qbench:int8\n"
        "generation: {frames: 12, height: 100}\n"
        "quality: {metrics: [psnrr, ssimm], margins: {lpisp: 1}}\n"
        "prompts: {set: nothere}\n"
    )
    with pytest.raises(InputError) as caught:
        plan([one, two], {"variant.compile.mode": "fast", "measure.repeat": "3"})
    lines = caught.value.lines
    assert [line.partition(": ")[0] for line in lines] == [
        "--set measure.repeat=3", f"{one}:2", f"{two}:2", "--set variant.compile.mode=fast",
    ]  # fmt: skip
    with pytest.raises(InputError) as caught:
        plan([three], {})
    expected = {
        "generation.frames: for 12": 2, "generation.height: 100": 2,
        "quality.metrics: unknown metric 'psnrr'": 3, "quality.metrics: unknown metric 'ssimm'": 3,
        "quality.margins: unknown metric 'lpisp'": 3, "prompts 'nothere'": 4,
    }  # fmt: skip
    for line, (said, at) in zip(caught.value.lines, expected.items(), strict=True):
        assert line.startswith(f"{three}:{at}: {said}")


def test_raw_videos_are_as_large_as_was_estimated(finished: Path) -> None:
    changes = {"generation.steps": "2", "prompts.count": "2"}
    planned = plan([RECIPES / "int8.yaml"], changes)
    (outputs,) = finished.glob("*/int8-*/outputs")
    taken = sum(path.stat().st_size for path in outputs.glob("*.safetensors"))
    assert outputs_bytes(planned) / 2 == pytest.approx(taken, rel=0.05)
    assert outputs_bytes(plan([RECIPES / "int8.yaml"], {"weights": "random"})) == 0


def test_prompts_are_read_once(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a red star\n")
    planned = plan([RECIPES / "int8.yaml"], {"prompts.set": str(path)})
    path.write_text("a blue ring\n")
    assert {item.prompts.prompts for item in planned} == {("a red star",)}


def test_a_complete_run_takes_todays_labels() -> None:
    """They change nothing that is measured, so nothing runs again, and they are not ignored."""
    published = ROOT / "results" / "published" / "amd-epyc-2t"
    found, _ = store.read_all(store.find([published]))
    record = next(r for _, r in found if r.status == "ok" and not r.recipe.is_reference)
    labels = {"noise_floor": True, "expects": "drift", "about": "today"}
    recipe = record.recipe.model_copy(update=labels)
    draft = record.model_copy(update={"recipe": recipe, "overrides": {"expects": "drift"}})
    shown = sweep._relabelled(record, draft)
    assert (shown.recipe, shown.overrides) == (recipe, {"expects": "drift"})
    assert shown.quality == record.quality


def _of_two_models(tmp_path: Path) -> list[Path]:
    paths = []
    for name, text in (
        ("unet", "extends: qbench:int8\nmodel: tiny-zeroscope\ngeneration: {steps: 3}\n"),
        ("dit", "extends: qbench:bf16\ngeneration: {steps: 2}\n"),
    ):
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(text + "prompts: {count: 2}\n")
    return paths


def test_recipes_of_several_models_have_a_shipped_reference_each(tmp_path: Path) -> None:
    paths = _of_two_models(tmp_path)
    first, second, unet, dit = (item.recipe for item in plan(paths, {"variant.dtype": "fp16"}))
    assert (first.name, second.name, first.variant, second.variant) == (
        "fp32", "fp32", Variant(), Variant(),
    )  # fmt: skip
    assert unet.settings_fingerprint() == first.settings_fingerprint()
    assert dit.settings_fingerprint() == second.settings_fingerprint()
    assert first.settings_fingerprint() != second.settings_fingerprint()
    # Named besides, it is measured as its own file says: that of the others is another run.
    named = plan([*paths, RECIPES / "fp32.yaml"], {})
    assert [item.recipe.name for item in named] == ["fp32", "fp32", "fp32", "unet", "dit"]
    assert [item.implied for item in named] == [True, True, False, False, False]
    # One reference is enough for all that are measured alike.
    assert len(plan(paths, {"model": "tiny-zeroscope", "generation.steps": "3"})) == 3


def test_own_reference_that_is_measured_otherwise_is_told_of_before_it_runs(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("extends: qbench:fp32\nreference: own\n")
    other = tmp_path / "other.yaml"
    other.write_text("extends: qbench:int8\nreference: own\ngeneration: {steps: 3}\n")
    for paths in ([other], [tmp_path / "own.yaml", other]):
        (notes,) = [item.notes for item in plan(paths, {}) if item.recipe.name == "other"]
        assert notes == ("other will not be compared with own, which differs in generation.steps",)
    assert not any(item.notes for item in plan([other], {"generation.steps": "3"}))


def test_a_size_that_the_model_never_learned_is_told_of_once_before_it_runs() -> None:
    asked = {"generation__frames": "25", "generation__height": "96"}
    notes = [note for item in _plan("bf16", "int8", **asked).values() for note in item.notes]
    (told,) = notes
    assert "not trained at 25x96x64" in told
    learned = dict.fromkeys(("generation__height", "generation__width"), "128")
    for quiet in (learned | {"generation__frames": "33"}, asked | {"weights": "random"}):
        assert not any(item.notes for item in _plan("bf16", **quiet).values())


def test_floors_of_another_model_are_told_of_before_they_run(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    floor = [RECIPES / "floor/seed.yaml", RECIPES / "floor/kernel.yaml"]
    for text, told in (
        ("extends: qbench:int8\nmodel: tiny-zeroscope\n", 1),
        ("extends: qbench:int8\nreference: null\n", 0),  # which nothing judges
        ("extends: qbench:int8\n", 0),
    ):
        own.write_text(text)
        notes = [note for item in plan([*floor, own], {}) for note in item.notes]
        assert len([note for note in notes if "--floors measures its own" in note]) == told


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("model: tiny-zeroscope\n", "differs from them in model"),
        ("generation: {steps: 3}\nreference: fp32\n", "differs from them in generation.steps"),
        ("reference: mine\n", "is compared with mine, and they are of fp32"),
    ],
)
def test_the_note_on_shipped_floors_hangs_on_one_of_them_and_says_why(
    tmp_path: Path, text: str, why: str
) -> None:
    """A floor of the user's own is named before them."""
    (tmp_path / "own.yaml").write_text(f"extends: qbench:int8\n{text}")
    (tmp_path / "floor.yaml").write_text(f"extends: qbench:floor/kernel\nname: my-floor\n{text}")
    (tmp_path / "mine.yaml").write_text("extends: qbench:bf16\nreference: null\n")
    paths = [tmp_path / "floor.yaml", RECIPES / "floor/seed.yaml", tmp_path / "own.yaml"]
    told = {
        item.recipe.name: note
        for item in plan([*paths, tmp_path / "mine.yaml"], {})
        for note in item.notes
        if "--floors" in note
    }
    assert list(told) == ["floor/seed"]
    assert told["floor/seed"].startswith("floor/seed: no verdict on own rests on them")
    assert why in told["floor/seed"]


def test_two_references_of_one_name_and_settings_are_refused(tmp_path: Path) -> None:
    paths = []
    for folder, dtype in (("a", "fp32"), ("b", "bf16")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.yaml").write_text(
            f"extends: qbench:base\nvariant: {{dtype: {dtype}}}\n"
        )
        paths.append(tmp_path / folder / f"{folder}.yaml")
        paths[-1].write_text("extends: qbench:int8\nreference: own\n")
    with pytest.raises(
        InputError, match=r"b/own\.yaml:1: a second recipe named 'own'.*a/own\.yaml"
    ):
        plan(paths, {})


class _Device:
    """A place whose runs end as soon as they begin."""

    def environment(self, device: str) -> Environment:
        return read_environment(device)

    def run(self, task: Task, work: Path) -> Record:
        record = recorder.changed(task.draft, status="ok")
        execution.keep(record, work)
        return record


def test_each_recipe_of_a_sweep_is_compared_with_the_reference_of_its_model(tmp_path: Path) -> None:
    planned = plan(_of_two_models(tmp_path), {"device": "cpu"})
    with Interrupts() as interrupts:
        one = sweep.Sweep(planned, tmp_path, sweep.Silent(), False, True, interrupts)
        records = [one.one(item, _Device())[1] for item in planned]
        drafts = [one._draft(planned[0], records[0].environment, None) for _ in range(9)]
    assert len({record.run for record in records}) == len(records) == 4
    assert len({draft.run for draft in drafts}) == len(drafts)  # that begin in one second
    runs = {record.recipe.model: record.run for record in records[:2]}
    for record in records[2:]:
        assert record.reference
        assert record.reference.run == runs[record.recipe.model]
        assert not record.notes


def test_videos_are_made_ahead_of_a_run_that_is_neither_complete_nor_another_sweeps(
    tmp_path: Path,
) -> None:
    item, device = _plan("int8", device="cpu")["int8"], _Device()
    environment = device.environment("cpu")
    with Interrupts() as interrupts:
        one = sweep.Sweep([item], tmp_path, sweep.Silent(), False, 0.0, interrupts)
        with ExitStack() as held, ExitStack() as other:
            found = one.ahead(item, environment, held)
            assert found is not None
            assert one.ahead(item, environment, other) is None
        task, made = found
        assert task.prompts == tuple(item.prompts.prompts)
        made.mkdir(parents=True)  # as by a sweep that was killed since
        folder, _ = one.one(item, device)
        assert made.parent == folder.resolve().parent
        assert not made.exists()
        assert one.ahead(item, environment, ExitStack()) is None
        fresh = sweep.Sweep([item], tmp_path, sweep.Silent(), True, 0.0, interrupts)
        with ExitStack() as held:
            assert fresh.ahead(item, environment, held) is not None


def test_work_is_reckoned_with_the_steps_that_the_model_takes_of_itself() -> None:
    """Else 200 videos of the bundled model, of 20 steps each, would be made in parts of 100."""
    from qbench.run.loads import load_of

    def load(**overrides: str) -> Load:
        return load_of(_plan("bf16", prompts__count="200", **overrides)["bf16"], "cuda")

    said, default = load(generation__steps="20"), load()
    assert (default.fixed, default.shared) == (said.fixed, said.shared)
    assert default.shared < 2 * default.least
    twice = load(generation__steps="40")
    assert twice.shared == 2 * default.shared
    assert twice.fixed > default.fixed


def test_videos_that_a_cache_has_made_one_by_one_are_reckoned_to_take_longer() -> None:
    """Else the longest run of a sweep begins last, and the other devices wait for it."""
    from qbench.run.loads import load_of

    def shared(name: str, device: str) -> float:
        planned = _plan(name, prompts__count="200", model="tiny-cogvideox")
        return load_of(planned[name], device).shared

    assert shared("cache/first-block", "cuda") > 3 * shared("bf16", "cuda")
    assert shared("cache/taylorseer", "cuda") == shared("bf16", "cuda")
    assert shared("cache/first-block", "cpu") == shared("bf16", "cpu")


def test_large_videos_take_a_device_as_long_one_by_one_as_in_batches() -> None:
    """Else a model of true size in a folder of one's own is made in parts of a video or two."""
    from qbench.run.loads import FEWEST, load_of

    size = {"generation__height": "256", "generation__width": "256"}
    names = ("cache/first-block", "bf16")
    planned = _plan(*names, prompts__count="200", model="tiny-cogvideox", **size)
    cached, plain = (load_of(planned[name], "cuda") for name in names)
    assert cached.shared == plain.shared
    video = cached.shared / (200 - planned["cache/first-block"].recipe.measure.repeats)
    assert cached.least >= FEWEST * video


def test_a_reference_in_fp32_is_reckoned_to_hold_its_ranking_up_for_longer() -> None:
    """Else another device is idle until it ends: what could be made meanwhile seems too long."""
    from qbench.run.loads import load_of

    def pair(device: str, **size: str) -> tuple[Load, Load]:
        settings = {"prompts__count": "200", "model": "tiny-cogvideox"} | size
        planned = _plan("fp32", "bf16", **settings)
        return load_of(planned["fp32"], device), load_of(planned["bf16"], device)

    alone = {"prompts__count": "8", "measure__interleave": "false"}
    full, half = pair("cuda", model="cogvideox-2b", weights="random", **alone)
    assert full.fixed == pytest.approx(10 * half.fixed)  # a step takes 6.2 s for 0.63 on an H200
    large = {"generation__height": "256", "generation__width": "256"}
    full, half = pair("cuda", **large)
    assert full.shared == pytest.approx(2 * half.shared)
    full, half = pair("cuda")
    assert half.shared < full.shared < 2 * half.shared
    full, half = pair("cpu")
    assert full.shared == half.shared


def test_the_figures_of_videos_take_as_long_however_few_steps_those_took() -> None:
    """2,048 videos of the bundled model took 85 s to make on an H200, and 23 s to judge."""
    from qbench.run.loads import load_of

    judged = {"prompts__count": "256", "measure__timing": "false", "measure__repeats": "1"}
    planned = _plan("bf16", "cache/half-steps", model="tiny-cogvideox", **judged)
    whole, half = (load_of(planned[name], "cuda") for name in ("bf16", "cache/half-steps"))
    assert whole.fixed / whole.shared == pytest.approx(23 / 85, rel=0.15)
    assert half.shared == pytest.approx(whole.shared / 2)
    assert half.fixed == pytest.approx(whole.fixed, rel=0.05)
    assert load_of(planned["fp32"], "cpu").fixed < 0.6 * whole.fixed


def test_ranks_take_a_gpu_each_and_share_the_threads_of_one_run_on_a_cpu() -> None:
    from qbench.run.loads import load_of

    four = _plan("parallel/fast-four", model="tiny-cogvideox")["parallel/fast-four"]
    assert (load_of(four, "cuda").units, load_of(four, "cpu").units) == (4, 1)
