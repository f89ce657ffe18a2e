"""A typo must not silently change a measurement: every fault is one line that names its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import RECIPES

from qbench.errors import InputError
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


def test_override_wins_and_its_fault_names_the_override() -> None:
    changed = files.load(RECIPES / "int8.yaml", files.overrides(["variant.dtype=fp16"]))
    assert changed.variant.dtype == "fp16"
    assert changed.variant.quantize is not None
    with pytest.raises(InputError, match=r"^--set variant\.dtype=fp61: .*'fp16'"):
        files.load(RECIPES / "int8.yaml", files.overrides(["variant.dtype=fp61"]))


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


def test_shipped_recipes_load_under_their_file_names() -> None:
    wanted = {"fp32", "fp16", "bf16", "fp8", "int8", "int8-dynamic", "int8-quanto", "compile"}
    wanted |= {"onnx", "onnx-int8", "tensorrt"}
    wanted |= {"int4", "int2"}
    found = {path.stem: files.load(path) for path in RECIPES.rglob("*.yaml")}
    assert wanted <= set(found)
    below = {path.stem for path in (RECIPES / "attention").glob("*.yaml")}  # named after their axis
    for folder in ("offload", "floor", "faults"):
        below |= {path.stem for path in (RECIPES / folder).glob("*.yaml")}
    for name, item in found.items():
        assert item.name == name or (name in below and item.name.endswith(name))
