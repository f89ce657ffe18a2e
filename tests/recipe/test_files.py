"""A typo must not silently change a measurement: every fault is one line that names its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import RECIPES

from qbench.errors import MOST_MISTAKES, InputError, one_line
from qbench.recipe import files

FAULTS = {
    "unknown key": ("name: x\nvariant: {dtyp: bf16}", 2, "did you mean 'dtype'?"),
    "wrong type": ("generation:\n  steps: '20'", 2, "valid integer"),
    "out of range": ("generation:\n\n  steps: 0", 3, "greater than or equal to 1"),
    "missing base": ("name: x\n\nextends: basis.yaml", 3, "no file 'basis.yaml' to extend"),
    "cycle": ("extends: bad.yaml", 1, "goes round in a circle"),
    "outside": ("extends: /etc/hostname", 1, "leads out of"),
    "unknown scheme": (
        "variant:\n  quantize:\n    backend: torchao\n    scheme: int8_weights_only",
        4,
        "did you mean 'int8_weight_only'?",
    ),
    "scheme of another backend": (
        "variant:\n  quantize: {backend: quanto, scheme: int8_dynamic}",
        2,
        "quanto has no scheme",
    ),
    "impossible": ("variant:\n  engine: onnxruntime\n  compile: {}", 3, "none to compile"),
    "path in name": ("about: x\nname: ../../etc/passwd", 2, "no path"),
    "tag": ("name: !!python/object/apply:os.system ['true']", 1, "YAML tags"),
    "alias": ("about: &a x\nname: *a", 1, "YAML anchors"),
    "duplicate": ("name: x\nabout: y\nname: z", 3, "stands twice"),
    "not a mapping": ("- name", 1, "mapping"),
    "not YAML": ("name: [", 1, "not YAML"),
    "null section": ("name: x\nvariant:", 2, "variant"),
    "empty": ("", 1, "nothing in it"),
    "comments alone": ("# a recipe\n", 1, "nothing in it"),
    "deep": ("name: x\nvariant: " + "{a: " * 500 + "1" + "}" * 500, 2, "nested more than"),
    "deep list": ("name: x\nvariant: " + "[" * 5000, 2, "nested more than"),
    "alias bomb": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", 1, "YAML anchors"),
    "equals sign": ("name: x\nvariant: =", 2, "not '='"),
    "merge key": ("name: x\nvariant: {<<: 1}", 2, "unknown field"),
    "date": ("name: x\ngeneration: {steps: 2020-13-45}", 2, "not '2020-13-45'"),
    "half a number": ("name: x\ngeneration: {steps: 0b_}", 2, "'0b_' is not a number"),
    "octal": ("generation:\n  steps: 010", 2, "010 is 8 to YAML, which counts by eights"),
    "sexagesimal": ("generation:\n  steps: 1:30", 2, "is 90 to YAML, which counts by sixties"),
    "digits of another script": ("generation:\n  steps: ٣", 2, "valid integer, not '٣'"),
    "a float too large": ("generation:\n  guidance: 1e999", 2, "finite number, not inf"),
    "half a character": ('name: x\nabout: "a\\ud800b"', 2, "is not UTF-8"),
    "half a character in a field": ('name: x\n"\\udcff": 1', 2, "is not UTF-8"),
    "a field without a name": ("name: x\n'': 1", 2, "'': unknown field"),
    "dots in a file": ("name: x\ngeneration.steps: 4", 2, "generation: {steps: ...}"),
    "endless number": ("generation:\n  steps: " + "9" * 5000, 2, "is not a number"),
    "infinity": ("measure:\n  timeout_s: .inf", 2, "finite number"),
    "a list as a field's name": ("name: x\n? [a, b]\n: c", 2, "is a word"),
    "control character": ('name: x\nabout: "a\x07b"', 2, "U+0007"),
    "field of another section": ("name: x\nsteps: 4", 2, "did you mean 'generation.steps'?"),
    "shipped name as a file": ("name: x\nextends: int8", 2, "did you mean 'qbench:int8'?"),
    "no such shipped recipe": ("name: x\nextends: qbench:int9", 2, "did you mean 'int8'?"),
    "long name": ("name: " + "x" * 300, 1, "80 characters at most"),
    "long base": ("name: x\nextends: " + "x" * 5000, 2, "no file 'xxx"),
    "extends a folder": ("name: x\nextends: .", 2, "is no file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_one_line_with_file_line_and_hint(fault: str, tmp_path: Path) -> None:
    text, line, hint = FAULTS[fault]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        files.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}:")
    assert hint in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400


def test_fields_that_stand_twice_are_named_at_once_with_all_else_that_is_wrong(
    tmp_path: Path,
) -> None:
    (tmp_path / "base.yaml").write_text("name: base\nmodel: a\nmodel: b\n")
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: x\n"
        "extends: base.yaml\n"
        "name: z\n"
        "variant:\n"
        "  dtype: bf16\n"
        "  dtype: fp16\n"
        "  compile: {mode: defalt}\n"
        "  attention: 010\n"
        "[a]: 1\n"
    )
    with pytest.raises(InputError) as caught:
        files.load(path, {"generation.steps": "0"})
    expected = [
        (path, 3, "'name' stands twice"),
        (path, 6, "'dtype' stands twice"),
        (path, 8, "010 is 8 to YAML"),
        (path, 9, "the name of a field is a word"),
        (tmp_path / "base.yaml", 3, "'model' stands twice"),
    ]
    *lines, steps, mode = caught.value.lines
    for line, (file, number, said) in zip(lines, expected, strict=True):
        assert line.startswith(f"{file}:{number}: {said}")
    assert steps.startswith("--set generation.steps=0: generation.steps")
    assert mode.startswith(f"{path}:7: variant.compile.mode: 'defalt' is not a choice")


@pytest.mark.parametrize("field", ["prompts.set", "quality.clip", "calibration.set"])
def test_an_empty_name_is_none_and_not_the_default(field: str, tmp_path: Path) -> None:
    section, _, word = field.rpartition(".")
    inner = f"{section}: {{{word}: ''}}"
    if section == "calibration":
        quantize = "backend: torchao, scheme: int8_weight_only, calibration: {method: awq, set: ''}"
        inner = f"variant: {{quantize: {{{quantize}}}}}"
    path = tmp_path / "bad.yaml"
    path.write_text(f"name: x\n{inner}\n")
    with pytest.raises(InputError) as caught:
        files.load(path)
    (line,) = caught.value.lines
    assert line.startswith(f"{path}:2: ")
    assert f"{field}: '' names nothing" in line


def test_all_mistakes_are_named_at_once_by_line_and_each_once(tmp_path: Path) -> None:
    """What takes one of two types (a margin) is told of the one that it was written as."""
    path = tmp_path / "bad.yaml"
    path.write_text(
        "variant: {dtyp: bf16, attention: flsh, cache: {interval: 2}}\n"
        "prompts: 3\n"
        "measure:\n"
        "  timeout_s: .nan\n"
        "  repeats: 1.5\n"
        "generation: {steps: 0}\n"
        "quality:\n"
        "  margins:\n"
        "    psnr: -1\n"
        "    ssim: {size: 1, off: unit}\n"
        "    lpips: {}\n"
        "abuot: x\n"
    )
    with pytest.raises(InputError) as caught:
        files.load(path, {"variant.compile.mode": "fast", "generation.seed": "["})
    compile_, seed = "--set variant.compile.mode=fast", "--set generation.seed=["
    expected = [
        (seed, "not YAML"),
        (compile_, "variant.compile.mode: 'fast' is not a choice; did you mean 'default'?"),
        (f"{path}:1", "variant.attention: 'flsh' is not a choice; did you mean 'flash'?"),
        (f"{path}:1", "variant.cache.kind: this field is required; one of: dbcache, faster, "),
        (f"{path}:1", "variant.dtyp: unknown field; did you mean 'dtype'?"),
        (f"{path}:2", "prompts: takes fields (set, count), not 3"),
        (f"{path}:4", "measure.timeout_s: input should be a finite number, not nan"),
        (f"{path}:5", "measure.repeats: input should be a valid integer, not 1.5"),
        (f"{path}:6", "generation.steps: input should be greater than or equal to 1, not 0"),
        (f"{path}:9", "quality.margins.psnr: input should be greater than 0, not -1"),
        (f"{path}:10", "quality.margins.ssim.off: unknown field; did you mean 'of'?"),
        (f"{path}:11", "quality.margins.lpips.size: this field is required"),
        (f"{path}:12", "abuot: unknown field; did you mean 'about'?"),
    ]
    lines = caught.value.lines
    assert len(lines) == len(expected)
    for line, (place, said) in zip(lines, expected, strict=True):
        assert line.startswith(f"{place}: {said}")


def test_a_file_of_nothing_but_mistakes_does_not_fill_the_screen(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("".join(f"field_{n}: 1\n" for n in range(500)))
    with pytest.raises(InputError) as caught:
        files.load(path)
    assert len(caught.value.lines) == MOST_MISTAKES + 1
    assert caught.value.lines[-1] == "and 480 more"


def test_what_is_no_text_file_is_one_line(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: x\nabout: caf\xe9")
    os.mkfifo(tmp_path / "pipe.yaml")
    for path, reason in (
        (latin, "latin.yaml:2: not UTF-8"),
        (tmp_path, "a folder, not a file"),
        (tmp_path / "pipe.yaml", "a device or a pipe"),
        (Path("/dev/zero"), "a device or a pipe"),
        (tmp_path / ("x" * 300), "no such recipe"),
        (tmp_path / "a\0b", "no such recipe"),
    ):
        with pytest.raises(InputError, match=reason):
            files.load(path)
    long = tmp_path / "long.yaml"
    long.write_text("about: " + "x" * 2**20)
    with pytest.raises(InputError, match="larger than"):
        files.load(long)


def test_own_recipes_extend_shipped_ones_and_links_are_followed(tmp_path: Path) -> None:
    own, linked = tmp_path / "own", tmp_path / "linked"
    (own / "sub").mkdir(parents=True)
    linked.mkdir()
    (own / "base.yaml").write_text("extends: qbench:base\nprompts: {count: 3}\n")
    (own / "mine.yaml").write_text("extends: qbench:int8\ngeneration: {steps: 4}\n")
    (own / "sub" / "below.yaml").write_text("extends: ../base.yaml\n")
    (linked / "link.yaml").symlink_to(own / "sub" / "below.yaml")
    mine = files.load(own / "mine.yaml")
    assert mine.variant == files.load(RECIPES / "int8.yaml").variant
    assert (mine.name, mine.generation.steps) == ("mine", 4)
    below = files.load(own / "sub" / "below.yaml")
    assert (below.name, below.prompts.count, below.reference) == ("sub/below", 3, "fp32")
    link = files.load(linked / "link.yaml")
    assert (link.name, link.prompts.count) == ("link", 3)


def test_line_of_a_fault_in_the_base_is_the_base_files(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: tiny-cogvideox\nmeasure:\n  repeat: 3\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(InputError, match=r"base\.yaml:3: measure\.repeat: .*'repeats'"):
        files.load(tmp_path / "child.yaml")


def test_child_changes_one_field_and_inherits_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: base\ngeneration: {steps: 7, guidance: 2.0}\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\ngeneration: {steps: 9}\n")
    found = files.load(tmp_path / "child.yaml")
    assert (found.name, found.generation.steps, found.generation.guidance) == ("child", 9, 2.0)


def test_numbers_are_read_as_they_are_written_elsewhere() -> None:
    """YAML 1.1 takes 1e-3 for a word, and Python and JSON write small numbers so."""
    below = "variant.cache.threshold"
    cached = {"variant.cache.kind": "first_block"}
    (one, other) = (
        files.load(RECIPES / "bf16.yaml", cached | {below: text}) for text in ("3e-5", "0.00003")
    )
    assert one.fingerprint() == other.fingerprint()
    plain = files.load(RECIPES / "bf16.yaml")
    changes = files.overriding(plain, one)
    assert changes[below] == "3e-05"
    zeros = [files.load(RECIPES / "bf16.yaml", {"generation.guidance": z}) for z in ("0", "-0.0")]
    assert zeros[0].fingerprint() == zeros[1].fingerprint()
    named = files.load(RECIPES / "bf16.yaml", {"about": "'1e3'"})
    assert named.about == "1e3"


def test_override_wins_and_its_fault_names_the_override() -> None:
    changed = files.load(RECIPES / "int8.yaml", files.overrides(["variant.dtype=fp16"]))
    assert changed.variant.dtype == "fp16"
    assert changed.variant.quantize is not None
    with pytest.raises(InputError, match=r"^--set variant\.dtype=fp61: .*'fp16'"):
        files.load(RECIPES / "int8.yaml", files.overrides(["variant.dtype=fp61"]))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("quality.fvd.frames=2020-13-45", "not '2020-13-45'"),
        ("generation=0b_", "'0b_' is not a number"),
        ("variant=" + "[" * 5000, "nested more than"),
        ("variant=" + "{a: " * 5000, "nested more than"),
        ("variant=&a [*a]", "YAML anchors"),
        ("variant=" + "x" * 2**17, "larger than"),
        ("steps=4", "did you mean 'generation.steps'?"),
        ("extends=fp32", "it cannot be set"),
        ("variant.\udcff=1", "is not UTF-8"),
        ("about=\udcff", "U+DCFF"),
        ('about="\\udcff"', "is not UTF-8"),
        ("generation.step=4", "did you mean 'steps'?"),
        (".".join("a" * 40) + "=1", "no field lies that deep"),
        ("name.x=1", "valid string"),
        ("variant.quantize.calibration.method=smoothquant", "which awq, gptq are"),
        ("variant.quantize.calibration={method: gptq, ranges: 2}", "is smoothquant's"),
    ],
)
def test_a_bad_override_is_one_short_line_that_begins_with_it(setting: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        files.load(RECIPES / "int8.yaml", files.overrides([setting]))
    message = str(caught.value)
    assert message.startswith(f"--set {one_line(setting[:20])}")
    assert said in message
    assert len(message) < 400


def test_text_given_by_an_option_stays_that_text() -> None:
    for text in ("zai-org/CogVideoX-2b", "a: b", "null", "12", "[x", "2020-01-01", "'"):
        found = files.load(RECIPES / "int8.yaml", {"model": files.quoted(text)})
        assert found.model == text


def test_fingerprint_moves_with_what_is_measured_and_not_with_the_name() -> None:
    plain = files.load(RECIPES / "bf16.yaml")
    renamed = files.load(RECIPES / "bf16.yaml", {"name": "other", "about": "text"})
    steps = files.load(RECIPES / "bf16.yaml", {"generation.steps": "3"})
    int8 = files.load(RECIPES / "int8.yaml")
    assert plain.fingerprint() == renamed.fingerprint()
    assert plain.fingerprint() != steps.fingerprint()
    assert plain.fingerprint() != int8.fingerprint()
    assert plain.settings_fingerprint() == int8.settings_fingerprint()
    assert plain.settings_fingerprint() != steps.settings_fingerprint()
    # `auto` finds the device that another named, and a longer limit ends no run that was done.
    asked = files.load(RECIPES / "bf16.yaml", {"device": "cpu", "measure.timeout_s": "9"})
    assert asked.fingerprint() == plain.fingerprint()
    assert asked.settings_fingerprint() == plain.settings_fingerprint()
    fewer = files.load(RECIPES / "bf16.yaml", {"measure.repeats": "3"})
    assert fewer.settings_fingerprint() != plain.settings_fingerprint()


def test_a_count_of_prompts_left_open_is_the_fingerprint_of_twelve() -> None:
    """Published records say twelve, which was the default; which prompts has its own digest."""
    twelve = files.load(RECIPES / "bf16.yaml", {"prompts.count": "12"})
    assert files.load(RECIPES / "bf16.yaml").fingerprint() == twelve.fingerprint()
    fewer = files.load(RECIPES / "bf16.yaml", {"prompts.count": "11"})
    assert fewer.settings_fingerprint() != twelve.settings_fingerprint()
