"""What metrics need, and why it is not here: asked in processes that never load torch.

Each returns why a metric cannot be computed, empty where it can. shape: of a video, where known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qbench import textfile, world
from qbench.errors import InputError, brief, nearest
from qbench.quality import weights

if TYPE_CHECKING:
    from qbench.pipelines.known import Model
    from qbench.quality.metrics.base import Shape
    from qbench.recipe.schema import Fvd, Quality

PROBE, I3D = "probe", "i3d"
I3D_FRAMES = 9  # below, nothing is left to average over
LPIPS_SIDES = {"alex": 32, "vgg": 16}  # pixels below which a pooling layer runs empty
ONE_WORLD = "knows the bundled model's world alone"


def fvd_network(fvd: Fvd, model: Model) -> str:
    """What FVD's features come from: `probe`, `i3d`, or a TorchScript file.

    Raises InputError, which begins with the field, where it is none of these.
    """
    if fvd.network == "auto":
        return PROBE if model.world else I3D
    path = textfile.expanded(fvd.network)
    if fvd.network in (PROBE, I3D) or textfile.is_file(path):
        return fvd.network
    if textfile.is_closed(path):
        raise InputError(f"quality.fvd.network: {textfile.closed(brief(fvd.network))}")
    raise InputError(
        f"quality.fvd.network: {brief(fvd.network)} is neither a known network nor a file"
        f"{nearest(fvd.network, (PROBE, I3D))}"
    )


def frames(fewest: int, quality: Quality, model: Model, shape: Shape | None) -> str:
    return f"needs {fewest} frames" if shape and shape[0] < fewest else ""


def lpips(quality: Quality, model: Model, shape: Shape | None) -> str:
    net = quality.lpips
    if reason := weights.missing(f"lpips-{net}"):
        return reason
    if shape and min(shape[-2:]) < (least := LPIPS_SIDES[net]):
        return f"{net} reads frames of {least} pixels and more"
    return ""


def probe(quality: Quality, model: Model, shape: Shape | None) -> str:
    if not model.world:
        return ONE_WORLD
    return unread_by_probe(shape) if shape else ""


def fvd(quality: Quality, model: Model, shape: Shape | None) -> str:
    """FVD's and KVD's features by the recipe's protocol."""
    protocol = quality.fvd
    network = fvd_network(protocol, model)
    if network == PROBE:
        if not model.world:
            return f"the probe {ONE_WORLD}"
        return unread_by_probe(shape) if shape else ""
    if network == I3D and (reason := weights.missing(I3D)):
        return reason
    left = len(range(0, shape[0], protocol.stride)[: protocol.frames]) if shape else I3D_FRAMES
    if left < I3D_FRAMES:
        return f"I3D needs {I3D_FRAMES} frames, and the protocol leaves {left}"
    return ""


def rendered(quality: Quality, model: Model, shape: Shape | None) -> str:
    """FVD's features, and clips of the same prompts that can be rendered."""
    if not model.world:
        return ONE_WORLD
    if shape and shape[2] != shape[3]:
        return "rendered clips are square"
    return fvd(quality, model, shape)


def unread_by_probe(shape: Shape) -> str:
    """Why the probe can be shown no videos of this shape; empty: it can."""
    count, _, height, width = shape
    if world.shrinks(count, height, width):
        return ""
    smallest = f"{world.FRAMES} frames of {world.SIDE}x{world.SIDE}"
    return f"the probe reads {smallest}, or more of a larger square"
