"""AOTInductor: the denoiser compiled ahead of time, into a package that needs no compiler.

The whole of it is one package; or its repeated block is one, which serves all of them: see
`aoti_blocks`.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.engines.manifest import Bound, Interface, Wrong, compute_capability
from qbench.errors import Unsupported
from qbench.optimizations.rules import Rule

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export.pt2_archive._package import AOTICompiledModel as Package

    from qbench.engines.formats import Run
    from qbench.engines.inputs import Signature
    from qbench.engines.static_seen import Seen
    from qbench.pipelines.base import Module, VideoPipeline
    from qbench.recipe.schema import Variant

PACKAGE = "denoiser.pt2"
MAX_METADATA_BYTES = 2**20
COMPILERS = ("g++", "/usr/bin/g++", "clang++")  # in the place of one that links statically
RUNTIMES = (b"libstdc++.so", b"libc++.so")


def refuses(variant: Variant) -> str:
    if variant.engine not in (None, "aoti"):
        return f"engine: {variant.engine} is another engine"
    if variant.cache:
        return "cache: its hooks decide between blocks, which one compiled program cannot"
    if variant.cuda_graph:
        return "cuda_graph: an engine launches its own kernels"
    if variant.fault:
        return "fault: damage on purpose is not exported"
    if variant.memory.offload:
        return "memory.offload: a package's weights cannot be offloaded by diffusers"
    if variant.quantize and variant.quantize.backend == "quanto":
        return "optimum-quanto's tensors do not pass torch.export"
    if variant.quantize and variant.engine_options.scope == "blocks":
        return "engine_options.scope: blocks takes each block's weights from safetensors, as plain"
    return ""


def write(
    video: VideoPipeline,
    signature: Signature,
    example: Mapping[str, Tensor],
    variant: Variant,
    folder: Path,
    seen: Mapping[str, Seen] | None = None,
) -> Bound:
    """Export and compile the denoiser as it is; axes that grow with a batch stay free."""
    import torch

    from qbench.engines import aoti_blocks, weights
    from qbench.engines.inputs import for_export
    from qbench.optimizations import compilation, int8_products

    compilation.know_cpu()
    path = folder / PACKAGE
    settings = int8_products.settings(video.denoiser.device.type)
    with torch.no_grad():
        if variant.engine_options.scope == "blocks":
            program = aoti_blocks.exported(video, signature, example)
            weights.save(video.denoiser, folder)
        else:
            positional, tensors, free = for_export(video.denoiser, signature, example)
            program = torch.export.export(positional, tensors, dynamic_shapes=free)
        with torch._inductor.config.patch({"cpp.cxx": (None, compiler()), **settings}):
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    facts = metadata(path)
    return Bound(
        cpu_isa=facts.get("AOTI_CPU_ISA", ""),
        compute_capability=compute_capability() if video.denoiser.device.type == "cuda" else "",
        exactly={"torch": torch.__version__.partition("+")[0]},
    )


def open(folder: Path, shell: Module, written: Interface) -> Run:
    import torch

    if written.recipe.variant.engine_options.scope == "blocks":
        from qbench.engines import aoti_blocks

        return aoti_blocks.open(folder / PACKAGE, folder, shell, written)
    package = load(folder / PACKAGE)

    def run(tensors: Mapping[str, Tensor]) -> Tensor:
        # A package reads memory as its example lay there, unchecked, and pipelines pass a time step
        # that was expanded over the batch.
        given = [tensors[spec.name].contiguous() for spec in written.inputs]
        with torch.no_grad():
            result: Tensor = package(*given)
        return result

    return run


def load(path: Path) -> Package:
    """The package, as torch's loader leaves it, without the question that it asks before.

    `aoti_load_package` lists the instruction sets that inductor could use here, only to warn where
    the package names others. For each it compiles and loads a program, over a minute on a slow disk
    and an error where there is no C++ compiler.
    """
    import torch
    from torch.export.pt2_archive._package import AOTICompiledModel

    loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    return AOTICompiledModel(loader)


@functools.cache
def compiler() -> str:
    """A C++ compiler that links libstdc++ dynamically: inductor's, or else another that is here.

    Inductor's where none does.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    usual: str = get_cpp_compiler()
    return next(filter(_links_dynamically, (usual, *COMPILERS)), usual)


def _links_dynamically(cxx: str) -> bool:
    if shutil.which(cxx) is None:
        return False
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch) / "a.cpp", Path(scratch) / "a.so"
        source.write_text("#include <locale>\nstd::locale held() { return std::locale(); }\n")
        line = [cxx, "-shared", "-fPIC", str(source), "-o", str(made)]
        done = subprocess.run(line, capture_output=True)
        return done.returncode == 0 and any(name in made.read_bytes() for name in RUNTIMES)


def metadata(path: Path) -> dict[str, str]:
    """What a package says of itself, read without loading it: platform, CPU and GPU.

    Raises Unsupported where the C++ compiler put a runtime of its own into it: such a package dies
    of SIGSEGV as it loads, the locale of one libstdc++ meeting the facets of torch's.
    """
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if n.endswith("wrapper_metadata.json")]
        if not names or archive.getinfo(names[0]).file_size > MAX_METADATA_BYTES:
            raise Wrong(f"{path}: not an AOTInductor package")
        for name in archive.namelist():
            if name.endswith(".so") and not any(one in archive.read(name) for one in RUNTIMES):
                raise Unsupported(
                    "aoti: the C++ compiler links libstdc++ statically, and such a package dies "
                    "as it is loaded: set CXX to one that does not"
                )
        facts: dict[str, str] = json.loads(archive.read(names[0]))
    return facts


def _is(variant: Variant) -> bool:
    return variant.engine == "aoti"


PACKAGES: tuple[str, ...] = ()
RULES: tuple[Rule, ...] = (
    Rule(
        "AOTInductor",
        _is,
        lambda m: m.compiler,
        "AOTInductor needs a C++ compiler (g++) to build a package, and none was found",
    ),
)
