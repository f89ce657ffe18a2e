"""The models that qbench knows by name, and the defaults that a recipe's nulls take with each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qbench import cache
from qbench.recipe.schema import Dtype, Weights, digest

BUNDLED = Path(__file__).parent.parent / "bundled"


@dataclass(frozen=True)
class Model:
    """What a recipe's `model` resolves to, with the defaults that its nulls take."""

    name: str
    source: str  # a folder, or a hub id
    about: str = ""
    licence: str = ""  # of the weights
    steps: int = 50
    guidance: float = 6.0
    size: tuple[int, int, int] | None = None  # frames, height, width; null is its configuration's
    scheduler: str | None = None
    prompts: str = "scenes-v1"
    clip: str = "openai/clip-vit-base-patch32"
    denoiser: Literal["transformer", "unet"] = "transformer"  # the part that it is
    world: bool = False  # of the rendered world: the probe and rendered clips apply
    trained: tuple[tuple[int, int, int], ...] = ()  # sizes that it learned; none is not known
    # The text encoder and the VAE are the same for every variant and have a dtype of their own.
    # BF16 falls back to FP32 on a CPU without it, where it would be many times slower.
    surroundings: Dtype = "bf16"
    vae_dtype: Dtype | None = None  # where it is another than the text encoder's

    @property
    def local(self) -> bool:
        return Path(self.source).is_dir()

    @property
    def spelling(self) -> str:
        """The one way in which a record names this model: known name, hub id, or whole path."""
        return self.name if self.name in KNOWN else self.source

    def unlearned(self, frames: int, height: int, width: int) -> str | None:
        """A sentence where videos of this size are none that the model has learned to make."""
        if not self.trained or (frames, height, width) in self.trained:
            return None

        def away(size: tuple[int, int, int]) -> float:
            asked = zip(size, (frames, height, width), strict=True)
            return sum(abs(math.log(one / other)) for one, other in asked)

        sizes = [f"{a}x{b}x{c}" for a, b, c in sorted(self.trained, key=away)]
        others = f" (others: {', '.join(sizes[1:])})" if sizes[1:] else ""
        asked = f"{frames}x{height}x{width}"
        return (
            f"generation: {self.name} was not trained at {asked} (frames, height, width), so its "
            f"videos may not follow their prompts; the nearest that it was is {sizes[0]}{others}"
        )

    def digest(self, weights: Weights = "pretrained") -> str:
        """Identifies the weights: a folder's configuration and weight files, or the hub id."""
        if weights == "random":
            return digest([self.source, weights])
        if not self.local:
            return digest(self.source)
        folder = Path(self.source)
        files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".safetensors")]
        return digest(
            {str(path.relative_to(folder)): _file_digest(path) for path in files if path.is_file()}
        )


def _file_digest(path: Path) -> str:
    """SHA-256 of a file, computed again where its size, time or inode is another."""
    try:
        return cache.file_digest(path)
    except OSError as error:  # loading says so too, and leaves a record
        return f"unreadable: {error.strerror}"


KNOWN: dict[str, Model] = {
    "tiny-cogvideox": Model(
        name="tiny-cogvideox",
        source=str(BUNDLED / "tiny-cogvideox"),
        licence="Apache-2.0",
        about="9.7 M parameters, trained on the rendered world; ships with the package",
        steps=20,
        guidance=1.5,
        prompts="world-v1",
        clip=str(BUNDLED / "tiny-clip"),
        world=True,
        trained=((17, 64, 64), (33, 128, 128), (49, 192, 192), (49, 256, 256)),
    ),
    "tiny-zeroscope": Model(
        name="tiny-zeroscope",
        denoiser="unet",
        source=str(BUNDLED / "tiny-zeroscope"),
        about="1.7 M parameters, a UNet, trained on the rendered world; ships with the package",
        size=(17, 64, 64),
        steps=20,
        guidance=1.5,
        prompts="world-v1",
        clip=str(BUNDLED / "tiny-clip"),
        world=True,
        trained=((17, 64, 64),),
    ),
    "cogvideox-2b": Model(
        name="cogvideox-2b",
        source="zai-org/CogVideoX-2b",
        licence="Apache-2.0",
        about="49 frames at 480x720; from the hub, or weights: random",
        surroundings="fp16",
    ),
    "cogvideox-5b": Model(
        name="cogvideox-5b",
        source="zai-org/CogVideoX-5b",
        licence="CogVideoX LICENSE",
        about="49 frames at 480x720; from the hub, or weights: random",
    ),
    "cogvideox1.5-5b": Model(
        name="cogvideox1.5-5b",
        source="zai-org/CogVideoX1.5-5B",
        licence="CogVideoX LICENSE",
        size=(81, 768, 1360),
        about="81 frames at 768x1360; from the hub, or weights: random",
    ),
    "zeroscope-v2-xl": Model(
        name="zeroscope-v2-xl",
        denoiser="unet",
        source="cerspense/zeroscope_v2_XL",
        licence="CC-BY-NC-4.0",
        size=(24, 576, 1024),
        guidance=9.0,
        about="24 frames at 576x1024, a UNet; from the hub, or weights: random",
        surroundings="fp16",
    ),
    "zeroscope-v2-576w": Model(
        name="zeroscope-v2-576w",
        denoiser="unet",
        source="cerspense/zeroscope_v2_576w",
        licence="CC-BY-NC-4.0",
        size=(24, 320, 576),
        guidance=9.0,
        about="24 frames at 320x576, a UNet; from the hub, or weights: random",
        surroundings="fp16",
    ),
    "wan2.1-1.3b": Model(
        name="wan2.1-1.3b",
        source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        licence="Apache-2.0",
        guidance=5.0,
        vae_dtype="fp32",
        about="81 frames at 480x832; from the hub, or weights: random",
    ),
    "wan2.1-14b": Model(
        name="wan2.1-14b",
        source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        licence="Apache-2.0",
        guidance=5.0,
        vae_dtype="fp32",
        about="81 frames at 480x832; from the hub, or weights: random",
    ),
}


# Hub ids under which a known model is or was published.
IDS = {model.source.lower(): model for model in KNOWN.values()} | {
    model.source.lower().replace("zai-org/", "thudm/"): model for model in KNOWN.values()
}
