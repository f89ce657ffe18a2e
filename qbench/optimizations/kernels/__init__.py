"""Kernels that qbench brings itself, compiled by NVRTC at first use: no nvcc, no build step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

Kernel = Any  # what torch compiles by NVRTC, which has no types
HOPPER = "90a"  # the target whose instructions hopper.cu has
SUFFIX = ".cubin"


class Code(NamedTuple):
    """A compiled kernel: its symbol, and what the driver loads."""

    symbol: str
    binary: bytes


# Of this process, by what was compiled: an engine's folder takes them along, and gives them back.
COMPILED: dict[str, Code] = {}


def build(
    file: str,
    *names: str,
    capability: str | None = None,
    defines: dict[str, int] | None = None,
    after: Sequence[str] = (),
) -> list[Kernel]:
    """The kernels of these names in a source beside this file, for the current device.

    `capability` where the source needs a certain target, `defines` what it is compiled for, and
    `after` the sources that stand before it.
    """
    here = Path(__file__).parent
    files = ["common.cu", *(["hopper.cu"] if capability == HOPPER else []), *after, file]
    lines = [f"#define {name} {value}\n" for name, value in (defines or {}).items()]
    source = "".join([*lines, *((here / name).read_text() for name in files)])
    return [_kernel(source, name, capability) for name in names]


def _kernel(source: str, name: str, capability: str | None) -> Kernel:
    import torch
    from torch.cuda._utils import _cuda_load_module, _nvrtc_compile

    target = capability or "{}{}".format(*torch.cuda.get_device_capability())
    text = "\0".join([source, name, target, str(torch.version.cuda)])
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    if key not in COMPILED:
        binary, symbol = _nvrtc_compile(source, name, target)
        COMPILED[key] = Code(symbol, binary)
    code = COMPILED[key]
    return _cuda_load_module(code.binary, [code.symbol])[code.symbol]  # type: ignore[index]


def save(folder: Path) -> None:
    """Write the kernels that this process has compiled."""
    folder.mkdir(exist_ok=True)
    for key, code in COMPILED.items():
        (folder / f"{key}.{code.symbol}{SUFFIX}").write_bytes(code.binary)


def load(folder: Path) -> None:
    """Take the kernels of a folder that was checked: `build` compiles none of them again."""
    for path in folder.glob(f"*{SUFFIX}"):
        key, _, symbol = path.name.removesuffix(SUFFIX).partition(".")
        COMPILED[key] = Code(symbol, path.read_bytes())
