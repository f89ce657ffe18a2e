"""An exported folder is there whole or not at all, and what was done to it is told in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qbench.engines import folder, manifest
from qbench.engines.manifest import Elsewhere, Wrong
from qbench.errors import InputError
from qbench.recipe.schema import Recipe


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A folder with the files of an engine and a manifest that is true of them."""
    place = tmp_path / "engine"
    place.mkdir()
    save_file({"weight": torch.zeros(4)}, place / "weights.safetensors")
    (place / "config.json").write_text("{}")
    _write(place)
    return place


def _write(place: Path, **changes: object) -> None:
    near = manifest.Accuracy(relative_l2=0.0, max_abs=0.0, mean_abs=0.0, cosine=1.0, calls=1)
    facts = manifest.Manifest(
        format="diffusers",
        created="2026-01-01T00:00:00+00:00",
        recipe=Recipe(name="int8"),
        recipe_fingerprint="0",
        base_model=manifest.BaseModelFacts(
            name="m", source="m", pipeline="P", denoiser="D", part="transformer",
            weights="pretrained", digest="0",
        ),
        dtype="float32", groups={}, inputs=[], outputs=[], layers={}, versions={}, load=[],
        target=manifest.Target(device="cpu", machine="x86_64"),
        build_s=0.0, step_s=0.0, step_samples=1, against="variant", parity_limit=0.02,
        fp32=near, variant=near, files=manifest.stored_files(place),
    )  # fmt: skip
    text = json.dumps(facts.model_dump(mode="json") | changes)
    (place / manifest.FILE).write_text(text)


def _checked(place: Path) -> None:
    written, _ = manifest.read(place)
    manifest.check_files(place, written)


def test_a_folder_as_it_was_written_is_good(engine: Path) -> None:
    _checked(engine)


def _flipped(place: Path) -> None:
    path = place / "weights.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)


def _outward_link(place: Path) -> None:
    path = place / "config.json"
    shutil.move(path, place.parent / "outside.json")
    path.symlink_to(place.parent / "outside.json")


def _outward_name(place: Path) -> None:
    (place.parent / "outside.json").write_text("{}")
    facts = json.loads((place / manifest.FILE).read_text())
    facts["files"]["../outside.json"] = facts["files"].pop("config.json")
    (place / "config.json").unlink()
    (place / manifest.FILE).write_text(json.dumps(facts))


def _pickled(place: Path) -> None:
    torch.save({"weight": torch.zeros(4)}, place / "weights.safetensors")
    _write(place)  # with hashes that are true of it


def _old_pickle(place: Path) -> None:
    import pickle

    (place / "weights.bin").write_bytes(pickle.dumps([1, 2, 3]))
    _write(place)


def _absurd(place: Path) -> None:
    facts = json.loads((place / manifest.FILE).read_text())
    facts["files"]["config.json"]["size_bytes"] = 2**60
    (place / manifest.FILE).write_text(json.dumps(facts))


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte": (_flipped, "its SHA-256 is not the manifest's"),
    "a missing file": (lambda p: (p / "config.json").unlink(), "config.json: missing"),
    "another file": (lambda p: (p / "more.py").write_text(""), "more.py: not in the manifest"),
    "a longer file": (lambda p: (p / "config.json").write_text("{}  "), "4 bytes instead of 2"),
    "a link out of the folder": (_outward_link, "a symbolic link"),
    "a name out of the folder": (_outward_name, "leads out of the folder"),
    "a FIFO": (lambda p: os.mkfifo(p / "pipe"), "not a regular file"),
    "a pickle for safetensors": (_pickled, "not safetensors"),
    "a pickle of its own name": (_old_pickle, "a pickle"),
    "an absurd size": (_absurd, "files.config.json.size_bytes"),
    "no manifest": (lambda p: (p / manifest.FILE).unlink(), "not a folder that"),
    "no JSON": (lambda p: (p / manifest.FILE).write_text("[" * 100_000), "not a manifest"),
    "an endless manifest": (
        lambda p: os.truncate(p / manifest.FILE, 10 * 2**20), "which no manifest has",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_told(engine: Path, name: str) -> None:
    change, said = TAMPERINGS[name]
    change(engine)
    with pytest.raises(Wrong, match=said) as caught:
        _checked(engine)
    assert "\n" not in str(caught.value)


def test_a_newer_manifest_cannot_be_checked_here(engine: Path) -> None:
    _write(engine, schema_version=manifest.SCHEMA + 1)
    with pytest.raises(Elsewhere, match="newer qbench"):
        _checked(engine)


@pytest.mark.parametrize("version", ["9", True, 0, -1])
def test_a_version_is_a_number(engine: Path, version: object) -> None:
    _write(engine, schema_version=version)
    with pytest.raises(Wrong, match="is no version of a manifest"):
        _checked(engine)


# Written whole, or not at all ---------------------------------------------------------------------


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with folder.written_beside(tmp_path / "out") as partial:
            (partial / "half").write_text("x")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert list(tmp_path.iterdir()) == []


def test_whoever_may_read_other_new_files_may_read_the_tensors(tmp_path: Path) -> None:
    """safetensors writes files that their owner alone may read, and a server is another user."""
    out = tmp_path / "out"
    before = os.umask(0o027)
    try:
        with folder.written_beside(out) as partial:
            (partial / "denoiser").mkdir()
            save_file({"x": torch.zeros(1)}, partial / "denoiser" / "x.safetensors")
            (partial / "run.so").touch(0o755)
    finally:
        os.umask(before)
    found = {str(path.relative_to(out)): path.stat().st_mode & 0o777 for path in out.rglob("*.s*")}
    assert found == {"denoiser/x.safetensors": 0o640, "run.so": 0o750}
    assert not (out / ".mode").exists()


def test_what_is_there_is_replaced_at_once_and_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("x")
    with pytest.raises(InputError, match="--force"):
        folder.check_place(out, force=False)
    folder.check_place(out, force=True)
    with folder.written_beside(out) as partial:
        (partial / "new").write_text("x")
        assert (out / "old").is_file()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_a_killed_export_leaves_nothing_at_its_place_and_the_next_one_cleans_up(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    code = (
        "import sys, time; from pathlib import Path; from qbench.engines import folder\n"
        "with folder.written_beside(Path(sys.argv[1])) as partial:\n"
        "    for i in range(200):\n"
        "        (partial / f'{i}').write_bytes(bytes(4096)); time.sleep(0.002)\n"
    )
    for moment in (0.0, 0.05, 0.15):
        process = subprocess.Popen([sys.executable, "-c", code, str(out)])
        while not list(tmp_path.glob(".out.*.partial")):
            time.sleep(0.005)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
    subprocess.run([sys.executable, "-c", code, str(out)], check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(list(out.iterdir())) == 200


@pytest.mark.parametrize("length", [0x80, 0x180])
def test_safetensors_whose_header_is_as_long_as_a_pickle_begins_are_no_pickle(
    tmp_path: Path, length: int
) -> None:
    header = b'{"__metadata__":{"of":"nothing"}}'.ljust(length)
    (tmp_path / "weights.safetensors").write_bytes(length.to_bytes(8, "little") + header)
    manifest._check_kind(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("kind", ["python", "safetensors"])
def test_a_disk_without_room_is_one_line_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    code = (
        "import resource, sys, torch; from pathlib import Path; from qbench.engines import folder\n"
        "from qbench.errors import InputError; from safetensors.torch import save_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    with folder.written_beside(Path(sys.argv[1])) as partial:\n"
        "        if sys.argv[2] == 'python': (partial / 'x').write_bytes(bytes(2**20))\n"
        "        else: save_file({'x': torch.zeros(2**18)}, partial / 'x.safetensors')\n"
        "except InputError as error: print(error)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "out"), kind]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("cannot be written: File too large; nothing was left there")
    assert list(tmp_path.iterdir()) == []
