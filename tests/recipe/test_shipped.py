"""Recipes have one name each: the path of their file below the recipes' folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import RECIPES

from qbench.errors import InputError
from qbench.recipe import files, shipped


def test_every_shipped_recipe_is_named_by_its_path() -> None:
    found = {path: files.load(path).name for path in shipped.files()}
    assert found == {
        path: path.relative_to(shipped.FOLDER).with_suffix("").as_posix() for path in found
    }
    assert {"fp32", "int8", "fast", "attention/fp8", "faults/black", "cache/pab"} <= {
        *found.values()
    }
    assert sorted(found.values()) == sorted(shipped.names())
    assert shipped.FOLDER.resolve() == RECIPES.resolve()  # one source


def test_words_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def found(word: str) -> list[str]:
        return [files.load(path).name for path in shipped.find(word)]

    assert found("int8") == ["int8"]
    assert found("attention/fp8") == ["attention/fp8"]
    assert found("compile") == ["compile"]  # a recipe before a folder of its name
    assert found("compile/") == ["compile/compile-model", "compile/int8-compile"]
    assert "cache/pab" in found("cache")
    assert {"fp32", "fast"} <= set(found("recipes"))
    assert "base" not in found("recipes")
    (tmp_path / "int8").mkdir()  # a folder without recipes hides nothing
    assert found("int8") == ["int8"]
    (tmp_path / "int8" / "own.yaml").write_text("extends: qbench:int8\n")
    assert found("int8") == ["own"]
    with pytest.raises(InputError, match=r"did you mean 'int8\.yaml'"):
        shipped.find(str(RECIPES / "int9.yaml"))
    with pytest.raises(InputError, match="did you mean 'attention/flash-4'"):
        shipped.find("attention/flash-5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no recipes"):
        shipped.find("empty")


def test_copied_recipes_are_whole_and_nothing_is_overwritten(tmp_path: Path) -> None:
    copied = shipped.copy(tmp_path / "own")
    assert [files.load(path).name for path in copied] == [
        files.load(path).name for path in shipped.files()
    ]
    with pytest.raises(InputError, match="is there already"):
        shipped.copy(tmp_path / "own")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is there already"):
        shipped.copy(tmp_path / "file")
