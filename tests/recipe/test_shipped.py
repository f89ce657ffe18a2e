"""Recipes have one name each: the path of their file below the recipes' folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import RECIPES, as_anybody

from qbench import api, listing, prompts
from qbench.cli import exporting, shared
from qbench.engines import verify
from qbench.errors import InputError
from qbench.pipelines import known, specs
from qbench.quality import networks, weights
from qbench.recipe import files, schema, shipped


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
        return [files.load(path).name for path in shipped.find(word)[0]]

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


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A recipe beside a locked folder of some, below the current folder."""
    (tmp_path / "own/locked").mkdir(parents=True)
    for name in ("a", "locked/b", "locked/base"):
        (tmp_path / "own" / f"{name}.yaml").write_text("extends: qbench:int8\n")
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # nobody may come here from above
    Path("cache").mkdir()
    Path("cache").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")  # that of root's is not anybody's
    shared.told_left_out([])  # what it imports may be root's
    Path("own/locked").chmod(0)
    yield Path("own")
    Path("own/locked").chmod(0o755)


def _planned(word: str) -> list[str]:
    return [item.recipe.name for item in shared.planned([word], [], None, None, None)]


def test_a_folder_that_may_not_be_looked_into_is_named(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{own / 'locked'}: cannot be read: Permission denied"
    _planned(str(own))  # what it imports may be root's
    with as_anybody():
        planned = _planned(str(own))
        found = shipped.files(own)
    assert planned == ["fp32", "a"]
    assert f"qbench: left out: {line}" in capsys.readouterr().err.splitlines()
    assert found == [own / "a.yaml", own / "locked"]  # qbench ls says why, as of a file
    (own / "a.yaml").unlink()
    with as_anybody(), pytest.raises(InputError, match="no recipes") as caught:
        shipped.find(str(own))
    assert caught.value.lines[1:] == (f"left out: {line}",)


def test_what_lies_in_a_locked_folder_is_not_said_to_be_absent(own: Path) -> None:
    inside = own / "locked/b.yaml"
    (own / "link.yaml").symlink_to("locked/b.yaml")
    (own / "on.yaml").write_text("\nextends: locked/base.yaml\n")
    refusals = {
        str(own / "locked"): lambda: shipped.find(str(own / "locked")),
        str(inside): lambda: shipped.find(str(inside)),
        str(own / "link.yaml"): lambda: files.load(own / "link.yaml"),
        f"{own / 'on.yaml'}:2: extends: {own / 'locked/base.yaml'}": lambda: files.load(
            own / "on.yaml"
        ),
        f"{own / 'locked/in'}": lambda: listing.show(shared.console(), own / "locked/in"),
        f"{own / 'locked/texts.txt'}": lambda: prompts.load(str(own / "locked/texts.txt")),
    }
    _refused_as_closed(refusals)


def test_models_engines_and_networks_in_a_locked_folder_are_not_said_to_be_absent(
    own: Path,
) -> None:
    """Nor taken for what the hub has."""
    model, folder, inside = known.KNOWN["tiny-cogvideox"], own / "locked", own / "locked/in"

    def fvd(file: Path) -> object:
        return networks.check(schema.Quality(fvd=schema.Fvd(network=str(file))), model)

    def clip(place: Path) -> object:
        return networks.check(schema.Quality(clip=str(place)), model)

    refusals = {
        f"model '{folder}'": lambda: specs.find(str(folder)),
        f"model '{inside}'": lambda: specs.find(str(inside)),
        f"{inside}": lambda: exporting.verify(inside),
        f"{inside / 'engine'}": lambda: api.apply(None, inside / "engine"),
        f"quality.fvd.network: '{inside}'": lambda: fvd(inside),
        f"quality.clip: '{folder}'": lambda: clip(folder),
        f"quality.clip: '{inside}'": lambda: clip(inside),
        f"{inside}.zip": lambda: weights.fetch("lpips-alex", origin=f"{inside}.zip"),
    }
    _refused_as_closed(refusals)
    folder.rename("locked")
    _refused_as_closed({"model 'locked/in'": lambda: specs.find("locked/in")})
    Path("locked").rename(folder)


def test_an_exported_folder_that_may_not_be_looked_into_cannot_be_verified_here(own: Path) -> None:
    place = own / "locked"
    verify.verify(place)
    with as_anybody():
        found = verify.verify(place)
    (check,) = found.checks
    assert check.said == f"{place / 'manifest.json'}: cannot be read: Permission denied"
    assert found.exit_code == 2


def _refused_as_closed(refusals: Mapping[str, Callable[[], object]]) -> None:
    """Each is an error that begins with the place and names the true reason."""
    for place, refused in refusals.items():
        with suppress(InputError):  # what it imports may be root's
            refused()
        with as_anybody(), pytest.raises(InputError) as caught:
            refused()
        assert str(caught.value) == f"{place}: cannot be read: Permission denied"


def test_a_shipped_recipe_takes_the_place_of_one_that_may_not_be_looked_at_with_a_line(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _planned("attention/fp8")
    (own / "locked").rename("attention")
    with as_anybody():
        assert _planned("attention/fp8")
    Path("attention").rename(own / "locked")
    line = "attention/fp8: cannot be read: Permission denied"
    assert f"qbench: left out: {line}" in capsys.readouterr().err.splitlines()


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
