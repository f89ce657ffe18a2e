"""`weights: random`: a pipeline at true size with no download.

Latency and memory hardly depend on the values of weights, so figures of speed need no checkpoint.
There is no text encoder (that of CogVideoX holds 4.8 billion parameters): the denoiser gets noise
of the right shape instead. Nothing here can say anything about quality.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from qbench.errors import InputError

if TYPE_CHECKING:
    import torch

    from qbench.pipelines.base import Configs, Pipe, VideoPipeline

Module = TypeVar("Module", bound="torch.nn.Module")


def pipeline(
    family: type[VideoPipeline],
    configs: Configs,
    dtypes: dict[str, torch.dtype],
    device: str,
) -> Pipe:
    """A pipeline of the family's class: each part from its configuration, in its own dtype.

    dtypes: by part; "default" is that of the others. Raises InputError for a configuration that
    diffusers cannot build.
    """
    import diffusers
    import torch

    torch.manual_seed(0)
    parts: dict[str, object] = {}
    for name, class_name in family.parts.items():
        kind, config = getattr(diffusers, class_name), dict(configs[name])
        if name == "scheduler":
            kind = getattr(diffusers, str(config.get("_class_name", class_name)))
            parts[name] = kind.from_config(config)
            continue
        dtype = dtypes.get(name, dtypes["default"])
        try:
            parts[name] = module(functools.partial(kind.from_config, config), dtype, device)
        except (TypeError, ValueError, ArithmeticError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(f"weights: random: no {class_name} of this size: {said}") from error
    whole: Pipe = getattr(diffusers, family.pipeline_class)(
        tokenizer=None, text_encoder=None, **parts
    )
    return whole


def module(make: Callable[[], Module], dtype: torch.dtype, device: str) -> Module:
    """The module that `make` returns, its random weights drawn in `dtype` on `device` itself.

    Buffers that no checkpoint holds are computed on the CPU, where `from_pretrained` computes them:
    a GPU rounds a table of sines otherwise, and what is exported must reload bit for bit.
    """
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):  # 2 billion values are slow to draw on a CPU
            made = make().eval().requires_grad_(False).to(device, dtype)
        # What diffusers keeps in FP32 as it loads weights: of Wan the time embedding, for one, and
        # the table of the rotary embedding.
        kept = set(getattr(made, "_keep_in_fp32_modules", None) or ())
        for name, value in _tables(make) if kept or device != "cpu" else ():
            held = kept & set(name.split("."))
            made.get_buffer(name).data = value.to(device, torch.float32 if held else dtype)
    finally:
        torch.set_default_dtype(before)
    for name, value in made.named_parameters():
        if kept & set(name.split(".")):
            value.data = value.data.float()
    return made


def _tables(make: Callable[[], Module]) -> list[tuple[str, torch.Tensor]]:
    """The buffers of floating point that no checkpoint of the module holds, computed on the CPU."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        twin = make()
    kept = twin.state_dict().keys()
    return [(n, b) for n, b in twin.named_buffers() if n not in kept and b.is_floating_point()]
