"""What an exported engine says about itself, and what must be true of its folder before it is used.

A folder is read in this order, and nothing in it is executed or deserialized before its hash was
checked: the manifest (a small JSON file), the folder's entries by `lstat`, the files' sizes, their
SHA-256, their first bytes. Only then may a format's own loader see them.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qbench import textfile
from qbench.errors import Unsupported, brief
from qbench.recipe import shipped
from qbench.recipe.choices import ExportFormat
from qbench.recipe.schema import Recipe

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 2  # 1 knew no engine that was built without the GPU that it is for
FILE = shipped.EXPORTED
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_FILE_BYTES = 2**40  # a terabyte: no denoiser is that large
MAX_FILES = 10_000
CHUNK = 2**22

Format = ExportFormat
# What is machine code by nature: no hash makes it safe, only knowing who made it.
CODE_FORMATS: tuple[Format, ...] = ("tensorrt", "aoti", "qbench")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Strict):
    """One input or output: its size along each axis, and which axes may take other sizes."""

    name: str
    dtype: str  # as torch names it: float32, bfloat16, int64
    shape: list[int]
    free: list[int] = []  # axes whose size may differ from `shape`

    def check(self, shape: tuple[int, ...], dtype: str) -> None:
        """Raise Unsupported for a shape or a dtype that was not built for.

        dtype: as torch names it. Runtimes are given addresses, and some read whatever lies there.
        """
        if dtype != self.dtype:
            raise Unsupported(
                f"engine: built for {self.name} in {self.dtype}, and the pipeline passes {dtype}: "
                "load its parts in what the engine was built in (torch_dtype)"
            )
        fits = len(shape) == len(self.shape) and all(
            axis in self.free or size == mine
            for axis, (size, mine) in enumerate(zip(shape, self.shape, strict=True))
        )
        if not fits:
            mine = "x".join("n" if i in self.free else str(n) for i, n in enumerate(self.shape))
            raise Unsupported(
                f"engine: built for {self.name} of {mine}, and the pipeline passes "
                f"{'x'.join(map(str, shape))}: export it for this size"
            )


class StoredFile(_Strict):
    size_bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BaseModelFacts(_Strict):
    """The model whose denoiser this was."""

    name: str
    source: str
    pipeline: str  # diffusers' class
    denoiser: str  # diffusers' class
    part: Literal["transformer", "unet"]
    weights: Literal["pretrained", "random"]
    digest: str
    licence: str = ""


class Bound(_Strict):
    """What binds a written denoiser to where it runs; empty fields bind it to nothing."""

    cpu_isa: str = ""  # AVX512 ...: set where machine code for it is inside
    compute_capability: str = ""  # 9.0: set where machine code for a GPU is inside
    exactly: dict[str, str] = {}  # package -> the one version that loads it
    opset: int | None = None
    # Seconds of the build that an earlier one had spent, less those that an exporting process took
    # to start: not of what was written, so not stored.
    spared_s: float = Field(0.0, exclude=True)


class Target(_Strict):
    """Where the engine was built to run."""

    device: Literal["cpu", "cuda"]
    machine: str  # x86_64, aarch64
    bound: Bound = Bound()


Against = Literal["fp32", "variant"]  # the FP32 module, or the variant in Python


class Accuracy(_Strict):
    """How far the engine's output lies from another's, over all captured calls."""

    relative_l2: float  # the largest over the calls
    max_abs: float
    mean_abs: float
    cosine: float  # the smallest over the calls
    calls: int


class Interface(_Strict):
    """An engine as a format's loader needs to know it."""

    recipe: Recipe
    dtype: str  # of the denoiser, as torch names it
    groups: dict[str, int]  # the denoiser's keyword -> how many tensors it is, 0 for a bare one
    inputs: list[TensorSpec]
    target: Target

    @property
    def batched(self) -> frozenset[str]:
        """Inputs whose first axis grows with the videos of a batch."""
        return frozenset(spec.name for spec in self.inputs if 0 in spec.free)

    def nested(self, tensors: Mapping[str, Tensor]) -> dict[str, object]:
        """The denoiser's keywords from tensors by the names of `inputs`."""
        return {
            name: tuple(tensors[f"{name}_{i}"] for i in range(count)) if count else tensors[name]
            for name, count in self.groups.items()
        }


class Description(Interface):
    """An engine with where it comes from, and how it is used."""

    schema_version: int = SCHEMA
    format: Format
    created: str  # ISO 8601, UTC
    recipe_fingerprint: str
    base_model: BaseModelFacts
    outputs: list[TensorSpec]
    layers: dict[str, int]  # what weights are stored as -> number of linears and convolutions
    versions: dict[str, str]
    not_inside: list[str] = []  # choices of the recipe that are made where the engine is used
    calibration: dict[str, str | int | float] = {}
    load: list[str]  # lines of Python


class Manifest(Description):
    """One exported engine. `files` names every file of the folder but the manifest itself."""

    build_s: float
    # What computed the predictions that `fp32` and `variant` compare: the engine, or, where it was
    # built without the GPU that it is for, ONNX Runtime from the graph that it was built of.
    proved_by: Literal["engine", "graph"] = "engine"
    step_s: float | None  # median of the timed calls at export; null where it did not run there
    step_samples: int
    against: Against  # which of the two below must be within the limit
    parity_limit: float  # of relative L2
    fp32: Accuracy  # against the FP32 module
    variant: Accuracy  # against the variant in Python
    files: Annotated[dict[str, StoredFile], Field(max_length=MAX_FILES)]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())


class Wrong(Exception):
    """The folder is not what was exported. One line; `qbench verify` ends with exit code 1."""


class Elsewhere(Exception):
    """The folder cannot be checked on this machine. One line; exit code 2."""


def read(folder: Path) -> tuple[Manifest, str]:
    """The manifest and its SHA-256.

    Raises Wrong, or Elsewhere where its schema is newer or nobody may look into the folder.
    """
    path = folder / FILE
    try:
        kind = path.lstat()
    except PermissionError:
        raise Elsewhere(textfile.closed(path)) from None
    except OSError:
        raise Wrong(f"{folder}: no {FILE}: not a folder that 'qbench export' wrote") from None
    if not stat.S_ISREG(kind.st_mode):
        raise Wrong(f"{path}: not a regular file")
    if kind.st_size > MAX_MANIFEST_BYTES:
        raise Wrong(f"{path}: {kind.st_size:,} bytes, which no manifest has")
    blob = path.read_bytes()
    try:
        facts = json.loads(blob)
        version = facts["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Wrong(f"{path}: not a manifest") from None
    if type(version) is not int or version < 1:
        raise Wrong(f"{path}: schema_version: {brief(version)} is no version of a manifest")
    if version > SCHEMA:
        raise Elsewhere(
            f"{path}: schema version {version}, written by a newer qbench; this one reads {SCHEMA}"
        )
    try:
        manifest = Manifest.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Wrong(f"{path}: {where}: {first['msg']}") from None
    return manifest, hashlib.sha256(blob).hexdigest()


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise Wrong unless the folder holds exactly the manifest's files, byte for byte."""
    check_listing(folder, manifest)
    for name, stored in sorted(manifest.files.items()):
        if sha256(folder / name) != stored.sha256:
            raise Wrong(f"{folder / name}: its SHA-256 is not the manifest's: it was changed")
        _check_kind(folder / name)


def check_listing(folder: Path, manifest: Manifest) -> None:
    """Raise Wrong unless the folder holds the manifest's files by name and size: none is read."""
    for name in manifest.files:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or str(parts) != name or name == FILE:
            raise Wrong(f"{FILE}: {name!r} leads out of the folder")
    found = dict(_entries(folder))
    for name in sorted(found.keys() - manifest.files.keys() - {FILE}):
        raise Wrong(f"{folder / name}: not in the manifest")
    for name, stored in sorted(manifest.files.items()):
        if name not in found:
            raise Wrong(f"{folder / name}: missing")
        if found[name] != stored.size_bytes:
            raise Wrong(f"{folder / name}: {found[name]:,} bytes instead of {stored.size_bytes:,}")


def _entries(folder: Path, above: str = "") -> Iterator[tuple[str, int]]:
    """Every file below the folder with its size. Raises Wrong at what is no plain file."""
    for count, path in enumerate(sorted(folder.iterdir())):
        if count > MAX_FILES:
            raise Wrong(f"{folder}: more than {MAX_FILES:,} entries")
        kind, name = path.lstat(), above + path.name
        if stat.S_ISLNK(kind.st_mode):
            raise Wrong(f"{path}: a symbolic link, which may lead out of the folder")
        if stat.S_ISDIR(kind.st_mode):
            yield from _entries(path, f"{name}/")
        elif stat.S_ISREG(kind.st_mode):
            yield name, kind.st_size
        else:
            raise Wrong(f"{path}: not a regular file")


def _check_kind(path: Path) -> None:
    """Refuse a pickle, whatever it is called: loading one runs code."""
    with path.open("rb") as file:
        head = file.read(9)
    weights = path.suffix == ".safetensors"  # which may begin with any byte: of a length
    code = path.suffix in (".plan", ".cache", ".artifacts")  # which no format takes for weights
    named = path.suffix in (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")
    if weights and head[8:9] != b"{":
        raise Wrong(f"{path}: not safetensors; a pickle is never read")
    if named or (head[:1] == b"\x80" and not (weights or code)):
        raise Wrong(f"{path}: a pickle; weights are read from safetensors only")


def compute_capability() -> str:
    """That of the GPU in use, as `Bound` states it."""
    import torch

    return "{}.{}".format(*torch.cuda.get_device_capability())


def sha256(path: Path) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()


def stored_files(
    folder: Path, known: Mapping[str, StoredFile] = MappingProxyType({})
) -> dict[str, StoredFile]:
    """All files below the folder as a manifest names them, its own left out.

    known: files that were hashed already and are as they were.
    """
    return {
        name: known.get(name) or StoredFile(size_bytes=size, sha256=sha256(folder / name))
        for name, size in _entries(folder)
        if name != FILE
    }
