"""From a model's name to a live pipeline: bundled, hub id, or local folder in diffusers layout."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qbench.errors import InputError, Unsupported, nearest
from qbench.pipelines import families
from qbench.recipe.schema import Dtype, Generation, Weights, digest

if TYPE_CHECKING:
    from qbench.pipelines.base import Configs, Pipe, VideoPipeline

BUNDLED = Path(__file__).parent.parent / "bundled"


@dataclass(frozen=True)
class Model:
    """What a recipe's `model` resolves to, with the defaults that its nulls take."""

    name: str
    source: str  # a folder, or a hub id
    about: str = ""
    steps: int = 50
    guidance: float = 6.0
    size: tuple[int, int, int] | None = None  # frames, height, width; null is its configuration's
    scheduler: str | None = None
    prompts: str = "scenes-v1"
    clip: str = "openai/clip-vit-base-patch32"
    world: bool = False  # of the rendered world: the probe and rendered clips apply
    # The text encoder and the VAE are the same for every variant and have a dtype of their own.
    # BF16 falls back to FP32 on a CPU without it, where it would be many times slower.
    surroundings: Dtype = "bf16"

    @property
    def local(self) -> bool:
        return Path(self.source).is_dir()

    def digest(self, weights: Weights = "pretrained") -> str:
        """Identifies the weights: a folder's configuration and weight files, or the hub id."""
        if weights == "random":
            return digest([self.source, weights])
        if not self.local:
            return digest(self.source)
        folder = Path(self.source)
        files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".safetensors")]
        return digest({str(path.relative_to(folder)): _file_digest(path) for path in files})


@functools.cache
def _file_digest(path: Path) -> str:
    """SHA-256 of a file; of one past 64 MiB its size and 64 chunks of 1 MiB spread over it."""
    size, chunk = path.stat().st_size, 2**20
    hashed = hashlib.sha256(str(size).encode())
    starts = range(0, size, chunk) if size <= 64 * chunk else range(0, size, size // 64)
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            hashed.update(file.read(chunk))
    return hashed.hexdigest()


KNOWN: dict[str, Model] = {
    "tiny-cogvideox": Model(
        name="tiny-cogvideox",
        source=str(BUNDLED / "tiny-cogvideox"),
        about="9.7 M parameters, trained on the rendered world; ships with the package",
        steps=20,
        guidance=1.5,
        prompts="world-v1",
        clip=str(BUNDLED / "tiny-clip"),
        world=True,
    ),
    "cogvideox-2b": Model(
        name="cogvideox-2b",
        source="zai-org/CogVideoX-2b",
        about="49 frames at 480x720; from the hub, or weights: random",
        surroundings="fp16",
    ),
    "cogvideox-5b": Model(
        name="cogvideox-5b",
        source="zai-org/CogVideoX-5b",
        about="49 frames at 480x720; from the hub, or weights: random",
    ),
    "cogvideox1.5-5b": Model(
        name="cogvideox1.5-5b",
        source="zai-org/CogVideoX1.5-5B",
        size=(81, 768, 1360),
        about="81 frames at 768x1360; from the hub, or weights: random",
    ),
    "zeroscope-v2-xl": Model(
        name="zeroscope-v2-xl",
        source="cerspense/zeroscope_v2_XL",
        size=(24, 576, 1024),
        guidance=9.0,
        about="24 frames at 576x1024, a UNet; from the hub, or weights: random",
        surroundings="fp16",
    ),
    "zeroscope-v2-576w": Model(
        name="zeroscope-v2-576w",
        source="cerspense/zeroscope_v2_576w",
        size=(24, 320, 576),
        guidance=9.0,
        about="24 frames at 320x576, a UNet; from the hub, or weights: random",
        surroundings="fp16",
    ),
    "wan2.1-1.3b": Model(
        name="wan2.1-1.3b",
        source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        guidance=5.0,
        about="81 frames at 480x832; from the hub, or weights: random",
    ),
    "wan2.1-14b": Model(
        name="wan2.1-14b",
        source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        guidance=5.0,
        about="81 frames at 480x832; from the hub, or weights: random",
    ),
}


def find(name: str) -> Model:
    """The model of a known name, a folder, or a hub id such as 'zai-org/CogVideoX-2b'."""
    if name in KNOWN:
        return KNOWN[name]
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(f"model {name}: no model_index.json there; not a diffusers pipeline")
        index = json.loads((folder / "model_index.json").read_text())
        about = f"{index.get('_class_name', 'pipeline')} in a local folder"
        return Model(name=folder.name, source=str(folder), about=about)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Model(name=name.replace("/", "--"), source=name, about="from the hub")
    raise InputError(
        f"model {name!r}: neither a known model, a folder nor a hub id{nearest(name, KNOWN)}"
    )


def check(model: Model, wanted: Generation) -> None:
    """Refuse what this model cannot generate, where its folder can tell before it is loaded."""
    if not model.local:
        return
    folder = Path(model.source)
    index = json.loads((folder / "model_index.json").read_text())
    family = families.of_class(index.get("_class_name", "pipeline without a class"))
    files = {name: folder / name / "config.json" for name in (family.part, "vae")}
    if all(path.is_file() for path in files.values()):
        configs = {name: json.loads(path.read_text()) for name, path in files.items()}
        family.grid(configs).resolve(wanted, model.size)


def load(
    model: Model,
    dtype: Dtype,
    device: str,
    weights: Weights = "pretrained",
    offloaded: bool = False,
) -> VideoPipeline:
    """The pipeline on `device`: its denoiser in `dtype`, the rest in the model's own dtype.

    Where it will be `offloaded` only the denoiser goes there, to be quantized: the whole would not
    fit the card that it is offloaded for. Reads safetensors only and runs no code of the repository
    that it loads from. With `weights: random` nothing is downloaded and there is no text encoder.
    """
    import torch
    from diffusers import DiffusionPipeline

    from qbench.pipelines import random_weights

    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    rest = kinds[_surroundings(model, device)]
    dtypes = {"default": rest, "transformer": kinds[dtype], "unet": kinds[dtype]}
    if weights == "random":
        family, configs = _sizes(model)
        pipe = random_weights.pipeline(family, configs, dtypes, device)
        return _placed(pipe, device, offloaded)
    try:
        pipe = DiffusionPipeline.from_pretrained(
            model.source,
            dtype=dtypes,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=model.local,
        )
    except OSError as error:
        reason = " ".join(str(error).split())[:300]
        raise Unsupported(f"model {model.source} could not be loaded: {reason}") from error
    return _placed(pipe, device, offloaded)


def _sizes(model: Model) -> tuple[type[VideoPipeline], Configs]:
    """The family and the configurations of a model's parts, of which no weights are read."""
    if model.local:
        folder = Path(model.source)
        index = json.loads((folder / "model_index.json").read_text())
        family = families.of_class(index.get("_class_name", "pipeline without a class"))
        files = {
            name: "scheduler_config.json" if name == "scheduler" else "config.json"
            for name in family.parts
        }
        return family, {
            name: json.loads((folder / name / file).read_text()) for name, file in files.items()
        }
    for name in families.known():
        family = families.of_class(name)
        configs = family.random_configs(model.name)
        if configs is not None:
            return family, configs
    raise InputError(
        f"weights: random: the size of {model.source} is not known without its folder"
        f"{nearest(model.name, KNOWN)}"
    )


def _placed(pipe: Pipe, device: str, offloaded: bool) -> VideoPipeline:
    pipe.set_progress_bar_config(disable=True)
    pipe.to("cpu" if offloaded else device)
    video = families.wrap(pipe)
    video.denoiser.to(device)
    return video


def _surroundings(model: Model, device: str) -> Dtype:
    import torch

    fast = device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "fp32" if model.surroundings == "bf16" and not fast else model.surroundings
