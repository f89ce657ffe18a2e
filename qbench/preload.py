"""What every run imports, imported ahead of all of them; see `processes`."""

import os

# The process that runs are forked from has nothing to say. Libraries warn as they load, and a pipe
# that it held open would keep whoever reads the sweep's output waiting after the sweep is over.
_nothing = os.open(os.devnull, os.O_WRONLY)
for _number in (1, 2):
    os.dup2(_nothing, _number)
os.close(_nothing)

import torch  # noqa: E402, F401

# Other libraries ask an NVIDIA driver about its device as they load, and that survives no fork.
if not os.path.exists("/dev/nvidiactl"):
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
