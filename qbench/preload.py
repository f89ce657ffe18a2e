"""What every run imports, imported ahead of all of them; see `processes`."""

import os

# Libraries warn as they load, and that belongs in no user's terminal.
_kept = [os.dup(number) for number in (1, 2)]
_nothing = os.open(os.devnull, os.O_WRONLY)
for _number in (1, 2):
    os.dup2(_nothing, _number)
try:
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
finally:
    for _number, _copy in zip((1, 2), _kept, strict=True):
        os.dup2(_copy, _number)
        os.close(_copy)
    os.close(_nothing)
