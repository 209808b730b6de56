"""The pictures of a comparison: trade-off, accuracy and energy per part, membership curves.

    trade-off    x = max over retain, adjacent, remote, test of energy(row, oracles) / recipe floor
                 y = energy(row, oracles) / recipe floor on forget data

Both axes are in recipe floors and symmetric-logarithmic: linear from -1 to 1, where the noise is,
and logarithmic beyond. A retrained model lies near (0, 0); an energy is an unbiased estimate and
may be a little below 0. What has no energy is named under the plot instead of being drawn
somewhere.

Every function takes the record of a comparison and returns an SVG as text (`png` writes a file).
Equal records give equal pictures, byte for byte (`drawing`). Colours are those of M. Okabe and
K. Ito, which people with any common colour vision can tell apart; verdicts differ by marker too.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .drawing import DPI, drawing, folded, svg
from .labels import Point, place_labels
from .tables import Line, kept_in_floors, lines, not_informative, parts
from .views import Column, column

# verdict -> (colour, marker)
STYLES = {
    "indistinguishable from retraining": ("#009E73", "o"),
    "within recipe noise": ("#56B4E9", "s"),
    "under-forgotten": ("#E69F00", "^"),
    "over-forgotten": ("#CC79A7", "v"),
    "elsewhere": ("#0072B2", "D"),
    "collapsed": ("#5B5B5B", "X"),
    "not informative": ("#5B5B5B", "P"),
    "nothing to forget": ("#5B5B5B", "P"),
    "reference": ("#A6A6A6", "d"),
}
_ORIGINAL, _ORACLE = ("#D55E00", "*"), ("#000000", "o")
_DENSE = 24  # rows of a picture of fixed height
_INK, _PALE = "#1a1a1a", "#c9c9c9"


def style(line: Line) -> tuple[str, str]:
    """(colour, marker) of a row: by its verdict, except for the two ends of the scale."""
    if line.role in ("original", "oracle"):
        return _ORIGINAL if line.role == "original" else _ORACLE
    return STYLES.get(line.verdict, ("#5B5B5B", "P"))


def tradeoff(record: Mapping[str, Any]) -> str | None:
    """Forgetting against collateral damage, as SVG; None without any recipe floor."""
    if not record["floors"] or not lines(record):
        return None
    with drawing(760, 640) as figure:
        _tradeoff(figure, [0.10, 0.225, 0.82, 0.735], record, 9.5)
        _legend(figure, lines(record), 9)
        return svg(figure, "tradeoff")


def accuracies(record: Mapping[str, Any]) -> str | None:
    """The main metric of every row on every part, the oracle's as a line; None without rows."""
    rows = lines(record)
    if not rows:
        return None
    with drawing(1040, 64 + 29 * len(rows)) as figure:
        _bars(figure, [0.24, 0.98], _height(len(rows)), rows, parts(record), column(record))
        return svg(figure, "accuracy")


def energies(record: Mapping[str, Any]) -> str | None:
    """Energy of every row in recipe floors, per part; None without any recipe floor."""
    rows = [row for row in lines(record) if row.role != "oracle"]
    if not rows or not record["floors"]:
        return None
    shown = [part for part in parts(record) if part in record["floors"]]
    with drawing(1040, 64 + 29 * len(rows)) as figure:
        _bars(figure, [0.24, 0.98], _height(len(rows)), rows, shown, None)
        return svg(figure, "energy")


def curves(record: Mapping[str, Any]) -> str | None:
    """Mean ROC of the loss attack on every row, the oracle's beside it; None without curves."""
    rows = [row for row in lines(record) if row.label in record["curves"] and row.role != "oracle"]
    if not rows or not any(record["curves"].values()):
        return None
    oracle = next((row.label for row in lines(record) if row.role == "oracle"), None)
    deep = math.ceil(len(rows) / 4)
    tall = 228 * deep + 30
    with drawing(1040, tall) as figure:
        for i, row in enumerate(rows):
            left, low = 0.05 + 0.24 * (i % 4), 1 - (228 * (i // 4) + 206) / tall
            axes = figure.add_axes((left, low, 0.19, 158 / tall))
            axes.plot([0, 1], [0, 1], color=_PALE, lw=1, ls=":")
            for label, (colour, _), width in ((oracle, _ORACLE, 1.0), (row.label, style(row), 2.2)):
                found = record["curves"].get(label)
                if found:
                    axes.plot(found["fpr"], found["tpr"], color=colour, lw=width)
            if not record["curves"][row.label]:
                axes.text(0.96, 0.08, "undefined", ha="right", fontsize=9)
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 1], yticks=[0, 1])
            axes.set_title(folded(row.label, 24), fontsize=9)
            if i % 4 == 0:
                axes.set_ylabel("true positive rate", fontsize=8)
            if i + 4 >= len(rows):
                axes.set_xlabel("false positive rate", fontsize=8, labelpad=-4)
        return svg(figure, "membership")


def png(record: Mapping[str, Any], path: Path | str) -> Path:
    """Writes one picture of the whole comparison: trade-off, accuracies, verdicts.

    Args:
        record: the record of a comparison.
        path: file to write, replaced if it is there.

    Returns:
        The path. The picture has 1600 x 1000 pixels; where there is nothing to measure it holds
        the reason in large letters.
    """
    rows = lines(record)
    with drawing(1600, 1000) as figure:
        headline = textwrap.fill(record["headline"], 112, max_lines=3, placeholder=" ...")
        reason = not_informative(record)
        if reason or not record["floors"]:
            told = f"Not informative: {reason}." if reason else record["headline"]
            told = textwrap.fill(told, 52, max_lines=6, placeholder=" ...")
            figure.text(0.06, 0.86, told, fontsize=30, va="top", weight="bold", color=_INK)
            asked = textwrap.fill(record["task"]["description"], 96)
            figure.text(0.06, 0.3, asked, fontsize=17, va="top", color="#555555")
        else:
            figure.text(0.02, 0.965, headline, fontsize=17, va="top", weight="bold", color=_INK)
            _tradeoff(figure, [0.055, 0.11, 0.40, 0.71], record, 12)
            shown = [part for part in ("forget", "retain", "test") if part in record["parts"]]
            _bars(figure, [0.625, 0.87], (0.11, 0.71), rows, shown, column(record), 12, True)
        path = Path(path)
        figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})
    return path


def _tradeoff(figure: Any, place: Sequence[float], record: Mapping[str, Any], size: float) -> None:
    """Axes with one point per row, its label beside it, and the recipe floor shaded."""
    points, missing = [], []
    for line in lines(record):
        forget, kept = line.energy.get("forget"), kept_in_floors(line.energy)
        if line.role == "oracle":
            points.append(Point(folded(line.label, 26, 3), 0.0, 0.0, *style(line)))
        elif forget is None or kept is None:
            missing.append(line.label)
        else:
            points.append(Point(folded(line.label, 26, 3), kept, forget, *style(line)))
    axes = figure.add_axes(place)
    for axis, values in (("x", [p.x for p in points]), ("y", [p.y for p in points])):
        low, high = min([-0.45, *(1.3 * v for v in values)]), max([10.0, *(3 * v for v in values)])
        getattr(axes, f"set_{axis}scale")("symlog", linthresh=1, linscale=0.9)
        getattr(axes, f"set_{axis}lim")(low, high)
        decades = [10.0**k for k in range(math.ceil(math.log10(high))) if 10.0**k <= high]
        ticks = [0.0, *decades]
        getattr(axes, f"set_{axis}ticks")(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        getattr(axes, f"{axis}axis").minorticks_off()
    axes.grid(color="#ececec")
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    axes.fill([left, 1, 1, left], [low, low, 1, 1], color="#009E73", alpha=0.10, lw=0)
    axes.axvline(1, color=_INK, lw=1, ls="--")
    axes.axhline(1, color=_INK, lw=1, ls="--")
    axes.text(1, high, "recipe floor", ha="center", va="bottom", fontsize=0.9 * size, color=_INK)
    axes.text(right, 1, " recipe\n floor", ha="left", va="center", fontsize=0.9 * size, color=_INK)
    axes.set_xlabel("collateral: largest energy on kept data, recipe floors", fontsize=size)
    axes.set_ylabel("energy on forget data, recipe floors", fontsize=size)
    axes.tick_params(labelsize=0.9 * size)
    for point in points:
        hollow = point.marker == "o" and point.colour == _ORACLE[0]
        face = "none" if hollow else point.colour
        area = (1.5 if point.marker == "*" else 1.0) * 7 * size
        axes.scatter(
            point.x, point.y, s=area, marker=point.marker, facecolor=face, zorder=4,
            edgecolor=point.colour if hollow else "white", linewidth=1.6 if hollow else 0.7,
            clip_on=False,
        )  # fmt: skip
    place_labels(axes, points, size=size, colour=_INK)
    if missing:
        text = f"not drawn, energy undefined: {', '.join(missing)}"
        text = textwrap.fill(text, 76, max_lines=2, placeholder=" ...")
        figure.text(place[0], 0.015, text, fontsize=0.9 * size, color="#555555", va="bottom")


def _bars(
    figure: Any,
    across: Sequence[float],
    down: Sequence[float],
    rows: Sequence[Line],
    shown: Sequence[str],
    main: Column | None,
    size: float = 9,
    verdicts: bool = False,
) -> None:
    """One panel per part, side by side: a bar per row, named on the left, judged on the right.

    Bars are of the main metric, or, where that is None, of the energy in floors.
    """
    gap = 0.012
    width = (across[1] - across[0] + gap) / len(shown) - gap
    oracle = next((row for row in rows if row.role == "oracle"), None)
    largest = max([10.0, *(v for row in rows for v in row.energy.values() if v is not None)])
    smallest = min([0.0, *(v for row in rows for v in row.energy.values() if v is not None)])
    for i, part in enumerate(shown):
        axes = figure.add_axes((across[0] + i * (width + gap), down[0], width, down[1]))
        for y, row in enumerate(rows):
            summary = (row.energy if main is None else row.accuracy).get(part)
            if isinstance(summary, Mapping):
                value, ends = summary.get("value"), (summary.get("low"), summary.get("high"))
            else:
                value, ends = summary, (None, None)
            if value is None:
                axes.text(0.03, y, "undefined", va="center", fontsize=0.85 * size, color="#555555",
                          transform=axes.get_yaxis_transform(), zorder=4,
                          bbox={"color": "white", "pad": 1})  # fmt: skip
                continue
            axes.barh(y, value, height=0.62, color=style(row)[0], alpha=0.85)
            if None not in ends:
                axes.plot(ends, (y, y), color=_INK, lw=1.2, solid_capstyle="butt")
        if main is not None:
            held = oracle.accuracy.get(part) if oracle else None
            if held and held.get("value") is not None:
                axes.axvline(held["value"], color=_INK, lw=1.2, ls="--")
            end = main.limit or _end(rows, shown)
            axes.set_xlim(0, 1.001 * end)
            ticks = [0, end / 2, end]
            axes.set_xticks(ticks, [f"{main.scale * tick:g}" for tick in ticks])
            for text, side in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
                text.set_ha(side)
        else:
            axes.set_xscale("symlog", linthresh=1, linscale=0.7)
            axes.set_xlim(min(0.0, 1.2 * smallest), 2 * largest)
            ticks = [0.0, *(10.0**k for k in range(0, math.ceil(math.log10(2 * largest)), 2))]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
            axes.xaxis.minorticks_off()
            axes.axvline(1, color=_INK, lw=1.2, ls="--")
        unit = "floors" if main is None else main.unit
        axes.set_title(part.replace("_", " ") + (f", {unit}" if unit else ""), fontsize=size)
        axes.tick_params(labelsize=0.85 * size, length=2)
        axes.set(ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)))
        fold = 24 if verdicts else 30
        names = [folded(row.label, fold) for row in rows] if i == 0 else [""] * len(rows)
        axes.set_yticklabels(names, fontsize=(0.85 if verdicts else 1.0) * size, linespacing=1.0)
        axes.spines[["top", "right"]].set_visible(False)
        if verdicts and i == len(shown) - 1:
            dense = len(rows) > _DENSE  # two lines of a verdict would touch the next row
            for y, row in enumerate(rows):
                said = textwrap.fill(row.verdict, 40 if dense else 20)
                scale = 0.66 if dense else 0.85
                if row.role in ("original", "method"):
                    axes.text(1.16, y, said, va="center", fontsize=scale * size, linespacing=1.0,
                              transform=axes.get_yaxis_transform(), color=_INK)  # fmt: skip
    if verdicts and main is not None:
        words = f"{main.title} per part (dashed: the oracle's) and the verdict"
        figure.text(across[1] + 0.11, down[0] + down[1] + 0.045, words, ha="right", fontsize=size)


def _end(rows: Sequence[Line], shown: Sequence[str]) -> float:
    """Where the axes of a metric without a largest value end: the next of 1, 2, 3, 5, 10, ..."""
    summaries = [row.accuracy.get(part) or {} for row in rows for part in shown]
    values = [v for s in summaries for v in (s.get("value"), s.get("high")) if v is not None]
    largest = max([1e-9, *values])
    unit = 10.0 ** math.floor(math.log10(largest))
    return next(step * unit for step in (1, 2, 3, 5, 10) if step * unit >= largest)


def _legend(figure: Any, rows: Sequence[Line], size: float) -> None:
    """The verdicts that occur, under the plot."""
    from matplotlib.lines import Line2D

    found = {r.verdict: style(r) for r in rows if r.role == "method" and r.verdict}
    handles = [
        Line2D([], [], ls="", marker=marker, color=colour, label=verdict, markersize=7)
        for verdict, (colour, marker) in found.items()
    ]
    if handles:
        figure.legend(
            handles=handles, loc="lower center", bbox_to_anchor=(0.52, 0.055), ncols=4,
            fontsize=size, frameon=False, columnspacing=1.2, handletextpad=0.3,
        )  # fmt: skip


def _height(count: int) -> tuple[float, float]:
    """(bottom, height) of panels with `count` rows, as shares of the figure."""
    tall = 64 + 29 * count
    return 30 / tall, (tall - 60) / tall
