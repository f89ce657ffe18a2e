"""From an exported graph to a plan of TensorRT, or of TensorRT for RTX: one Python API, two ways.

TensorRT times kernels on the GPU that the plan is for. TensorRT for RTX plans ahead, with or
without a GPU, and compiles for the GPU that it finds as a plan is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import Unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from qbench.engines.inputs import Signature
    from qbench.recipe.schema import EngineOptions

Bindings = Any  # TensorRT's, and what they make: they have no types

# By the name of the module, the distribution whose version a plan is bound to.
LIBRARIES = {
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
}
ERRORS, CHARACTERS = 3, 300  # of what TensorRT says where it fails: how many, and how much of each
VALUES = 2**22  # of latents in the largest batch that a plan is built for


def library() -> Bindings:
    """The bindings that are installed. Raises Unsupported where none can be loaded."""
    there = [name for name in LIBRARIES if importlib.util.find_spec(name) is not None]
    for name in there:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):
            continue
    if there:
        raise Unsupported(
            "TensorRT is installed but could not be loaded; is its libraries' wheel there?"
        )
    raise Unsupported("TensorRT is not installed: pip install 'qbench[tensorrt]'")


def for_rtx(trt: Bindings) -> bool:
    """Whether these are the bindings of TensorRT for RTX."""
    return bool(trt.__name__ != "tensorrt")


def check(chosen: EngineOptions, gpu: bool) -> None:
    """Raise Unsupported where the TensorRT that is installed cannot build as the recipe says.

    gpu: whether this machine has one.
    """
    trt = library()
    named = f"TensorRT {trt.__version__}"
    if not for_rtx(trt):
        if not gpu:
            raise Unsupported(
                f"{named} times kernels on the GPU that it builds for, and there is none here; "
                "TensorRT for RTX builds without"
            )
        if chosen.compute_capability is not None:
            raise Unsupported(
                f"engine_options.compute_capability: {named} builds for the GPU that it runs on"
            )
    elif chosen.compute_capability is not None:
        _target(trt, chosen.compute_capability)


def make(
    path: Path,
    signature: Signature,
    example: Mapping[str, Tensor],
    chosen: EngineOptions,
    gpu: bool,
    timings: Path | None = None,
) -> bytes:
    """A serialized plan for batches of one up to what its memory is set aside for.

    gpu: whether this machine has one.
    timings: where TensorRT keeps what it timed, for the next build.
    """
    trt = library()
    said = logger(trt)
    try:
        builder = trt.Builder(said)
    except TypeError:  # what pybind makes of a null pointer
        raise Unsupported(f"TensorRT {trt.__version__}: no builder: {said.why}") from None
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, said)
    if not parser.parse_from_file(str(path)):
        faults = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise Unsupported(f"TensorRT cannot read the exported model: {faults[:300]}")
    config = builder.create_builder_config()
    if chosen.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, chosen.workspace_mib * 2**20)
    if chosen.level is not None:
        config.builder_optimization_level = chosen.level
    if chosen.compute_capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(_target(trt, chosen.compute_capability), 0)
    if hasattr(trt, "ProfilingVerbosity"):  # the plan then knows its layers' names and types
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    taken = {network.get_input(i).name for i in range(network.num_inputs)}
    for name in taken & signature.batched:
        usual = tuple(example[name].shape)
        one, most = (1, *usual[1:]), (_largest(example), *usual[1:])
        profile.set_shape(name, one, usual, most)
    config.add_optimization_profile(profile)
    cache = None
    if timings is not None and not for_rtx(trt):  # where it is an operation of no effect
        cache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        named = f"{trt.__name__} {trt.__version__}"
        # 1.4.0.76 does for all that is quantized, and after any other error.
        if not gpu and "Cuda Runtime" in "".join(said.errors[:1]):
            raise Unsupported(
                f"{named} asks a GPU's driver as it builds this graph, and there is none here: "
                "build it on a machine with a GPU, or with a newer version (1.7.1 does without)"
            )
        raise Unsupported(f"{named} could not build a plan: {said.why}")
    if cache is not None and timings is not None:
        timings.parent.mkdir(parents=True, exist_ok=True)
        partial = timings.with_suffix(".partial")
        partial.write_bytes(bytes(config.get_timing_cache().serialize()))
        partial.replace(timings)
    return bytes(plan)


def _target(trt: Bindings, wanted: str) -> Bindings:
    """The GPU to build for. Raises Unsupported with those that this version knows."""
    known = {
        f"{number // 10}.{number % 10}": kind
        for name, kind in trt.ComputeCapability.__members__.items()
        if name.startswith("SM") and (number := int(name.removeprefix("SM")))
    }
    if wanted not in known:
        raise Unsupported(
            f"engine_options.compute_capability: {trt.__name__} {trt.__version__} builds for "
            f"{', '.join(known)}, not for {wanted}: leave it out"
        )
    return known[wanted]


def logger(trt: Bindings) -> Bindings:
    """A logger that keeps the first errors, which are all that says why something is not there.

    TensorRT holds no reference to it: it must live as long as what was made with it.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        @property
        def why(self) -> str:
            return "; ".join(self.errors) or "it does not say why"

        def log(self, severity: Bindings, message: str) -> None:
            error = " ".join(message.split())[:CHARACTERS]
            wanted = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            if wanted and error not in self.errors and len(self.errors) < ERRORS:
                self.errors.append(error)

    return Logger()


def _largest(example: Mapping[str, Tensor]) -> int:
    """The largest batch: memory for its activations is set aside as a plan is loaded.

    A multiple of the usual one, which is what each further video brings.
    """
    sample = next(iter(example.values()))
    usual = int(sample.shape[0])
    return usual * max(1, min(256 // usual, VALUES // sample.numel()))
