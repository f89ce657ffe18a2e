"""Model folders as they are met: each is loaded, or refused before loading in one line."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import TINY, build

from qbench.errors import InputError, LoadError
from qbench.pipelines import folders, specs
from qbench.pipelines.cogvideox import frames_made
from qbench.pipelines.known import KNOWN
from qbench.recipe.schema import Generation

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CogVideoX in diffusers' layout."""
    out = tmp_path_factory.mktemp("plain")
    build("cogvideox", out).pipe.save_pretrained(out / "plain")
    return out / "plain"


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    shutil.copytree(plain, tmp_path / "model")
    return tmp_path / "model"


def _edit(file: str, **fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def _write(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


def _remove(file: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        path = folder / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _fifo(file: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)

    return make


def _cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _as_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "transformer" / "diffusion_pytorch_model.bin")


def _as_variant(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / WEIGHTS.replace(".safe", ".fp16.safe"))


def _shard_missing(folder: Path) -> None:
    index = {
        "metadata": {},
        "weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"},
    }
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut off": (_cut, "cut off: .* bytes are there and its header says"),
    "half a header": (_write(WEIGHTS, b"\x00\x01"), "cut off, or no safetensors"),
    "no weights": (_remove(WEIGHTS), r"no weights \(\*.safetensors\)"),
    "pickles": (_as_pickle, "only as pickles"),
    "variant only": (_as_variant, "only as variant fp16: set weights_variant to it"),
    "LFS pointer": (_write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1"), "lfs pull"),
    "huge header": (
        lambda folder: os.truncate(folder / WEIGHTS, 2**27)
        or ((folder / WEIGHTS).open("r+b").write(struct.pack("<Q", 2**26)) and None),
        "its header has 67108864 bytes",
    ),
    "header of nothing": (
        _write(WEIGHTS, struct.pack("<Q", 4) + b"null"), "its header cannot be read",
    ),
    "missing shard": (_shard_missing, "00002-of-00002.safetensors: missing"),
    "FIFO for weights": (_fifo(WEIGHTS), "not a file that can be read"),
    "FIFO for a configuration": (_fifo("vae/config.json"), "not a file that can be read"),
    "FIFO besides": (_fifo("transformer/notes.txt"), "neither a file nor a folder"),
    "no VAE configuration": (_remove("vae/config.json"), "vae/config.json: missing"),
    "broken configuration": (_write("vae/config.json", b"{"), "no JSON that can be read"),
    "deep configuration": (_write("vae/config.json", b"[" * 100_000), "no JSON that can be read"),
    "a list": (_write("vae/config.json", b"[]"), "not a JSON object"),
    "no scheduler": (_remove("scheduler"), "scheduler_config.json: missing"),
    "no tokenizer": (_remove("tokenizer"), "tokenizer: missing"),
    "patch of 0": (_edit("transformer/config.json", patch_size=0), "patch_size: 0 is not between"),
    "a billion layers": (_edit("transformer/config.json", num_layers=10**9), "num_layers: 10{9}"),
    "words for numbers": (_edit("transformer/config.json", in_channels="x"), "in_channels: 'x'"),
    "null class": (_edit("model_index.json", transformer=[None, None]), "it has no transformer"),
    "no class": (_edit("model_index.json", _class_name=None), "names no pipeline"),
    "another's denoiser": (
        _edit("transformer/config.json", _class_name="MochiTransformer3DModel"),
        "a CogVideoXPipeline has a CogVideoXTransformer3DModel, and this is a 'Mochi",
    ),
    "another's index": (
        _edit("model_index.json", _class_name="WanPipeline"), "a WanPipeline has a WanTransf",
    ),
    "broken index": (_write("model_index.json", b"\xff"), "no JSON that can be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_folder_is_refused_in_one_line_before_loading(folder: Path, name: str) -> None:
    damage, reason = BROKEN[name]
    damage(folder)
    model = specs.find(str(folder))
    model.digest()  # computed before the run, of whatever is there
    specs.check(model, Generation())
    started = time.monotonic()
    with pytest.raises(LoadError, match=reason) as told:
        specs.load(model, "fp32", "cpu")
    assert "\n" not in str(told.value)
    assert str(folder) in str(told.value)
    assert time.monotonic() - started < 5  # refused, not tried


@pytest.mark.parametrize(
    "name",
    [
        "LTXPipeline",
        "HunyuanVideoPipeline",
        "MochiPipeline",
        "LattePipeline",
        "AnimateDiffPipeline",
    ],
)
def test_pipelines_that_are_not_driven_are_told_by_their_class_alone(
    folder: Path, name: str
) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    model = specs.find(str(folder))
    for attempt in (
        lambda: specs.check(model, Generation()),
        lambda: specs.load(model, "fp32", "cpu"),
        lambda: specs.load(model, "fp32", "cpu", "random"),
    ):
        with pytest.raises(InputError, match=f"no driver for a {name}.*WanPipeline.*pipeline.md"):
            attempt()


def test_weights_that_fit_another_configuration_are_one_line(folder: Path) -> None:
    _edit("transformer/config.json", num_layers=3, in_channels=8)(folder)
    with pytest.raises(LoadError, match=r"could not be loaded: .*patch_embed") as told:
        specs.load(specs.find(str(folder)), "fp32", "cpu")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", list(TINY))
def test_every_family_loads_from_a_folder_sharded_and_as_a_variant(
    name: str, tmp_path: Path
) -> None:
    pipe = build(name, tmp_path).pipe
    pipe.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    pipe.save_pretrained(tmp_path / "variant", variant="fp16")
    part = "unet" if name == "unet" else "transformer"
    expected = getattr(pipe, part).state_dict()
    assert len(list((tmp_path / "sharded" / part).glob("*.safetensors"))) > 1
    for folder, variant in (("sharded", None), ("variant", "fp16")):
        model = specs.find(str(tmp_path / folder))
        found = specs.load(model, "fp32", "cpu", variant=variant).denoiser.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    random = specs.load(model, "fp32", "cpu", "random")
    assert random.pipe.text_encoder is None
    assert {k: v.shape for k, v in random.denoiser.state_dict().items()} == {
        k: v.shape for k, v in expected.items()
    }


def test_however_a_model_is_spelled_it_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    monkeypatch.chdir(folder)
    words = [str(folder), f"{folder}/", ".", "../model", "../model/../model", str(link)]
    assert len({specs.find(word).spelling for word in words}) == 1
    assert len({specs.find(word) for word in words}) == 1
    for name, known in KNOWN.items():
        assert specs.find(known.source) is known
        assert specs.find(name).spelling == name
    assert specs.find("THUDM/CogVideoX-2b") is KNOWN["cogvideox-2b"]
    assert specs.find("someone/their-model").spelling == "someone/their-model"


@pytest.mark.parametrize("name", ["cogvideox-2b", "cogvideox-5b", "cogvideox1.5-5b", "wan2.1-1.3b"])
def test_a_folder_of_a_known_model_has_its_defaults(name: str, tmp_path: Path) -> None:
    """CogVideoX1.5's configuration says 300, which times 8 is 2400 pixels."""
    known = KNOWN[name]
    family, configs = specs._sizes(known)
    index = {"_class_name": family.pipeline_class}
    for part, class_name in family.parts.items():
        index[part] = ["diffusers", class_name]
        (tmp_path / part).mkdir()
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        (tmp_path / part / file).write_text(json.dumps(dict(configs[part])))
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    found = folders.read(tmp_path)
    model = specs.with_defaults(specs.find(str(tmp_path)), found.family, found.configs)
    for field in ("steps", "guidance", "size", "surroundings", "vae_dtype", "scheduler"):
        assert getattr(model, field) == getattr(known, field), field
    grid = family.grid(found.configs)
    assert grid.resolve(Generation(), model.size) == grid.resolve(Generation(), known.size)
    # Another model of that kind is not taken for it, and has a size that can be made.
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    found = folders.read(tmp_path)
    model = specs.with_defaults(specs.find(str(tmp_path)), found.family, found.configs)
    assert model.size is None
    assert max(family.grid(found.configs).resolve(Generation(), None)) <= 1360


def test_a_size_that_nobody_would_ask_for_is_refused(folder: Path) -> None:
    _edit("transformer/config.json", sample_height=300, sample_width=300)(folder)
    with pytest.raises(InputError, match=r"configuration says 2400.*say generation\.height"):
        specs.check(specs.find(str(folder)), Generation())
    specs.check(specs.find(str(folder)), Generation(height=480, width=720))


def test_the_digest_sees_another_file_in_the_same_place(folder: Path) -> None:
    before = specs.find(str(folder)).digest()
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    assert specs.find(str(folder)).digest() != before


def test_loading_ends_at_its_limit() -> None:
    with pytest.raises(LoadError, match="too long"), folders.time_limit(0.05, "too long"):
        time.sleep(5)
    with folders.time_limit(0.05, "too long"):
        pass
    time.sleep(0.1)  # nothing rings afterwards


def test_frames_that_the_vae_makes() -> None:
    made = [frames_made(frames, 4) for frames in (1, 5, 8, 9, 12, 13, 16, 17, 49, 81)]
    assert made == [1, 8, 8, 9, 9, 16, 16, 17, 49, 81]


def test_a_folder_that_is_gone_is_not_passed_over_for_the_hub_without_a_word() -> None:
    for name, told in (("models/gone", True), ("cogvideox-2b", False)):
        model = specs.find(name)
        with pytest.raises(LoadError, match="could not be loaded") as said, specs._told(model):
            raise OSError("no file named model_index.json")
        assert ("taken for a hub id" in str(said.value)) == told
