"""Forgetting, damage and cost together: which methods nobody beats, and their picture.

    costs of a row   (energy on forget data, largest energy on kept data, time)    all to be small

A method is on the front if no other one is as good in all three and better in one. The picture has
time across and distance on forget data up; methods that damage kept data by more than
`GENTLE` recipe floors are hollow, and a staircase joins the best of the others: what each budget
buys without breaking something else.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .drawing import drawing, folded, svg
from .labels import Point, place_labels
from .pictures import style
from .tables import Line, kept_in_floors, lines

GENTLE = 3.0  # recipe floors of collateral
_INK = "#1a1a1a"


def pareto_front(costs: ArrayLike) -> np.ndarray:
    """Which rows no other row beats: none is as good everywhere and better somewhere.

    Args:
        costs: (P, k) numbers, the smaller the better; a row with NaN is on no front.

    Returns:
        bool (P,). Equal rows are on the front together.

    Raises:
        ValueError: not a matrix.

    Example:
        >>> pareto_front([[1, 3], [2, 2], [3, 3], [3, 1]])
        array([ True,  True, False,  True])
    """
    table = np.asarray(costs, np.float64)
    if table.ndim != 2:
        raise ValueError(f"pareto_front: expected a (points, costs) matrix, got {table.shape}.")
    no_worse = (table[:, None] <= table[None]).all(axis=-1)
    better = (table[:, None] < table[None]).any(axis=-1)
    beaten = (no_worse & better).any(axis=0)
    return np.asarray(~beaten & ~np.isnan(table).any(axis=1))


def unbeaten(record: Mapping[str, Any]) -> list[str]:
    """Labels of the methods on the front of (forget energy, collateral, time), in their order."""
    found = _priced(record)
    if not found:
        return []
    costs = [
        (max(line.energy["forget"], 0.0), max(kept_in_floors(line.energy), 0.0), share)  # type: ignore
        for line, share in found
    ]
    front = pareto_front(costs)
    return [line.label for (line, _), on in zip(found, front, strict=True) if on]


def _priced(record: Mapping[str, Any]) -> list[tuple[Line, float]]:
    """The methods that have both energies and a share of retraining's time."""
    shares = {row["label"]: row["seconds"].get("of_retraining") for row in record["rows"]}
    return [
        (line, shares[line.label])
        for line in lines(record)
        if line.role == "method"
        and shares[line.label]
        and line.energy.get("forget") is not None
        and kept_in_floors(line.energy) is not None
    ]


def frontier(record: Mapping[str, Any]) -> str | None:
    """What each budget buys, as SVG; None where fewer than two methods have a share of time."""
    found = _priced(record)
    if len(found) < 2 or not record["floors"]:
        return None
    with drawing(760, 640) as figure:
        axes = figure.add_axes((0.10, 0.12, 0.82, 0.84))
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1, linscale=0.9)
        forget = [line.energy["forget"] or 0.0 for line, _ in found]
        share = [part for _, part in found]
        axes.set_xlim(0.6 * min(share), 2.5 * max(share))
        axes.set_ylim(min(-0.45, 1.3 * min(forget)), max(10.0, 3 * max(forget)))
        decades = range(math.floor(math.log10(min(share))), math.ceil(math.log10(max(share))) + 1)
        ticks = [10.0**k for k in decades if min(share) * 0.6 <= 10.0**k <= 2.5 * max(share)]
        axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
        axes.xaxis.minorticks_off()
        rungs = [0.0, *(10.0**k for k in range(math.ceil(math.log10(max(10.0, 3 * max(forget))))))]
        axes.set_yticks(rungs, [f"{rung:g}" for rung in rungs])
        axes.yaxis.minorticks_off()
        axes.grid(color="#ececec")
        axes.axhline(1, color=_INK, lw=1, ls="--")
        axes.text(axes.get_xlim()[1], 1, " recipe\n floor", va="center", fontsize=8.5, color=_INK)
        steps = _staircase(found)
        if steps:
            across, down = zip(*steps, strict=True)
            axes.step(across, down, where="post", color="#009E73", lw=1.5, zorder=2)
        points = []
        for line, part in found:
            colour, marker = style(line)
            gentle = (kept_in_floors(line.energy) or 0.0) <= GENTLE
            axes.scatter(
                part, line.energy["forget"], s=66, marker=marker, zorder=4, clip_on=False,
                facecolor=colour if gentle else "white", edgecolor=colour, linewidth=1.4,
            )  # fmt: skip
            height = line.energy["forget"] or 0.0
            points.append(Point(folded(line.label, 26, 3), part, height, colour, marker))
        axes.set_xlabel("time as a share of retraining", fontsize=9.5)
        axes.set_ylabel("energy on forget data, recipe floors", fontsize=9.5)
        place_labels(axes, points, size=9.5, colour=_INK)
        return svg(figure, "frontier")


def _staircase(found: list[tuple[Line, float]]) -> list[tuple[float, float]]:
    """(share, lowest forget energy up to it) of the gentle methods, where it falls."""
    gentle = sorted(
        (share, line.energy["forget"] or 0.0)
        for line, share in found
        if (kept_in_floors(line.energy) or 0.0) <= GENTLE
    )
    steps: list[tuple[float, float]] = []
    for share, energy in gentle:
        if not steps or energy < steps[-1][1]:
            steps.append((share, energy))
    return steps
