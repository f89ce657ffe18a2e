"""Where things are kept, with and without a home; and what identifies a file."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT

from qbench import cache, subprocesses
from qbench.meters import roofline


def folder(tmp_path: Path, **environment: str) -> tuple[str, str]:
    """The cache folder of a new process with this environment alone, and its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", "from qbench import cache; print(cache.folder(), cache.folder())"],
        capture_output=True, text=True, cwd=ROOT, env={"TMPDIR": str(tmp_path), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split()
    assert first == second
    return first, done.stderr


def test_a_cache_that_cannot_be_used_gives_way_to_a_folder_of_ones_own(tmp_path: Path) -> None:
    """In its place: a file, or a folder under one, which even root cannot write."""
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        found, note = folder(tmp_path, XDG_CACHE_HOME=str(place))
        assert found == str(tmp_path / f"qbench-{os.getuid()}")
        assert note.count("\n") == 1
        assert "cannot be used" in note
        assert str(place) in note
    assert Path(found).stat().st_mode & 0o077 == 0
    assert folder(tmp_path, XDG_CACHE_HOME=str(tmp_path)) == (str(tmp_path / "qbench"), "")
    assert folder(tmp_path, HOME=str(tmp_path)) == (str(tmp_path / ".cache" / "qbench"), "")


def test_a_folder_that_others_planted_is_not_used(tmp_path: Path) -> None:
    own = tmp_path / f"qbench-{os.getuid()}"
    (tmp_path / "theirs").mkdir()
    own.symlink_to(tmp_path / "theirs")
    found, _ = folder(tmp_path, XDG_CACHE_HOME="/dev/null")
    assert found != str(own)
    assert Path(found).is_dir()


def test_a_digest_is_of_the_whole_file_and_of_what_is_there_now(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(3 * 2**20))
    assert cache.file_digest(path) == hashlib.sha256(bytes(3 * 2**20)).hexdigest()
    before = cache.folder_digest(tmp_path)
    path.write_bytes(bytes(3 * 2**20 - 1) + b"x")
    os.utime(path, ns=(1, 1))
    assert cache.folder_digest(tmp_path) != before


def test_digests_of_large_files_taken_at_once_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is added to what the cache has then, not to what it had when the reading began."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LARGE", 1)
    paths = [tmp_path / str(number) for number in range(32)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(100_000 + number))
    with ThreadPoolExecutor(len(paths)) as pool:
        found = list(pool.map(cache.file_digest, paths))
    assert found == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    kept = json.loads(cache.kept(cache.DIGESTS).read_bytes())
    assert sorted(kept.values()) == sorted(found)


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"device_name": 3}', "\xff"])
def test_damaged_ceilings_are_measured_anew(
    tmp_path: Path, damaged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = roofline.Ceilings(
        device_name="cpu", torch="2", product_flop_per_s={"fp32": 1e9}, copy_bytes_per_s=1e9
    )
    answer = subprocess.CompletedProcess([], 0, made.model_dump_json(), "")
    monkeypatch.setattr(subprocesses, "run", lambda *_: answer)
    (tmp_path / roofline.FILE).write_bytes(damaged.encode("latin-1"))
    assert roofline.kept(tmp_path, "cpu") == made
    assert roofline.Ceilings.model_validate_json((tmp_path / roofline.FILE).read_text()) == made
