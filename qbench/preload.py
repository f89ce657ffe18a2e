"""What every run imports, imported ahead of all of them; see `processes`."""

import os

# The process that runs are forked from has nothing to say. Libraries warn as they load, and a pipe
# that it held open would keep whoever reads the sweep's output waiting after the sweep is over.
_nothing = os.open(os.devnull, os.O_WRONLY)
for _number in (1, 2):
    os.dup2(_nothing, _number)
os.close(_nothing)


def _capability() -> tuple[int, int] | None:
    """The compute capability of this machine's GPUs by NVML; None where it does not tell, or two.

    NVML, unlike the CUDA driver, survives a fork.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        found = {tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)) for handle in handles}
    except Exception:  # no pynvml, no driver, a container that hides it: import less ahead
        return None
    return found.pop() if len(found) == 1 else None


def _import_all() -> None:
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import torchao.quantization  # noqa: F401
    import torchmetrics.functional.image  # noqa: F401
    from diffusers import (  # noqa: F401
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import AutoTokenizer, CLIPModel, T5EncoderModel, T5Tokenizer  # noqa: F401

    import qbench.quality.measure
    import qbench.runner  # noqa: F401


def _import_beside_a_gpu() -> None:
    """Import all, with an answer from NVML where libraries ask for the GPU as they load.

    They ask whether there is one, and of which capability. Asking the driver would start it in this
    process, and no process forked from this one could use the GPU.
    """
    import torch

    capability = _capability()
    if capability is None:
        return
    asked = torch.cuda.get_device_capability
    torch.cuda.get_device_capability = lambda device=None: capability
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch.cuda.is_available by NVML
    try:
        _import_all()
    finally:
        torch.cuda.get_device_capability = asked
        del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]


if os.path.exists("/dev/nvidiactl"):
    _import_beside_a_gpu()
else:
    _import_all()
