"""Labels beside points that do not overlap: each takes the nearest free place around its point.

    place = argmin over distances r, directions a of
            10^6 (labels overlapped) + 10^4 (points covered) + 10^3 (lines crossed)
            + 100 (points about as near to the label as its own) + r             r in points

Places are tried ring by ring until no farther one can be cheaper. A label that had to move away, or
that might be taken for that of another point, has a thin line to its own. Boxes are measured by the
renderer, in pixels, so the axes must have their final place and limits.

| input                                     | result                                            |
|-------------------------------------------|---------------------------------------------------|
| no points                                 | nothing                                           |
| equal points                              | labels around them, one leader each               |
| no free place inside the axes             | the place with the fewest overlaps                |

Source: greedy point-feature labelling; J. Christensen, J. Marks, S. Shieber (1995), "An empirical
study of algorithms for point-feature label placement", ACM Trans. Graphics 14(3), is the survey.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Spot = tuple[float, float]  # pixels
Box = tuple[float, float, float, float]  # left, low, right, high in pixels

_RINGS = (7, 11, 16, 24, 34, 46, 60, 76, 95, 116, 140, 170, 205, 245, 290, 340)  # points
_DIRECTIONS = 24
_MARGIN = 2.0  # pixels between boxes


class Point(NamedTuple):
    """A labelled point in the data coordinates of some axes."""

    label: str
    x: float
    y: float
    colour: str
    marker: str


def place_labels(axes: Any, points: Sequence[Point], *, size: float, colour: str) -> list[Any]:
    """Write the label of every point near it, without overlaps where there is room.

    Args:
        axes: matplotlib axes with an Agg canvas, at their final place and limits.
        points: what to label, in data coordinates.
        size: font size in points.
        colour: of the text.

    Returns:
        The texts, in the order of `points`.

    Cost: points x places x points tests of rectangles: milliseconds for twenty points.
    """
    from matplotlib.patheffects import withStroke

    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    pixels = figure.dpi / 72
    far = 12 * pixels  # from here on a label has a line to its point
    frame = axes.get_window_extent(renderer).extents
    spots = [_spot(axes.transData.transform((p.x, p.y))) for p in points]
    half = 0.36 * size * pixels
    markers = [_box(spot, (half, half)) for spot in spots]
    boxes: list[Box] = []
    leaders: list[tuple[Spot, Spot]] = []
    texts = []
    for i, (point, spot) in enumerate(zip(points, spots, strict=True)):
        text = axes.text(
            0.5, 0.5, point.label, transform=axes.transAxes, fontsize=size, color=colour,
            ha="center", va="center", linespacing=1.0, zorder=5,
            path_effects=[withStroke(linewidth=4, foreground="white")],
        )  # fmt: skip
        extent = text.get_window_extent(renderer)
        reach = (extent.width / 2 + _MARGIN, extent.height / 2 + _MARGIN)
        best: tuple[float, Spot, int] | None = None
        for ring in _RINGS:
            for centre in _around(spot, ring * pixels, reach):
                box = _box(centre, reach)
                if box[0] < frame[0] or box[1] < frame[1] or box[2] > frame[2] or box[3] > frame[3]:
                    continue
                end = _nearest(spot, box)
                hidden = sum(_overlap(box, other) for other in boxes)
                covered = sum(_overlap(box, other) for other in markers)
                crossed = sum(_crosses(*leader, box) for leader in leaders)
                crossed += sum(_crosses(spot, end, other) for other in boxes)
                near = min(1.5 * math.dist(spot, end), far)
                others = spots[:i] + spots[i + 1 :]
                doubtful = sum(math.dist(other, _nearest(other, box)) < near for other in others)
                cost = 1e6 * hidden + 1e4 * covered + 1e3 * crossed + 100.0 * doubtful + ring
                if best is None or cost < best[0]:
                    best = (cost, centre, doubtful)
            if best is not None and best[0] <= ring:
                break
        centre = (
            best[1] if best is not None else spot
        )  # without a place inside: centred on its point
        text.set_position(axes.transAxes.inverted().transform(centre))
        boxes.append(_box(centre, reach))
        leaders.append((spot, _nearest(spot, boxes[-1])))
        texts.append(text)
        if math.dist(*leaders[-1]) > far or (best and best[2]):
            ends = axes.transAxes.inverted().transform(leaders[-1])
            axes.plot(*ends.T, transform=axes.transAxes, color="#9a9a9a", lw=0.7, zorder=3)
    return texts


def _around(spot: Spot, ring: float, reach: Spot) -> Iterator[Spot]:
    """Centres of boxes of half size `reach` whose edge is about `ring` pixels from the spot."""
    for k in range(_DIRECTIONS):
        angle = 2 * math.pi * k / _DIRECTIONS
        step = (round(math.cos(angle), 6), round(math.sin(angle), 6))
        across, up = (
            ring * s + math.copysign(r, s) * (s != 0) for s, r in zip(step, reach, strict=True)
        )
        yield spot[0] + across, spot[1] + up


def _spot(position: Any) -> Spot:
    return float(position[0]), float(position[1])


def _box(centre: Spot, reach: Spot) -> Box:
    return centre[0] - reach[0], centre[1] - reach[1], centre[0] + reach[0], centre[1] + reach[1]


def _nearest(spot: Spot, box: Box) -> Spot:
    """The point of the rectangle that is nearest to the spot."""
    return min(max(spot[0], box[0]), box[2]), min(max(spot[1], box[1]), box[3])


def _overlap(a: Box, b: Box) -> bool:
    """Whether two rectangles share an area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _crosses(start: Spot, end: Spot, box: Box) -> bool:
    """Whether a segment meets a rectangle, by clipping it to the four sides (Liang and Barsky)."""
    first, last = 0.0, 1.0
    for axis in (0, 1):
        step = end[axis] - start[axis]
        near, far = box[axis] - start[axis], box[axis + 2] - start[axis]
        if step == 0:
            if near > 0 or far < 0:
                return False
            continue
        a, b = sorted((near / step, far / step))
        first, last = max(first, a), min(last, b)
    return first <= last
