"""The machine and the software that a figure was measured with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from qbench.fields import Bytes, Count, Line, Word

LIBRARIES = (  # every one that a choice of a recipe may compute with
    "torch",
    "diffusers",
    "transformers",
    "torchao",
    "optimum-quanto",
    "cache-dit",
    "xformers",
    "sageattention",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "fa3-fwd",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "triton",
    "tensorrt",
    "tensorrt-rtx-cu13-libs",
    "numpy",
)

FAMILIES = (
    "OMP_",
    "KMP_",
    "GOMP_",
    "MKL_",
    "OPENBLAS_",
    "ONEDNN_",
    "DNNL_",
    "CUBLAS_",
    "CUBLASLT_",
    "CUDNN_",
    "TORCH_",
    "TORCHINDUCTOR_",
    "TORCHDYNAMO_",
    "TRITON_",
    "DIFFUSERS_",
    "MALLOC_",
)
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "NVIDIA_TF32_OVERRIDE",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "LD_PRELOAD",
)
MEASURING = ("prompts", "pipelines", "optimizations", "engines", "meters", "quality", "run")


class Environment(BaseModel):
    """Everything that identifies a machine (hardware) and what runs on it (software)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    device: Word  # cpu or cuda
    device_name: Word
    device_memory_bytes: Bytes
    compute_capability: Word | None = None
    driver: Word | None = None
    cuda: Word | None = None
    cpu_name: Word
    cpu_count: Count
    threads: Count  # that torch computes with
    memory_bytes: Bytes
    platform: Word
    python: Word
    qbench: Word
    commit: Word | None = None
    code: Word | None = None  # digest of the sources of qbench that measure
    # Of the process, that choose instructions or threads.
    variables: Annotated[dict[Word, Line], Field(max_length=200)] = {}
    libraries: Annotated[dict[Word, Word], Field(max_length=100)]

    def hardware(self) -> dict[str, object]:
        """What must be equal for two figures to come from the same kind of machine."""
        facts: dict[str, object] = {"device": self.device, "name": self.device_name}
        if self.device == "cpu":
            facts |= {"threads": self.threads, "cpus": self.cpu_count}
        else:
            facts |= {"memory": self.device_memory_bytes}
        return facts

    def software(self) -> dict[str, object]:
        """What must be equal for two figures to come from the same software."""
        facts: dict[str, object] = {
            "libraries": self.libraries,
            "cuda": self.cuda,
            "python": self.python,
        }
        if self.code:
            facts |= {"qbench": self.code, "variables": self.variables}
        return facts

    def machine(self) -> str:
        """A short name for people and folders: 'nvidia-h200', 'amd-epyc-2t'."""
        plain = "".join(c if c.isalnum() else "-" for c in self.device_name.lower())
        name = "-".join(part for part in plain.split("-") if part)[:40].strip("-")
        return f"{name}-{self.threads}t" if self.device == "cpu" else name


def read(device: str) -> Environment:
    """The environment of this process; `device` is 'cpu' or 'cuda'."""
    import psutil
    import torch

    from qbench import __version__

    cpu, memory = _cpu_name(), psutil.virtual_memory().total
    cuda = device == "cuda"
    properties = torch.cuda.get_device_properties(0) if cuda else None
    return Environment(
        device=device,
        device_name=properties.name if properties else cpu,
        device_memory_bytes=properties.total_memory if properties else memory,
        compute_capability=f"{properties.major}.{properties.minor}" if properties else None,
        driver=_driver() if cuda else None,
        cuda=torch.version.cuda,
        cpu_name=cpu,
        cpu_count=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        platform=platform.platform(terse=True),
        python=platform.python_version(),
        qbench=__version__,
        commit=_commit(),
        code=code(),
        variables={name: v[:500] for name, v in variables(dict(os.environ)).items()},
        libraries=libraries(),
    )


def variables(environment: dict[str, str]) -> dict[str, str]:
    """Those that choose instruction sets, threads, precision or allocators."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if (name in VARIABLES or name.startswith(FAMILIES)) and not name.endswith("_CACHE_DIR")
    }


def code(*more: str) -> str:
    """A digest of the sources that figures depend on; what only shows them is left out.

    more: other parts of the package that something depends on.
    """
    import hashlib

    package = Path(__file__).parent.parent
    hashed = hashlib.sha256()
    for part in (*MEASURING, *more):
        for path in sorted((package / part).rglob("*.[pc]*")):
            if path.suffix in (".py", ".cu", ".cuh"):
                hashed.update(f"{path.relative_to(package).as_posix()}:".encode())
                hashed.update(path.read_bytes())
    return hashed.hexdigest()[:12]


def libraries(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Versions of those that are installed."""
    versions = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    except Exception:  # a figure less in the record, never a failed run
        return None


def _commit() -> str | None:
    """The commit of the source tree that qbench runs from, '+' where it has changes."""
    here = Path(__file__).parent.parent.parent
    if not (here / ".git").exists():
        return None

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def main() -> None:
    """Print the environment as JSON: `python -m qbench.meters.environment cuda`."""
    import gc
    import sys

    gc.disable()  # all that this process does is import, and what is imported is no garbage
    import torch

    wanted = sys.argv[1]
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        print(
            "device: cuda was asked for, but torch finds no GPU; use auto or cpu", file=sys.stderr
        )
        raise SystemExit(2)
    device = "cuda" if there and wanted != "cpu" else "cpu"
    print(read(device).model_dump_json())


if __name__ == "__main__":
    main()
