"""The rendered world: clips whose every attribute is known, and the captions that describe them.

The bundled models, tiny-clip and the probe were trained on this world alone. It is small enough to
be learnt in minutes and rich enough that damage to a denoiser shows: an attribute that the caption
names and the video lacks is an error that needs no human judge.

Everything is a function of a `Scene` and a seed; rendering runs on whatever device it is asked to.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FRAMES, SIDE, FPS = 17, 64, 8
# Frames and side of the clips that the bundled models learn, shortest first. Each is a finer
# sampling of the same scene: every so many frames, averaged over squares, it is the first again.
LENGTHS = ((FRAMES, SIDE), (33, 128), (49, 192), (49, 256))

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "orange": (1.00, 0.52, 0.08),
    "yellow": (1.00, 0.92, 0.20),
    "green": (0.20, 0.82, 0.25),
    "cyan": (0.25, 0.88, 0.92),
    "blue": (0.22, 0.40, 1.00),
    "magenta": (0.90, 0.25, 0.85),
    "white": (0.97, 0.97, 0.97),
}
BACKGROUNDS = {
    "black": (0.04, 0.04, 0.04),
    "navy": (0.05, 0.07, 0.30),
    "maroon": (0.32, 0.05, 0.10),
    "forest": (0.05, 0.24, 0.11),
    "gray": (0.42, 0.42, 0.42),
    "plum": (0.30, 0.12, 0.36),
}
MOTIONS = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "grow": "grows",
    "shrink": "shrinks",
    "orbit": "circles around",
    "swing": "swings from side to side",
}
SIZES = {"small": 10.0, "large": 14.0}  # radius in pixels of a picture SIDE wide

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "background": tuple(BACKGROUNDS),
    "motion": tuple(MOTIONS),
    "size": tuple(SIZES),
}
JITTERS = 4  # uniform numbers a clip draws: centre x, centre y, speed, phase
EDGE = 1.4  # width in pixels, at any size, over which an outline fades: edges are anti-aliased


@dataclass(frozen=True)
class Scene:
    """One combination of attributes; `caption` and `parse` are each other's inverse."""

    shape: str
    colour: str
    background: str
    motion: str
    size: str

    def indices(self) -> list[int]:
        """Position of each attribute's value in ATTRIBUTES, in its order."""
        return [
            values.index(value)
            for values, value in zip(ATTRIBUTES.values(), astuple(self), strict=True)
        ]

    def caption(self, template: int = 0) -> str:
        """The scene in words, in one of the two sentence orders that occur in training."""
        thing = f"a {self.size} {self.colour} {self.shape} {MOTIONS[self.motion]}"
        if template == 0:
            return f"{thing} on a {self.background} background"
        return f"over a {self.background} background {thing}"


def scenes() -> list[Scene]:
    """All combinations of attributes, in a fixed order."""
    return [Scene(*values) for values in itertools.product(*ATTRIBUTES.values())]


def held_out(scene: Scene) -> bool:
    """Whether the combination was kept from training (a tenth of all, spread by a fixed hash)."""
    number = 0
    for index, values in zip(scene.indices(), ATTRIBUTES.values(), strict=True):
        number = number * len(values) + index
    return (number * 2654435761 + 97) % 2**32 < 2**32 // 10


def parse(caption: str) -> Scene | None:
    """The scene a caption describes, or None where it is not of this world."""
    words = caption.lower().replace(".", " ").replace(",", " ").split()
    text = " ".join(words)

    def named(values: tuple[str, ...]) -> str | None:
        return next((value for value in values if value in words), None)

    motion = next((key for key, phrase in MOTIONS.items() if phrase in text), None)
    found = {
        "shape": named(SHAPES),
        "colour": named(tuple(COLOURS)),
        "background": named(tuple(BACKGROUNDS)),
        "motion": motion,
        "size": named(tuple(SIZES)),
    }
    if None in found.values():
        return None
    return Scene(**{key: value for key, value in found.items() if value is not None})


def jitter(count: int, seed: int) -> torch.Tensor:
    """(count, JITTERS) uniform numbers in [0, 1), drawn on the CPU so they match on any device."""
    import torch

    return torch.rand(count, JITTERS, generator=torch.Generator().manual_seed(seed))


def render(
    indices: torch.Tensor, jitters: torch.Tensor, frames: int = FRAMES, side: int = SIDE
) -> torch.Tensor:
    """Clips of the scenes given.

    indices: (batch, 5) integers, `Scene.indices` a row. jitters: (batch, JITTERS) in [0, 1).
    Returns (batch, frames, 3, side, side), float32 in [0, 1], on the device of `indices`.

    A scene is the same at any size: a shape is as large a part of the picture, and a clip shows as
    much of its motion however many frames it has.
    """
    import torch

    device = indices.device
    shape, colour, background, motion, size = indices.unbind(1)
    scale = side / SIDE
    x, y, radius = (scale * part for part in _path(motion, size, jitters.to(device), frames))

    grid = torch.arange(side, device=device, dtype=torch.float32) + 0.5
    px = grid.view(1, 1, 1, side) - x[..., None, None]
    py = grid.view(1, 1, side, 1) - y[..., None, None]
    distance = _outline(shape, px, py, radius[..., None, None])
    alpha = (0.5 - distance / EDGE).clamp(0, 1).unsqueeze(2)

    def table(values: dict[str, tuple[float, float, float]], index: torch.Tensor) -> torch.Tensor:
        rgb = torch.tensor(list(values.values()), device=device)[index]
        return rgb.view(-1, 1, 3, 1, 1)

    # A vertical gradient, so that no region is exactly flat and banding has somewhere to show.
    shade = torch.linspace(1.2, 0.8, side, device=device).view(1, 1, 1, side, 1)
    behind = (table(BACKGROUNDS, background) * shade).expand(-1, frames, -1, -1, side)
    return behind + alpha * (table(COLOURS, colour) - behind)


def render_scenes(
    wanted: list[Scene], seed: int, frames: int = FRAMES, side: int = SIDE
) -> torch.Tensor:
    """`render` for a list of scenes, with jitter drawn from one seed."""
    import torch

    indices = torch.tensor([scene.indices() for scene in wanted])
    return render(indices, jitter(len(wanted), seed), frames, side)


def shrunk(clips: torch.Tensor) -> torch.Tensor:
    """Clips as large as the smallest that are rendered: FRAMES frames, SIDE pixels a side.

    clips: (batch, frames, 3, height, width), no fewer frames and no smaller. Frames are chosen
    evenly from first to last, pixels averaged over their areas. Of a rendered clip this is nearly
    the same scene rendered small; clips of that size come back as they are.
    """
    import torch

    batch, frames, channels = clips.shape[:3]
    if (frames, *clips.shape[3:]) == (FRAMES, SIDE, SIDE):
        return clips
    chosen = torch.linspace(0, frames - 1, FRAMES, dtype=torch.float64).round().long()
    picked = clips[:, chosen.to(clips.device)].flatten(0, 1)
    small = torch.nn.functional.adaptive_avg_pool2d(picked, SIDE)
    return small.view(batch, FRAMES, channels, SIDE, SIDE)


def shrinks(frames: int, height: int, width: int) -> bool:
    """Whether `shrunk` gives a true picture of videos of this size: the world is square."""
    return frames >= FRAMES and height == width >= SIDE


def _path(
    motion: torch.Tensor, size: torch.Tensor, jitters: torch.Tensor, frames: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Centre x, y and radius, in pixels of a picture SIDE wide, each (batch, frames)."""
    import torch

    device = motion.device
    t = torch.linspace(0, 1, frames, device=device).view(1, -1)
    u, v, speed, phase = (jitters[:, i : i + 1] for i in range(JITTERS))
    base = torch.tensor(list(SIZES.values()), device=device)[size].unsqueeze(1)
    cx = SIDE / 2 + (u - 0.5) * 8
    cy = SIDE / 2 + (v - 0.5) * 8

    glide = (20 + 6 * speed) * (t - 0.5)
    turn = 2 * math.pi * (t + phase)
    arm = 9 + 2 * speed
    sway = (11 + 2 * speed) * torch.sin(2 * math.pi * t) * (1 - 2 * (phase > 0.5).float())
    scale = 1 + (0.35 + 0.1 * speed) * (2 * t - 1)
    still = torch.zeros_like(glide)

    def choose(**by_motion: torch.Tensor) -> torch.Tensor:
        stacked = torch.stack([by_motion.get(name, still).expand_as(still) for name in MOTIONS])
        return stacked[motion, torch.arange(len(motion), device=device)]

    dx = choose(left=-glide, right=glide, orbit=arm * torch.cos(turn), swing=sway)
    dy = choose(up=-glide, down=glide, orbit=arm * torch.sin(turn))
    growth = choose(grow=scale - 1, shrink=1 - scale)
    return cx + dx, cy + dy, base * (1 + growth)


def _outline(
    shape: torch.Tensor, x: torch.Tensor, y: torch.Tensor, r: torch.Tensor
) -> torch.Tensor:
    """Signed distance in pixels to the outline of each clip's shape, negative inside."""
    import torch

    size = torch.broadcast_shapes(x.shape, y.shape, r.shape)
    found = torch.empty(size, device=x.device)
    for number, name in enumerate(SHAPES):
        rows = (shape == number).nonzero().flatten()
        if len(rows):
            found[rows] = _distance(name, x[rows], y[rows], r[rows])
    return found


def _distance(name: str, x: torch.Tensor, y: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Signed distance to the outline of one shape of radius r around the origin.

    The formulas are the two-dimensional distance functions of Inigo Quilez
    (iquilezles.org/articles/distfunctions2d); y points down the picture.
    """
    import torch

    def box(half_x: torch.Tensor, half_y: torch.Tensor) -> torch.Tensor:
        dx, dy = x.abs() - half_x, y.abs() - half_y
        outside = torch.hypot(dx.clamp(min=0), dy.clamp(min=0))
        return outside + torch.maximum(dx, dy).clamp(max=0)

    def polygon(points: list[tuple[float, float]]) -> torch.Tensor:
        squared, inside = None, None
        for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
            ex, ey = (bx - ax) * r, (by - ay) * r
            wx, wy = x - ax * r, y - ay * r
            along = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
            away = (wx - ex * along) ** 2 + (wy - ey * along) ** 2
            crosses = ((ay * r <= y) != (by * r <= y)) & ((ex * wy - ey * wx) * torch.sign(ey) < 0)
            squared = away if squared is None else torch.minimum(squared, away)
            inside = crosses if inside is None else inside ^ crosses
        assert squared is not None
        assert inside is not None
        return squared.sqrt() * (1 - 2 * inside.float())

    def spikes(count: int, inner: float) -> list[tuple[float, float]]:
        angles = [math.pi * i / count for i in range(2 * count)]
        radii = [1.0 if i % 2 == 0 else inner for i in range(2 * count)]
        return [(q * math.sin(a), -q * math.cos(a)) for q, a in zip(radii, angles, strict=True)]

    if name == "circle":
        return torch.hypot(x, y) - 0.9 * r
    if name == "ring":
        return (torch.hypot(x, y) - 0.72 * r).abs() - 0.23 * r
    if name == "square":
        return box(0.78 * r, 0.78 * r)
    if name == "cross":
        return torch.minimum(box(r, 0.32 * r), box(0.32 * r, r))
    if name == "triangle":
        thirds = (0.0, 2 * math.pi / 3, 4 * math.pi / 3)
        return polygon([(math.sin(a), 0.1 - math.cos(a)) for a in thirds])
    if name == "star":
        return polygon(spikes(5, 0.42))
    raise ValueError(f"no outline of a {name}")
