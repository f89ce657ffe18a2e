"""The VAE's decode: norms in parts, strips and qbench's own kernels make the plain video."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qbench.errors import Unsupported
from qbench.optimizations import axes, memory
from qbench.optimizations.vae import group_norm, patch, strips
from qbench.pipelines import base, specs
from qbench.quality.metrics import fidelity
from qbench.recipe.schema import Decode, Memory, Variant


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
    assert error(group_norm.split(layer, x)) <= allowed


def _decoded(fields: dict[str, Any]) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The bundled pipeline with a variant, and what its VAE decodes without that and with it."""
    video = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu")
    pipeline = video.pipe
    latents = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = latents.to(pipeline.vae.dtype)
    with torch.no_grad():
        plain = pipeline.vae.decode(latents).sample
        axes.apply(video, Variant.model_validate(fields), "cpu", steps=1)
        changed = pipeline.vae.decode(latents).sample
    assert not torch.equal(changed, plain)
    return pipeline, plain, changed


def test_the_vae_decodes_the_same_video_with_split_norms() -> None:
    pipeline, plain, split = _decoded({"decode": {"split_norms": True}})
    norms = [x for x in pipeline.vae.modules() if isinstance(x, torch.nn.GroupNorm)]
    assert norms
    assert all("forward" in vars(layer) for layer in norms)
    assert fidelity.psnr(base.frames_of(split), base.frames_of(plain)).mean() > 50


def test_tiles_of_a_small_vae_add_up_to_the_frame() -> None:
    _, whole, tiled = _decoded({"memory": {"vae_tiling": True}})
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.2 * whole.abs().mean()


@torch.no_grad()
def test_tiles_are_as_large_as_asked_and_then_the_vaes_own_again() -> None:
    vae = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu").pipe.vae.float()
    latents = torch.randn(1, 16, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    whole, seen = vae.decode(latents).sample, []
    hook = vae.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[3:]))
    for pixels, tiles in ((None, [4, 4]), (64, [8, 8]), (96, [12, 12])):
        seen.clear()
        wanted = Memory(vae_tiling=True, vae_tile=pixels)
        changes = memory.apply(SimpleNamespace(pipe=SimpleNamespace(vae=vae)), wanted, "cpu")
        made = vae.decode(latents).sample
        assert [max(sides) for sides in zip(*seen, strict=True)] == tiles
        assert made.shape == whole.shape
        assert torch.equal(made, whole) == (pixels == 96)
        assert memory.tiles_nothing(vae, 96, 96) == (len(seen) == 1)
        changes.undo()
        assert vae.tile_sample_min_height == 32
        assert vae.tile_latent_min_width == 4
        assert not vae.use_tiling
        assert not memory.tiles_nothing(vae, 8, 8)
    hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 128)])
def test_a_picture_no_larger_than_a_tile_of_a_vae_of_images_is_not_cut(
    size: tuple[int, int],
) -> None:
    vae = specs.load(specs.find("tiny-zeroscope"), "fp32", "cpu").pipe.vae.float()
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    own = vae.tile_sample_min_size
    latents = torch.randn(
        1, vae.config.latent_channels, *(side * own // 64 // scale for side in size)
    )
    memory.apply(SimpleNamespace(pipe=SimpleNamespace(vae=vae)), Memory(vae_tiling=True), "cpu")
    seen: list[torch.Size] = []
    vae.decoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    shape = vae.decode(latents).sample.shape
    assert memory.tiles_nothing(vae, *shape[2:]) == (len(seen) == 1) == (size == (64, 64))


def test_tiles_cannot_be_sized_where_there_are_none() -> None:
    with pytest.raises(ValidationError, match="vae_tile: sizes tiles"):
        Memory(vae_tile=64)
    with pytest.raises(ValidationError, match="multiple of 32"):
        Memory(vae_tiling=True, vae_tile=40)


def _makes_the_very_video(way: Decode, frames: int) -> None:
    """Two videos of odd and even numbers of latent frames, with sides that nothing divides."""
    vae = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu").pipe.vae.float()
    latents = torch.randn(2, 16, frames, 9, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vae.decode(latents).sample
        patch.apply(SimpleNamespace(vae=vae), way)
        found = vae.decode(latents).sample
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_the_fused_decode_makes_the_very_video(frames: int) -> None:
    """Its arithmetic, with plain operations in place of kernels: folded taps, planes, caches."""
    _makes_the_very_video(Decode(fused=True, split_norms=True), frames)


@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_strips_decode_the_very_video_that_the_whole_is(
    frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    plain_strips = strips._strips
    monkeypatch.setattr(strips, "STRIP_BYTES", 40_000)
    monkeypatch.setattr(strips, "_strips", lambda x: seen.append(plain_strips(x)) or seen[-1])
    _makes_the_very_video(Decode(strips=True), frames)
    assert max(map(len, seen)) > 10


@pytest.mark.parametrize("way", ["strips", "fused"])
def test_they_go_with_tiles_and_with_weights_that_come_as_a_layer_is_called(way: str) -> None:
    from accelerate import cpu_offload

    vae = specs.load(specs.find("tiny-cogvideox"), "fp32", "cpu").pipe.vae.float()
    memory.apply(SimpleNamespace(pipe=SimpleNamespace(vae=vae)), Memory(vae_tiling=True), "cpu")
    latents = torch.randn(1, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tiled = vae.decode(latents).sample
        wanted = Decode.model_validate({way: True, "split_norms": True})
        patch.apply(SimpleNamespace(vae=vae), wanted)
        torch.testing.assert_close(vae.decode(latents).sample, tiled, atol=1e-5, rtol=1e-4)
        cpu_offload(vae, "cpu", offload_buffers=True)
        assert {weight.device.type for weight in vae.parameters()} == {"meta"}
        torch.testing.assert_close(vae.decode(latents).sample, tiled, atol=1e-5, rtol=1e-4)


class _Live(TorchDispatchMode):
    """The bytes of the tensors that are alive, at most: what a GPU's allocator hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for storage in (x.untyped_storage() for x in tree_leaves(made)):
            if storage._cdata not in self.alive:
                self.alive.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, number: int, size: int) -> None:
        self.alive.discard(number)
        self.now -= size


def test_they_take_less_than_half_of_the_memory_at_true_size() -> None:
    """CogVideoX's VAE, 49 frames of 480x720, on tensors that have a shape and no data."""
    from diffusers import AutoencoderKLCogVideoX

    peaks = {}
    for way in ("plain", "strips", "fused"):
        with torch.device("meta"):
            vae = AutoencoderKLCogVideoX().half().eval()
            latents = torch.empty(1, 16, 13, 60, 90, dtype=torch.half)
        wanted = Decode.model_validate({way: True} if way != "plain" else {})
        patch.apply(SimpleNamespace(vae=vae), wanted)
        with torch.no_grad(), _Live() as live:
            assert vae.decode(latents).sample.shape == (1, 3, 49, 480, 720)
        peaks[way] = live.peak / 2**30
    assert peaks["plain"] == pytest.approx(14.7, abs=0.3)  # as an H100's allocator has it
    assert peaks["strips"] < 6.6
    assert peaks["fused"] < 5.5


def test_strips_are_refused_where_the_vae_is_another() -> None:
    from diffusers import AutoencoderKL

    with pytest.raises(Unsupported, match="vae_slicing"):
        patch.apply(SimpleNamespace(vae=AutoencoderKL()), Decode(strips=True))


def test_another_vae_decodes_as_without_the_fused_kernels() -> None:
    """One recipe is for every model: `fast` has both."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).eval()
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vae.decode(latents).sample
        patch.apply(SimpleNamespace(vae=vae), Decode(fused=True, split_norms=True))
        torch.testing.assert_close(vae.decode(latents).sample, whole)
    assert any("forward" in vars(layer) for layer in vae.modules())  # norms are split all the same


def test_channels_that_make_no_planes_are_refused() -> None:
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX(block_out_channels=(12, 12, 12, 12), norm_num_groups=4)
    with pytest.raises(Unsupported, match="multiples of 8"):
        patch.apply(SimpleNamespace(vae=vae), Decode(fused=True))
