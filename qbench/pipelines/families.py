"""Which class drives which diffusers pipeline: those of qbench, and those of installed packages."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

from qbench.errors import InputError

if TYPE_CHECKING:
    from qbench.pipelines.base import Pipe, VideoPipeline

GROUP = "qbench.pipelines"  # entry points: diffusers' class name = "package.module:Class"
GUIDE = "docs/extending/pipeline.md"
# diffusers' class -> module:class that drives it; imported when it is needed.
FAMILIES = {
    "CogVideoXPipeline": "qbench.pipelines.cogvideox:CogVideoX",
    "TextToVideoSDPipeline": "qbench.pipelines.text_to_video_sd:TextToVideoSD",
    "WanPipeline": "qbench.pipelines.wan:Wan",
}


def known() -> dict[str, str]:
    """diffusers' class names, and where the class that drives each is."""
    installed = importlib.metadata.entry_points(group=GROUP)
    return {point.name: point.value for point in installed} | FAMILIES


def of_class(name: str) -> type[VideoPipeline]:
    """The family that drives pipelines of this diffusers class. Raises InputError."""
    families = known()
    if name not in families:
        raise InputError(
            f"no driver for a {name}: qbench drives {', '.join(families)}; "
            f"{GUIDE} shows how to add one"
        )
    module, _, attribute = families[name].partition(":")
    family: type[VideoPipeline] = getattr(importlib.import_module(module), attribute)
    return family


def wrap(pipe: Pipe) -> VideoPipeline:
    """A live diffusers pipeline behind the contract. Raises InputError where none drives it."""
    return of_class(type(pipe).__name__)(pipe)
