"""Looking a model folder over before anything is loaded, so that what is wrong is one line.

Weights are not read, only their headers: a download that broke off, a pointer of Git LFS or a FIFO
is told apart from weights at once, where loading would fail deep inside a library, or hang.
"""

from __future__ import annotations

import json
import re
import signal
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.errors import InputError, LoadError, brief
from qbench.pipelines import families

if TYPE_CHECKING:
    from qbench.pipelines.base import Config, VideoPipeline

INDEX = "model_index.json"
LARGEST_JSON = 32 * 2**20  # an index of thousands of shards' tensors has a few
LARGEST_HEADER = 32 * 2**20  # of a safetensors file; those of 14B models have 0.2 MiB
LFS = b"version https://git-lfs"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# `name.fp16.safetensors`, `name.fp16-00001-of-00002.safetensors`
VARIANT = re.compile(r"\.([A-Za-z0-9_]+?)(-\d{5}-of-\d{5})?\.safetensors$")
# Fields of a configuration that count something, and how many there can be of it.
COUNTS = {
    "num_layers": 1000, "num_attention_heads": 1000, "attention_head_dim": 4096,
    "in_channels": 65_536, "out_channels": 65_536, "latent_channels": 65_536, "z_dim": 65_536,
    "text_embed_dim": 65_536, "text_dim": 65_536, "cross_attention_dim": 65_536,
    "ffn_dim": 1_000_000, "sample_frames": 100_000, "sample_height": 100_000,
    "sample_width": 100_000, "sample_size": 100_000, "patch_size": 1024, "patch_size_t": 1024,
    "temporal_compression_ratio": 1024, "max_text_seq_length": 100_000, "layers_per_block": 1000,
    "block_out_channels": 65_536,
}  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """A folder in diffusers' layout, as its configurations describe it."""

    path: Path
    family: type[VideoPipeline]
    index: Mapping[str, object]
    configs: dict[str, Config]  # of the parts that the family lists


def read(path: Path) -> Folder:
    """The folder's family and configurations.

    Raises InputError where qbench drives no such pipeline, LoadError where files are broken.
    """
    index = _json(path / INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise LoadError(f"{path / INDEX}: it names no pipeline (`_class_name`)")
    family = families.of_class(name)
    configs: dict[str, Config] = {}
    for part, expected in family.parts.items():
        file = path / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        entry = index.get(part)
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)):
            raise LoadError(f"{path / INDEX}: it has no {part}, which a {name} needs")
        configs[part] = config = _json(file)
        found = config.get("_class_name", entry[1])
        if part != "scheduler" and (entry[1] != expected or found != expected):
            other = entry[1] if entry[1] != expected else found
            raise LoadError(f"{file}: a {name} has a {expected}, and this is a {brief(other)}")
        _check_counts(file, config)
    try:
        family.grid(configs)
    except (AssertionError, TypeError, ValueError, ArithmeticError, IndexError) as error:
        raise LoadError(f"{path}: its configuration makes no video: {error}") from error
    return Folder(path, family, index, configs)


def check(folder: Folder, variant: str | None) -> None:
    """Refuse a folder whose weights cannot be loaded. Raises LoadError.

    variant: of the weights' files, such as fp16 for `diffusion_pytorch_model.fp16.safetensors`.
    """
    for part, entry in folder.index.items():
        if part.startswith("_") or not isinstance(entry, list) or None in entry:
            continue
        where = folder.path / part
        if not where.is_dir():
            raise LoadError(f"{where}: missing, and {INDEX} names it")
        if part.startswith(("transformer", "unet", "vae", "text_encoder")):
            _json(where / "config.json")
            _check_weights(where, variant)
    for file in folder.path.rglob("*"):
        if not (file.is_dir() or _regular(file)):
            raise LoadError(f"{file}: neither a file nor a folder")


def _check_counts(file: Path, config: Mapping[str, object]) -> None:
    for name, most in COUNTS.items():
        value = config.get(name)
        for number in value if isinstance(value, list) else [value]:
            if number is None:
                continue
            # Written as 4 or as 4.0.
            if not (isinstance(number, (int, float)) and 0 < number <= most and number % 1 == 0):
                raise LoadError(f"{file}: {name}: {brief(value)} is not between 1 and {most}")


def _check_weights(where: Path, variant: str | None) -> None:
    files = sorted(where.glob("*.safetensors"))
    variants = {file: _variant(file) for file in files}
    usable = [file for file in files if variants[file] == variant] if variant else []
    usable = usable or [file for file in files if variants[file] is None]
    if not usable:
        others = sorted({name for name in variants.values() if name})
        if others:
            raise LoadError(
                f"{where}: weights only as variant {', '.join(others)}: "
                f"set weights_variant to {'it' if len(others) == 1 else 'one of them'}"
            )
        if any(file.suffix in PICKLES for file in where.iterdir()):
            raise LoadError(
                f"{where}: weights only as pickles, which run code as they are read; "
                "qbench reads safetensors"
            )
        raise LoadError(f"{where}: no weights (*.safetensors)")
    for shards in where.glob("*.safetensors.index*.json"):
        listed = _json(shards).get("weight_map")
        if not isinstance(listed, dict):
            raise LoadError(f"{shards}: no `weight_map`")
        needed = {name for name in listed.values() if isinstance(name, str)}
        missing = sorted(name for name in needed if not (where / name).is_file())
        if missing and _variant(where / missing[0]) in (variant, None):
            raise LoadError(f"{where / missing[0]}: missing, and {shards.name} names it")
    for file in usable:
        check_safetensors(file)


def _variant(file: Path) -> str | None:
    found = VARIANT.search(file.name)
    return found.group(1) if found else None


def check_safetensors(file: Path) -> None:
    """Whether the header fits the file. Raises LoadError for what is cut off, or is none."""
    if not _regular(file):
        raise LoadError(f"{file}: not a file that can be read")
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(len(LFS))
        if start == LFS:
            raise LoadError(f"{file}: a pointer of Git LFS, not the weights: run `git lfs pull`")
        opened.seek(0)
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            raise LoadError(f"{file}: cut off, or no safetensors: {size} bytes are there")
        if length > LARGEST_HEADER:
            raise LoadError(f"{file}: its header has {length} bytes; at most {LARGEST_HEADER}")
        try:
            header = json.loads(opened.read(length))
            ends = [
                int(entry["data_offsets"][1])
                for name, entry in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise LoadError(f"{file}: no safetensors: its header cannot be read") from error
    needed = 8 + length + max(ends, default=0)
    if size != needed:
        raise LoadError(f"{file}: cut off: {size} bytes are there and its header says {needed}")


def _json(file: Path) -> dict[str, object]:
    """A JSON object from a regular file of bearable size. Raises LoadError."""
    if not _regular(file):
        missing = not file.exists()
        raise LoadError(f"{file}: {'missing' if missing else 'not a file that can be read'}")
    if file.stat().st_size > LARGEST_JSON:
        raise LoadError(f"{file}: {file.stat().st_size} bytes, more than any configuration has")
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{file}: no JSON that can be read: {brief(str(error), 120)}") from error
    if not isinstance(found, dict):
        raise LoadError(f"{file}: not a JSON object")
    return found


def _regular(file: Path) -> bool:
    try:
        return stat.S_ISREG(file.stat().st_mode)
    except OSError:
        return False


def index_of(name: str, path: Path) -> dict[str, object]:
    """The index of a folder that a user named. Raises InputError where it is no pipeline's."""
    if not (path / INDEX).exists():
        raise InputError(f"model {brief(name)}: no {INDEX} there; not a diffusers pipeline")
    try:
        return _json(path / INDEX)
    except LoadError:
        return {}  # the run says so, in its record


@contextmanager
def time_limit(seconds: float, message: str) -> Iterator[None]:
    """Raise LoadError with `message` after so many seconds, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ended(*_: object) -> None:
        raise LoadError(message)

    before = signal.signal(signal.SIGALRM, ended)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
