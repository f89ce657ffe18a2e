"""What every run imports, imported ahead of all of them; see `processes`.

Beside an NVIDIA GPU the driver must not be started here, or no process forked from this one could
use it. Libraries ask two things about the GPU as they load, whether there is one and of which
capability, and NVML, which survives a fork, answers both. What asks for more is left to the runs.
"""

import contextlib
import gc
import importlib
import os
from types import ModuleType

# The process that runs are forked from has nothing to say. Libraries warn as they load, and a pipe
# that it held open would keep whoever reads the sweep's output waiting after the sweep is over.
_nothing = os.open(os.devnull, os.O_WRONLY)
for _number in (1, 2):
    os.dup2(_nothing, _number)
os.close(_nothing)
# Nothing that is imported is garbage, and looking for some takes a tenth of the time.
gc.disable()

MODULES = (
    "scipy.stats",
    "torchao.quantization",
    "diffusers.pipelines.cogvideo.pipeline_cogvideox",
    "transformers.models.clip.modeling_clip",
    "transformers.models.t5.modeling_t5",
    "transformers.models.auto.tokenization_auto",
    "qbench.quality.evaluate",
    "qbench.run.worker",
    "qbench.run.prepare",
)


class _DriverAsked(BaseException):
    """A library wants the GPU's driver as it loads. No `except Exception` of its own hears it."""


def _refuse() -> None:
    raise _DriverAsked


def _capability() -> tuple[int, int] | None:
    """The compute capability of this machine's GPUs by NVML; None where it tells none, or two."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        found = {tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)) for handle in handles}
    except Exception:  # no pynvml, no driver, a container that hides it: import nothing ahead
        return None
    return found.pop() if len(found) == 1 else None


def _import_all() -> None:
    for name in MODULES:
        with contextlib.suppress(Exception, _DriverAsked):  # a run that needs it will say why
            importlib.import_module(name)


def _import_beside_a_gpu() -> None:
    import torch
    from torch.utils import _triton

    capability = _capability()
    if capability is None:
        return
    triton = _triton.has_triton_package() and capability >= (7, 0)
    answers: dict[tuple[ModuleType, str], object] = {
        (torch.cuda, "get_device_capability"): lambda device=None: capability,
        (_triton, "has_triton"): lambda: triton,
        (torch.cuda, "_lazy_init"): _refuse,
    }
    before = {place: getattr(*place) for place in answers}
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch.cuda.is_available by NVML
    try:
        for place, answer in answers.items():
            setattr(*place, answer)
        _import_all()
    finally:
        for place, own in before.items():
            setattr(*place, own)
        del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]


if os.path.exists("/dev/nvidiactl"):
    _import_beside_a_gpu()
else:
    _import_all()
# Half a million objects of libraries are no garbage of a run, and each of its collections would
# look at them all, a third of a second, and so copy the memory that it shares with the others.
gc.collect()
gc.freeze()
gc.enable()
