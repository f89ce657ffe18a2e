"""From an engine's folder to a denoiser that a diffusers pipeline can be given."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

from qbench import textfile
from qbench.engines import evidence, formats, manifest
from qbench.engines.manifest import Description, Elsewhere, Manifest, Wrong
from qbench.recipe.choices import AS_MODULE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qbench.engines.denoiser import EngineDenoiser
    from qbench.engines.formats import Run
    from qbench.pipelines.base import Module

CONFIG = "denoiser"  # folder of the denoiser's configuration, of which the module is made anew
REGISTER, KEPT = "exported.json", 1000  # SHA-256 of the manifests that this machine wrote
TIMED = 5
_SOURCES: WeakKeyDictionary[object, Path] = WeakKeyDictionary()  # what was loaded, and from where


def load_engine(
    place: str | Path, *, trust: bool = False, expect: str | None = None
) -> EngineDenoiser | Module:
    """The engine of a folder that `qbench export` wrote, to be given to a diffusers pipeline.

    Formats that hold torch's own module (diffusers and qbench) give that module. The files are
    checked against the manifest before anything of them is loaded. Machine code (formats aoti,
    tensorrt and qbench) that was not exported on this machine needs `expect`, the SHA-256 of the
    manifest that the export printed, or `trust`. Raises Wrong where the folder is not what was
    exported, and Elsewhere where this machine cannot load it.
    """
    folder = Path(place)
    written, digest = manifest.read(folder)
    manifest.check_files(folder, written)
    check_machine(written)
    check_trust(folder, written, digest, trust, expect)
    return denoiser(folder, written)


def denoiser(folder: Path, written: Manifest) -> EngineDenoiser | Module:
    """The denoiser of a folder that is known to be good: a module where the format holds one."""
    from qbench.engines.denoiser import EngineDenoiser
    from qbench.engines.inputs import Signature

    shell = _shell(folder, written)
    made: EngineDenoiser | Module = formats.module(written.format).open(folder, shell, written)
    if written.format not in AS_MODULE:
        signature = Signature(type(shell), written.groups, written.batched)
        stored = written.size_bytes - written.files[evidence.INPUTS].size_bytes
        original = _original(shell, written)
        made = EngineDenoiser(original, signature, cast("Run", made), stored, written.inputs)
    _SOURCES[made] = folder.resolve()
    return made


def source_of(denoiser: object) -> Path | None:
    """The folder that `load_engine` made this denoiser of."""
    return _SOURCES.get(denoiser)


def opened(folder: Path, written: Description) -> Run:
    """The engine of a folder that is known to be good, as a function of tensors by name."""
    from qbench.engines.base import run_of

    made = formats.module(written.format).open(folder, _shell(folder, written), written)
    if written.format not in AS_MODULE:
        return cast("Run", made)
    return run_of(made, written)


def timed(run: Run, inputs: Mapping[str, Tensor], device: str) -> list[float]:
    """Device seconds of some calls, after two more."""
    import torch

    from qbench.meters import clock

    moved = {name: value.to(device) for name, value in inputs.items()}
    with torch.no_grad():
        return clock.sample(lambda: run(moved), device, warmup=2, repeats=TIMED)


def check_machine(written: Description) -> None:
    """Raise Elsewhere where this machine cannot run the engine, told from the manifest alone."""
    import torch

    target, bound = written.target, written.target.bound
    if platform.machine() != target.machine:
        raise Elsewhere(f"built for {target.machine}, and this machine is {platform.machine()}")
    if target.device == "cuda" and not torch.cuda.is_available():
        raise Elsewhere("built for an NVIDIA GPU, and there is none here")
    if bound.compute_capability:
        here = manifest.compute_capability()
        if here != bound.compute_capability:
            raise Elsewhere(
                f"built for GPUs of compute capability {bound.compute_capability}; this is {here}"
            )
    lacking = set(bound.cpu_isa.split()) - cpu_isa() if target.device == "cpu" else set()
    if lacking:
        raise Elsewhere(f"built for a CPU with {', '.join(sorted(lacking))}, which this one lacks")
    for package, version in bound.exactly.items():
        here = installed(package)
        if here != version:
            found = f"{here} is installed" if here else "it is not installed"
            raise Elsewhere(f"only {package} {version} loads it, and {found}")


def check_trust(
    folder: Path, written: Manifest, digest: str, trust: bool, expect: str | None
) -> None:
    """Raise Wrong where the manifest is not the expected one, Elsewhere where nobody vouched."""
    if expect is not None and expect.lower() != digest:
        raise Wrong(f"{folder / manifest.FILE}: its SHA-256 is {digest}, not {expect}")
    vouched = trust or expect is not None or digest in _registered()
    if written.format in manifest.CODE_FORMATS and not vouched:
        raise Elsewhere(
            f"{written.format} is machine code, and this folder was not exported on this machine: "
            "give the SHA-256 that the export printed with --expect, or --trust it"
        )


def register(digest: str) -> None:
    """Remember a manifest that this machine wrote."""
    path = _register()
    path.parent.mkdir(parents=True, exist_ok=True)
    textfile.replace(path, json.dumps([*_registered(), digest][-KEPT:]))


def _registered() -> list[str]:
    try:
        found = json.loads(_register().read_text())
    except (OSError, ValueError):
        return []
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def _register() -> Path:
    from qbench import cache

    return cache.folder() / REGISTER


def installed(package: str) -> str:
    """The version of a package without its local part; empty where it is not here."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def cpu_isa() -> set[str]:
    """The instruction sets of this CPU by the names that AOTInductor writes into a package."""
    from torch._inductor import cpu_vec_isa

    # What an x86 processor says of itself. Inductor's own list leaves out what the C++ compiler
    # cannot build, and a machine that loads a package needs none.
    here = cpu_vec_isa.x86_isa_checker() or map(str, cpu_vec_isa.valid_vec_isa_list())
    return {word for isa in here for word in isa.upper().split()}


def _shell(folder: Path, written: Description) -> nn.Module:
    """The denoiser without data: its class, its configuration, the names of its inputs."""
    import torch

    with torch.device("meta"):
        module: nn.Module = _kind(written).from_config(configuration(folder, written))
    return module


def configuration(folder: Path, written: Description) -> dict[str, object]:
    """Of the denoiser that was exported."""
    found: dict[str, object] = _kind(written).load_config(str(folder / CONFIG))
    return found


def _kind(written: Description) -> type[Module]:
    import diffusers

    kind: type[Module] | None = getattr(diffusers, written.base_model.denoiser, None)
    if kind is None:
        raise Elsewhere(f"this diffusers has no {written.base_model.denoiser}")
    return kind


def _original(shell: nn.Module, written: Description) -> SimpleNamespace:
    import torch

    return SimpleNamespace(
        config=shell.config,
        dtype=getattr(torch, written.dtype),
        device=torch.device(written.target.device),
    )
