"""What several tests need: tiny runs of the real program, and the bundled model."""

from __future__ import annotations

import atexit
import fcntl
import gc
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import programs
import pytest

from qbench import subprocesses

if TYPE_CHECKING:
    from qbench.engines.export import Exported

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
NOBODY = 65534
# Two videos of two steps: everything runs, nothing takes long.
SMALL = [
    "--set=generation.steps=2",
    "--set=prompts.count=2",
    "--set=measure.repeats=1",
    "--set=measure.warmup=0",
    "--set=measure.interleave=false",
]


# Nothing that collecting the tests imports is garbage, and looking for some takes a quarter of it.
gc.disable()

# The programs that tests start wait for others that time something on this machine. These keep
# their locks apart, for no figure of a test rests on an idle machine.
tempfile.gettempdir()  # pytest's own folders stay where they are
os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="qb-")
atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)
# Of tensors as small as these two threads wait for each other longer than they compute, all the
# more beside another worker of pytest's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if os.environ.get("PYTEST_XDIST_WORKER"):
    # A suite in the background, or under nohup, is to ignore these; what is tested here is not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# What qbench starts of its own beside a test's process, to read the machine or to export a graph,
# is forked like its program.
subprocesses.run = programs.apart


# These take a minute or more each: one that begins last has the other workers wait for it.
LONGEST = (
    "run/test_ray.py", "pipelines/test_engine_inputs.py", "engines/test_export.py",
    "test_proof.py", "test_judging.py", "optimizations/test_variants.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, the slowest before them: a worker takes a file at a time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    first = [ROOT / "tests" / name for name in LONGEST]

    def place(item: pytest.Item) -> tuple[int, bool]:
        at = first.index(item.path) if item.path in first else len(first)
        return at, item.path not in slow

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Libraries are no garbage of a test, and each collection would look at all of them."""
    gc.collect()
    gc.freeze()
    gc.enable()


def qbench(
    *words: str, cwd: Path = ROOT, limits: Mapping[str, int] = {}
) -> subprocess.CompletedProcess[str]:
    """The program as a user calls it. limits: of the system, by their names in `resource`."""
    return programs.run("qbench", *words, cwd=cwd, limits=limits)


@contextmanager
def as_anybody() -> Iterator[None]:
    """Without root's rights, which no lock of a folder's holds against."""
    own = os.geteuid()
    if own:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(own)


def _once(name: str, make: Callable[[Path], object], base: pytest.TempPathFactory) -> Path:
    """The folder that `make` writes, once for all workers of pytest's: who comes first makes it."""
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        made = base.mktemp(name) / name
        make(made)
        return made
    shared = base.getbasetemp().parent
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = shared / name
        if not made.is_dir():
            (shared / "making").mkdir(exist_ok=True)
            make(shared / "making" / name)
            (shared / "making" / name).rename(made)
        return made


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of a finished sweep: reference, INT8 weights, and one that cannot run on a CPU.

    Which tests a worker runs before another is chance: who runs more in it takes a copy.
    """
    made = _once("finished", _finish, tmp_path_factory)
    folder = shutil.copytree(made, tmp_path_factory.mktemp("runs") / "finished", symlinks=True)
    yield folder
    runs = {kept: sorted(path.name for path in kept.glob("*/*")) for kept in (made, folder)}
    assert runs[folder] == runs[made], "a test ran something in the folder that others read"


def _finish(out: Path) -> None:
    out.mkdir(parents=True)
    names = [str(RECIPES / f"{name}.yaml") for name in ("int8", "tensorrt")]
    done = qbench("run", *names, *SMALL, "--device=cpu", f"--out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    (out / "stdout.txt").write_text(done.stdout)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An export of INT8 weights by torchao, a pipeline that diffusers loads. Not to be changed."""
    return _exported("int8", 0, tmp_path_factory)


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An export of FP32 for ONNX Runtime, with proof by videos. Not to be changed."""
    return _exported("onnx", 4, tmp_path_factory)


def _exported(name: str, videos: int, base: pytest.TempPathFactory) -> Exported:
    from qbench import proof
    from qbench.engines import export, manifest
    from qbench.recipe.files import load

    def make(folder: Path) -> None:
        recipe = load(RECIPES / f"{name}.yaml", {"generation.steps": "4"})
        prove = (lambda made: proof.prove(made, recipe, videos)) if videos else None
        export.export(recipe, folder, prove=prove)

    folder = _once(f"engine-{name}", make, base)
    return export.Exported(folder, *manifest.read(folder))
