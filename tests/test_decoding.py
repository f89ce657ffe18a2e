"""The VAE's decode: group norms in parts are group norms, and tiles add up to the frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from qbench import models, variants
from qbench.models import common
from qbench.quality import fidelity
from qbench.recipe import Variant
from qbench.variants.decoding import split_group_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 64, 5, 16, 24), 32), ((1, 32, 7, 11), 4), ((3, 8, 13), 2)],
)
def test_a_split_group_norm_is_as_close_as_torchs(
    shape: tuple[int, ...], groups: int, dtype: torch.dtype
) -> None:
    """Against FP64, on values whose mean is larger than their spread."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.GroupNorm(groups, shape[1])
    torch.nn.init.normal_(layer.weight, generator=generator)
    torch.nn.init.normal_(layer.bias, generator=generator)
    layer = layer.to(dtype).requires_grad_(False)
    x = (torch.randn(shape, generator=generator) + 5).to(dtype)
    weight, bias = layer.weight.double(), layer.bias.double()
    exact = functional.group_norm(x.double(), groups, weight, bias, layer.eps)

    def error(found: torch.Tensor) -> float:
        assert found.dtype == dtype
        return (found.double() - exact).abs().max().item()

    allowed = error(layer(x)) + (1e-5 if dtype == torch.float32 else 1e-3)
    assert error(split_group_norm(layer, x)) <= allowed


def _decoded(fields: dict[str, Any]) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The bundled pipeline with a variant, and what its VAE decodes without that and with it."""
    pipeline = models.load(models.find("tiny-cogvideox"), "fp32", "cpu")
    latents = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = latents.to(pipeline.vae.dtype)
    with torch.no_grad():
        plain = pipeline.vae.decode(latents).sample
        variants.apply(pipeline, Variant.model_validate(fields), "cpu", steps=1)
        changed = pipeline.vae.decode(latents).sample
    assert not torch.equal(changed, plain)
    return pipeline, plain, changed


def test_the_vae_decodes_the_same_video_with_split_norms() -> None:
    pipeline, plain, split = _decoded({"decode": {"split_norms": True}})
    norms = [x for x in pipeline.vae.modules() if isinstance(x, torch.nn.GroupNorm)]
    assert norms
    assert all("forward" in vars(layer) for layer in norms)
    assert fidelity.psnr(common.frames_of(split), common.frames_of(plain)).mean() > 50


def test_tiles_of_a_small_vae_add_up_to_the_frame() -> None:
    _, whole, tiled = _decoded({"memory": {"vae_tiling": True}})
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.2 * whole.abs().mean()
