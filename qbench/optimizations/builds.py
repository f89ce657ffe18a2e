"""How torchao and optimum-quanto quantize the named linears of a module, in place."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qbench.errors import Unsupported
from qbench.recipe.schema import Quantize

if TYPE_CHECKING:
    from torch import nn

Build = Callable[["nn.Module", Quantize, Collection[str]], None]
STALE_S = 900  # a build of optimum-quanto's extension takes about a minute
GROUP = 32  # weights that share a scale, in torchao's INT4 and INT2
PACKED_GROUP = 64  # and in qbench's packed weights


def group_of(wanted: Quantize) -> int:
    """Weights that share a scale, in schemes with groups of one size."""
    if wanted.backend not in ("torchao", "qbench"):
        raise ValueError(f"groups of {wanted.backend} are not of one size")
    return wanted.group or (GROUP if wanted.backend == "torchao" else PACKED_GROUP)


@dataclass(frozen=True)
class Torchao:
    """Quantizes by torchao's own configuration, which `config` makes of what is wanted."""

    config: Callable[[Quantize], object]

    def __call__(self, module: nn.Module, wanted: Quantize, names: Collection[str]) -> None:
        try:
            from torchao.quantization import quantize_
        except ImportError as error:
            raise Unsupported("torchao is not installed: pip install torchao") from error
        quantize_(module, self.config(wanted), filter_fn=lambda _, name: name in names)


def int8_weights(wanted: Quantize) -> object:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(set_inductor_config=wanted.tune)


def int8_dynamic(wanted: Quantize) -> object:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig(set_inductor_config=wanted.tune)


def fp8_weights(wanted: Quantize) -> object:
    from torchao.quantization import Float8WeightOnlyConfig

    return Float8WeightOnlyConfig(set_inductor_config=wanted.tune)


def fp8_dynamic(per: Literal["PerRow", "PerTensor"]) -> Callable[[Quantize], object]:
    def config(wanted: Quantize) -> object:
        import torchao.quantization as ao

        return ao.Float8DynamicActivationFloat8WeightConfig(
            granularity=getattr(ao, per)(), set_inductor_config=wanted.tune
        )

    return config


def grouped(format: Literal["int4", "int2"]) -> Callable[[Quantize], object]:
    def config(wanted: Quantize) -> object:
        import torch
        from torchao.quantization import IntxWeightOnlyConfig, PerGroup

        return IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, format), granularity=PerGroup(group_of(wanted))
        )

    return config


def quanto(qtype: str) -> Build:
    def build(module: nn.Module, _: Quantize, names: Collection[str]) -> None:
        try:
            from optimum import quanto as library
        except ImportError as error:
            raise Unsupported(
                "optimum-quanto is not installed: pip install 'qbench[quanto]'"
            ) from error
        build_in_cache()
        library.quantize(module, weights=getattr(library, qtype), include=sorted(names))
        library.freeze(module)

    return build


def build_in_cache() -> None:
    """Have optimum-quanto build its extensions in the cache folder, not inside its own package.

    That may be one that nobody may write to, or that other environments share. What is built there
    for this torch is used as it is. Each environment has a folder of its own: a build names where
    its sources and torch lie, and is made anew, which takes a minute, where they lie elsewhere.
    """
    import torch
    from optimum.quanto.library.extensions.extension import _extensions

    from qbench import cache

    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    built = cache.folder() / "quanto" / f"{torch.__version__}-{environment}"
    for extension in _extensions.values():
        stamp = Path(extension.build_directory) / "pytorch_version.txt"
        if stamp.is_file() and stamp.read_text().strip() == torch.__version__:
            continue
        folder = built / extension.name
        folder.mkdir(parents=True, exist_ok=True)
        forget_stale_locks(built)
        extension.build_directory = str(folder)


def forget_stale_locks(folder: Path) -> None:
    """Remove what builds that were killed have left in the folders of `folder`.

    optimum-quanto compiles helpers at first use, and waits for ever where a build's lock is left.
    """
    for lock in folder.glob("*/lock"):
        if time.time() - lock.stat().st_mtime > STALE_S:
            lock.unlink(missing_ok=True)
