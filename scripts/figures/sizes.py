"""Parameters of the known models' parts, counted on modules that hold no values."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qbench.pipelines import families, known
from scripts.figures.values import Fault

if TYPE_CHECKING:
    from torch import nn

    from qbench.pipelines.base import Configs, VideoPipeline

# Text encoders by their repositories' configurations: T5 v1.1 XXL, OpenCLIP's ViT-H as Stable
# Diffusion 2 has it (its last layer left out), and umT5 XXL.
T5: Mapping[str, object] = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24,
    "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
CLIP: Mapping[str, object] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
    "num_attention_heads": 16, "projection_dim": 512, "vocab_size": 49408,
}  # fmt: skip
TEXT_ENCODERS = {
    "cogvideox": ("T5EncoderModel", "T5Config", T5),
    "zeroscope": ("CLIPTextModel", "CLIPTextConfig", CLIP),
    "wan": ("UMT5EncoderModel", "UMT5Config", {**T5, "vocab_size": 256384}),
}


def family_of(model: str) -> tuple[type[VideoPipeline], Configs]:
    """The family that drives a known model, and its parts' configurations."""
    for name in families.known():
        family = families.of_class(name)
        configs = family.random_configs(known.KNOWN[model].name)
        if configs is not None:
            return family, configs
    raise Fault(f"no family knows the size of {model}")


@functools.cache
def denoiser(model: str) -> nn.Module:
    """The denoiser in BF16 on the meta device."""
    family, configs = family_of(model)
    return _part(family.parts[family.part], dict(configs[family.part]))


def _part(class_name: str, config: Mapping[str, object]) -> nn.Module:
    import diffusers
    import torch

    from qbench.pipelines import random_weights

    make = functools.partial(getattr(diffusers, class_name).from_config, dict(config))
    made: nn.Module = random_weights.module(make, torch.bfloat16, "meta")
    return made


@functools.cache
def parameters(model: str) -> dict[str, int]:
    """By part: denoiser, vae, text encoder."""
    import torch
    import transformers

    family, configs = family_of(model)
    kind, config, fields = next(v for k, v in TEXT_ENCODERS.items() if model.startswith(k))
    with torch.device("meta"):
        encoder = getattr(transformers, kind)(getattr(transformers, config)(**fields))
    parts = {
        "denoiser": denoiser(model),
        "vae": _part(family.parts["vae"], dict(configs["vae"])),
        "text encoder": encoder,
    }
    return {name: _count(module) for name, module in parts.items()}


def _count(module: nn.Module) -> int:
    return sum({id(p): p.numel() for p in module.parameters()}.values())


def stored(model: str, scheme: str, backend: str = "qbench", exclude: tuple[str, ...] = ()) -> int:
    """Bytes of the denoiser with its linears' weights in a scheme and the rest in BF16."""
    import torch

    from qbench.optimizations import quantization, schemes
    from qbench.optimizations.calibration.numbers import bits
    from qbench.recipe.schema import Quantize

    module = denoiser(model)
    wanted = Quantize.model_validate(
        {"backend": backend, "scheme": scheme, "exclude": list(exclude)}
    )
    total = 2 * _count(module)
    weights, _ = schemes.numbers(wanted, torch.bfloat16)
    for layer in quantization.chosen(module, wanted).values():
        rows, columns = layer.weight.shape
        scales = rows * (columns // weights.group if weights.group else 1)
        size = torch.empty((), dtype=weights.scale_dtype).element_size()
        total += rows * columns * bits(weights.format) // 8 + scales * size - 2 * rows * columns
    return total
