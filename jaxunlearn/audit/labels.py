"""Labels beside points that do not overlap: each takes the nearest free place around its point.

    place = argmin over distances r, directions a of
            1000 (overlaps with points, labels, lines) + r

Places are tried ring by ring, so that the first free one is the nearest. A label that had to move
away keeps a thin line to its point. Boxes are measured by the renderer, in pixels, so the axes must
have their final place and limits.

| input                                     | result                                            |
|-------------------------------------------|---------------------------------------------------|
| no points                                 | nothing                                           |
| equal points                              | labels around them, one leader each               |
| no free place inside the axes             | the place with the fewest overlaps                |

Source: greedy point-feature labelling; J. Christensen, J. Marks, S. Shieber (1995), "An empirical
study of algorithms for point-feature label placement", ACM Trans. Graphics 14(3), is the survey.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

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
    frame = np.array(axes.get_window_extent(renderer).extents)
    spots = [np.asarray(axes.transData.transform((p.x, p.y)), float) for p in points]
    half = 0.36 * size * pixels
    markers = [np.array([*(s - half), *(s + half)]) for s in spots]
    boxes: list[np.ndarray] = []
    leaders: list[tuple[np.ndarray, np.ndarray]] = []
    texts = []
    for point, spot in zip(points, spots, strict=True):
        text = axes.text(
            0.5, 0.5, point.label, transform=axes.transAxes, fontsize=size, color=colour,
            ha="center", va="center", linespacing=1.0, zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        extent = text.get_window_extent(renderer)
        reach = np.array([extent.width, extent.height]) / 2
        best: tuple[float, np.ndarray, np.ndarray] | None = None
        for ring in _RINGS:
            for centre in _around(spot, ring * pixels, reach):
                box = np.array([*(centre - reach - _MARGIN), *(centre + reach + _MARGIN)])
                if (box[:2] < frame[:2]).any() or (box[2:] > frame[2:]).any():
                    continue
                end = np.clip(spot, box[:2], box[2:])
                clashes = sum(_overlap(box, other) for other in [*markers, *boxes])
                clashes += sum(_crosses(*leader, box) for leader in leaders)
                clashes += sum(_crosses(spot, end, other) for other in boxes)
                cost = 1000.0 * clashes + ring
                if best is None or cost < best[0]:
                    best = (cost, centre, box)
            if best is not None and best[0] < 1000:
                break
        if best is None:  # wider than the axes: centred on its point
            best = (0.0, spot, np.array([*(spot - reach), *(spot + reach)]))
        _, centre, box = best
        text.set_position(axes.transAxes.inverted().transform(centre))
        end = np.clip(spot, box[:2], box[2:])
        boxes.append(box)
        leaders.append((spot, end))
        texts.append(text)
        if np.hypot(*(end - spot)) > 12 * pixels:
            ends = axes.transAxes.inverted().transform([spot, end])
            axes.plot(*ends.T, transform=axes.transAxes, color="#9a9a9a", lw=0.7, zorder=3)
    return texts


def _around(spot: np.ndarray, ring: float, reach: np.ndarray) -> np.ndarray:
    """Centres of boxes of half size `reach` whose edge is `ring` pixels from the spot."""
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return spot + directions * ring + np.sign(np.round(directions, 6)) * reach


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two rectangles (left, low, right, high) share an area."""
    return bool((a[:2] < b[2:]).all() and (b[:2] < a[2:]).all())


def _crosses(start: np.ndarray, end: np.ndarray, box: np.ndarray) -> bool:
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
