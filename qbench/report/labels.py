"""Names beside the points of a chart: none over another, each seen to belong to its own point."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, low, right, high, in pixels
SIZE = 8.5  # points of the letters
CLEAR = 5.0  # pixels around a point, of markers and their edges
NEAR = 12.0  # pixels within which a name is at its point without a line
REACHES = (7, 11, 16, 24, 34, 46, 60, 76, 94, 114, 136, 160, 190, 220)
# Between the axes first, along which error bars run.
ANGLES = (45, 315, 135, 225, 22, 338, 158, 202, 68, 292, 112, 248, 90, 270, 0, 180)


@dataclass
class _Taken:
    """What is drawn already."""

    points: list[Point]
    boxes: list[Box] = field(default_factory=list)
    lines: list[tuple[Point, Point]] = field(default_factory=list)

    def free(self, box: Box, own: Point, line: tuple[Point, Point] | None, crossing: bool) -> bool:
        """Whether a name may stand in `box`. `crossing`: whether lines may cross each other."""
        if any(_distance(point, box) < CLEAR for point in self.points):
            return False
        if any(_overlap(box, other) for other in self.boxes):
            return False
        if any(_crosses_box(other, box) for other in self.lines):
            return False
        if line is None:
            # Without a line it must be plain whose name this is.
            nearest = min(self.points, key=lambda point: _distance(point, box))
            return _distance(own, box) <= _distance(nearest, box)
        if any(_crosses_box(line, other) for other in self.boxes):
            return False
        return crossing or not (
            any(_crosses(line, other) for other in self.lines)
            or any(point != own and _from_line(point, line) < CLEAR for point in self.points)
        )


def place(axes: Axes, points: list[Point], names: list[str]) -> list[str]:
    """Write each name beside its point, with a thin line where it had to go further away.

    The most crowded points choose first. Returns the names for which no place was left: one name
    over another is no name, and the table has it.
    """
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.5, foreground="white")]  # lines end before the letters
    axes.set_xlim(axes.get_xlim())  # what is not fixed yet would move under the names
    axes.set_ylim(axes.get_ylim())
    places: list[Point] = [(float(x), float(y)) for x, y in axes.transData.transform(points)]
    frame = axes.get_window_extent()
    inside: Box = (frame.x0, frame.y0, frame.x1, frame.y1)
    figure = axes.get_figure()
    scale = (figure.dpi if figure else 100.0) / 72
    taken = _Taken(places)
    lost = []
    order = sorted(range(len(points)), key=lambda i: -_crowd(places[i], places))
    for i in order:
        size = _size(axes, names[i])
        found = _seat(places[i], size, inside, taken, False)
        found = found or _seat(places[i], size, inside, taken, True)
        if found is None:
            lost.append(names[i])
            continue
        box, line = found
        taken.boxes.append(box)
        if line is not None:
            taken.lines.append(line)
        x, y = places[i]
        axes.annotate(
            names[i],
            points[i],
            xytext=((box[0] - x) / scale, (box[1] - y) / scale),
            textcoords="offset points",
            fontsize=SIZE,
            ha="left",
            va="bottom",
            path_effects=halo,
            zorder=4,
        )
        if line is not None:
            ends = [axes.transData.inverted().transform(end) for end in line]
            axes.plot(*zip(*ends, strict=True), color="#999999", lw=0.6, zorder=1)
    return lost


def _size(axes: Axes, name: str) -> Point:
    """Width and height in pixels."""
    text = axes.text(0, 0, name, fontsize=SIZE)
    box = text.get_window_extent()
    text.remove()
    return box.width, box.height


def _seat(
    point: Point, size: Point, inside: Box, taken: _Taken, crossing: bool
) -> tuple[Box, tuple[Point, Point] | None] | None:
    """The first free box around the point, from near to far, and the line that leads to it."""
    for reach in REACHES:
        for angle in ANGLES:
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x = point[0] + dx * (reach + size[0] / 2) - size[0] / 2
            y = point[1] + dy * (reach + size[1] / 2) - size[1] / 2
            box = (x, y, x + size[0], y + size[1])
            if not (
                box[0] >= inside[0] and box[1] >= inside[1]
                and box[2] <= inside[2] and box[3] <= inside[3]
            ):  # fmt: skip
                continue
            line = None if _distance(point, box) <= NEAR else (point, _nearest(point, box))
            if taken.free(box, point, line, crossing):
                return box, line
            pointing = (point, _nearest(point, box))
            if line is None and taken.free(box, point, pointing, crossing):
                return box, pointing
    return None


def _crowd(point: Point, points: list[Point]) -> float:
    return sum(math.exp(-math.dist(point, other) / 40) for other in points)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _nearest(point: Point, box: Box) -> Point:
    """The point of the box that is nearest to `point`."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _distance(point: Point, box: Box) -> float:
    return math.dist(point, _nearest(point, box))


def _crosses(a: tuple[Point, Point], b: tuple[Point, Point]) -> bool:
    def side(p: Point, q: Point, r: Point) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(*a, b[0]) * side(*a, b[1]) < 0 and side(*b, a[0]) * side(*b, a[1]) < 0


def _crosses_box(line: tuple[Point, Point], box: Box) -> bool:
    left, low, right, high = box
    corners = ((left, low), (right, low), (right, high), (left, high))
    inside = any(left < x < right and low < y < high for x, y in line)
    edges = zip(corners, (*corners[1:], corners[0]), strict=True)
    return inside or any(_crosses(line, edge) for edge in edges)


def _from_line(point: Point, line: tuple[Point, Point]) -> float:
    """Distance of a point from a segment."""
    (ax, ay), (bx, by) = line
    length = (bx - ax) ** 2 + (by - ay) ** 2
    if length == 0:
        return math.dist(point, line[0])
    along = ((point[0] - ax) * (bx - ax) + (point[1] - ay) * (by - ay)) / length
    along = min(1.0, max(0.0, along))
    return math.dist(point, (ax + along * (bx - ax), ay + along * (by - ay)))
