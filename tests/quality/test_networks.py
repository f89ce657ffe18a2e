"""The real I3D and LPIPS, on real clips. Skipped, with the reason, where the weights are not here
and the package registry is out of reach."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from qbench.errors import InputError
from qbench.pipelines import known
from qbench.quality import networks, weights
from qbench.quality.metrics import features, i3d, lpips
from qbench.recipe.schema import Fvd, Quality

MODEL = known.Model("any", "any")
CLIPS = ROOT.parent / "shared" / "clips"
# Places in the alphabetical list of Kinetics-400's classes, as the authors' label map has them.
CLASSES = {
    "v_CricketShot_g04_c01_rgb.gif": (227, 0.98),  # playing cricket
    "tav_car-turn.mp4": (103, 0.5),  # driving car
    "tav_man-skiing.mp4": (308, 0.5),  # skiing (not slalom or crosscountry)
    "tav_man-surfing.mp4": (337, 0.5),  # surfing water
}


@functools.cache
def here(name: str) -> str:
    """Why a network's weights cannot be had, empty where they can."""
    try:
        if weights.missing(name):
            weights.fetch(name)
    except InputError as error:
        return str(error)
    return ""


def need(*names: str) -> None:
    for name in names:
        if reason := here(name):
            pytest.skip(f"weights of {name}: {reason}")


@functools.cache
def clip(name: str) -> torch.Tensor:
    """(frames, 3, height, width) in [0, 1]."""
    path = CLIPS / name
    if not path.is_file():
        pytest.skip("the shared real clips are not here")
    if path.suffix == ".gif":
        from PIL import Image, ImageSequence

        frames = [np.array(f.convert("RGB")) for f in ImageSequence.Iterator(Image.open(path))]
    else:
        import av

        with av.open(str(path)) as container:
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("name", CLASSES)
def test_i3d_names_real_clips(name: str) -> None:
    """By 32 frames, with which colours in reverse, half the brightness or other padding fail."""
    need("i3d")
    wanted, least = CLASSES[name]
    extract = features.load(Fvd(network="i3d", resize="bilinear-antialias"), MODEL, "cpu")
    found = extract(clip(name)[None, :32]).softmax(1)[0]
    assert found.argmax() == wanted
    assert found[wanted] >= least


def test_i3d_pads_as_tensorflow_does() -> None:
    """SAME padding: ceil(size / stride) outputs, the odd one at the end."""
    x = torch.zeros(1, 1, 17, 224, 223)
    for window, stride in (((7, 7, 7), (2, 2, 2)), ((1, 3, 3), (1, 2, 2)), ((2, 2, 2), (2, 2, 2))):
        pads = i3d._same(x, window, stride)
        for axis in range(3):
            low, high = pads[2 * (2 - axis)], pads[2 * (2 - axis) + 1]
            size = x.shape[2 + axis]
            assert high - low in (0, 1)
            assert (size + low + high - window[axis]) // stride[axis] + 1 == -(
                -size // stride[axis]
            )


def test_i3d_logits_are_a_linear_map_of_its_features() -> None:
    need("i3d")
    network = i3d.load_i3d()
    video = torch.rand(1, 9, 3, 224, 224) * 2 - 1
    last = network.Logits["Conv3d_0c_1x1"]
    by_hand = network.features(video) @ last.weight.flatten(1).T + last.bias
    assert torch.allclose(network(video), by_hand, atol=1e-3)
    with pytest.raises(ValueError, match="needs 9 frames"):
        network(video[:, :8])
    with pytest.raises(ValueError, match="I3D reads"):
        network(video[..., :200])


def test_fvd_protocol_changes_are_said_and_seen() -> None:
    need("i3d")
    video = clip("v_CricketShot_g04_c01_rgb.gif")[None, :32]
    plain = features.load(Fvd(network="i3d"), MODEL, "cpu")
    sparse = features.load(Fvd(network="i3d", stride=2, frames=12, layer="features"), MODEL, "cpu")
    assert (plain.size, sparse.size) == (400, 1024)
    assert "stride 2" in sparse.protocol
    assert plain.digest() != sparse.digest()
    by_hand = i3d.load_i3d().features(video[:, ::2][:, :12] * 2 - 1)  # 224 pixels already
    assert torch.allclose(sparse(video), by_hand, atol=1e-3)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscript_i3d_from_a_path_agrees_with_ours(tmp_path: Path) -> None:
    """A script of the same network, called with the arguments that StyleGAN-V's script takes."""
    need("i3d")

    class Scripted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            video = torch.rand(1, 16, 3, 224, 224)
            self.network = torch.jit.trace(i3d.load_i3d(), video, check_trace=False)

        def forward(
            self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool
        ) -> torch.Tensor:
            if rescale or resize or not return_features:
                raise ValueError("called otherwise than documented")
            return self.network(x.transpose(1, 2))

    path = tmp_path / "i3d.pt"
    torch.jit.script(Scripted()).save(str(path))
    video = clip("v_CricketShot_g04_c01_rgb.gif")[None, :16]
    ours = features.load(Fvd(network="i3d"), MODEL, "cpu")
    with pytest.raises(InputError, match="--trust-torchscript"):
        features.load(Fvd(network=str(path)), MODEL, "cpu")
    trusted = networks.trusted(Quality(fvd=Fvd(network=str(path)))).fvd
    scripted = features.load(trusted, MODEL, "cpu")
    assert torch.allclose(scripted(video), ours(video), atol=1e-3)
    assert "sha256" in scripted.protocol
    path.write_bytes(b"not a script")
    with pytest.raises(InputError, match="another file"):
        features.load(trusted, MODEL, "cpu")
    with pytest.raises(InputError, match="not TorchScript"):
        features.load(networks.trusted(Quality(fvd=Fvd(network=str(path)))).fvd, MODEL, "cpu")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_against_its_formula_written_out(net: lpips.Net) -> None:
    """Zhang et al. 2018, eq. 1, over the layers that torchvision's networks name."""
    need(f"lpips-{net}")
    raw = weights.load(f"lpips-{net}")
    a = clip("tav_car-turn.mp4")[:1, :, 100:228, 100:228]
    b = (a + 0.1 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    kept = {  # torchvision's indices of convolutions, ReLUs that are compared, and poolings
        "alex": ([0, 3, 6, 8, 10], [1, 4, 7, 9, 11], [2, 5], 3),
        "vgg": (
            [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
            [3, 8, 15, 22, 29],
            [4, 9, 16, 23],
            2,
        ),
    }
    convs, taps, pools, window = kept[net]
    strides = {0: (4, 2), 3: (1, 2)} if net == "alex" else {}

    def taken(x: torch.Tensor) -> list[torch.Tensor]:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x, found = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1), []
        for index in range(max(taps) + 1):
            if index in convs:
                i = convs.index(index)
                stride, padding = strides.get(index, (1, 1))
                weight, bias = raw[f"convs.{i}.weight"], raw[f"convs.{i}.bias"]
                x = torch.nn.functional.conv2d(x, weight, bias, stride, padding)
            elif index in pools:
                x = torch.nn.functional.max_pool2d(x, window, 2)
            else:
                x = x.clamp(min=0)
            if index in taps:
                found.append(x[0].permute(1, 2, 0))
        return found

    expected = 0.0
    for i, (p, q) in enumerate(zip(taken(a), taken(b), strict=True)):
        p, q = (v / v.norm(dim=-1, keepdim=True).clamp(min=1e-10) for v in (p, q))
        expected += ((p - q) ** 2 @ raw[f"heads.{i}.weight"].flatten()).mean().item()
    network = lpips.load_lpips(net)
    # LPIPS shifts and scales images of [-1, 1] by rounded halves of ImageNet's figures.
    assert network(a, b).item() == pytest.approx(expected, rel=2e-3)
    assert network(a, a).item() == 0.0
    assert lpips.lpips(network, a[None], b[None]).item() == pytest.approx(network(a, b).item())


def test_lpips_heads_are_those_of_the_lpips_package(tmp_path: Path) -> None:
    """The wheel of lpips 0.1.4 holds its learnt heads."""
    need("lpips-alex", "lpips-vgg")
    import re
    import zipfile

    try:
        page = weights._read(f"{weights.INDEX}/lpips/", weights.MOST_BYTES).decode()
        link = re.findall(r'href="([^"#]+lpips-0\.1\.4-py3-none-any\.whl)', page)[0]
        (tmp_path / "lpips.whl").write_bytes(weights._read(link, weights.MOST_BYTES))
    except (InputError, IndexError) as error:
        pytest.skip(f"the lpips package cannot be had: {error}")
    with zipfile.ZipFile(tmp_path / "lpips.whl") as wheel:
        for net in ("alex", "vgg"):
            with wheel.open(f"lpips/weights/v0.1/{net}.pth") as file:
                theirs = torch.load(file, map_location="cpu", weights_only=True)
            ours = weights.load(f"lpips-{net}")
            for i in range(5):
                assert torch.equal(theirs[f"lin{i}.model.1.weight"], ours[f"heads.{i}.weight"])


def test_lpips_sees_blur_that_keeps_psnr() -> None:
    """What it is for: of two changes of equal mean squared error it dislikes the one people do."""
    need("lpips-alex")
    picture = clip("tav_rabbit-watermelon.mp4")[:1, :, :256, :256]
    blurred = torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(picture, (3, 3, 3, 3), "reflect"), 7, 1
    )
    error = (blurred - picture).square().mean().sqrt()
    brighter = picture + error  # the same mean squared error, hardly to be seen
    network = lpips.load_lpips("alex")
    assert network(blurred, picture) > 3 * network(brighter, picture)
