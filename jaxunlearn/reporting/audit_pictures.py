"""The pictures of an audit: curves, and numbers beside the oracles'.

    curve      a row's curve with its interval, the oracles' and the originals' beside it
    strips     value and interval of each measure: the row, the oracles, the originals, the floor

In every picture the row is blue and solid, the oracles (true retrainings) black and dashed, the
originals orange and dotted; so are their markers. What is undefined is left out, and a picture of
nothing is None.

Every function takes plain data and returns an SVG as text; equal data give equal bytes
(`drawing`). Colours are those of M. Okabe and K. Ito.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .drawing import drawing, folded, svg
from .reading import Record, finite, rounded, rows_of, summary
from .tables import UNDEFINED

_INK, _SOFT = "#1a1a1a", "#595959"
_STRIP = 122  # pixels of height for each measure


class Look(NamedTuple):
    """How the models of one kind are drawn."""

    colour: str
    marker: str
    line: str  # of matplotlib
    order: int  # the higher, the nearer to the eye


ROW, ORACLE, ORIGINAL = (
    Look("#0072B2", "o", "-", 2),
    Look("#000000", "D", "--", 3),
    Look("#D55E00", "*", ":", 2),
)


def shown_rows(audit: Record, row: Record) -> list[tuple[Record, Look]]:
    """The row, the oracles and the originals, each once: what its pictures compare."""
    found = [(row, ORIGINAL if row["role"] == "original" else ROW)]
    found += [(each, ORACLE) for each in rows_of(audit, "oracle")[:1] if each is not row]
    if row["role"] != "original":
        found += [(each, ORIGINAL) for each in rows_of(audit, "original")[:1]]
    return found


def numbers(values: Sequence[Any] | None) -> np.ndarray:
    """The numbers as float64, NaN where one is None or not finite."""
    return np.array([np.nan if finite(v) is None else float(v) for v in values or ()], np.float64)


def curve(audit: Record, row: Record, key: str, name: str = "curve") -> str | None:
    """One curve of the row, beside those of the oracles and of the originals.

    Args:
        audit: the record of an audit.
        row: one of its rows.
        key: of the curve, described in `audit["curves"]`.
        name: prefix of the ids in the picture.

    Returns:
        An SVG; None where the row's own curve is undefined everywhere. Where x has names (`ticks`)
        the points stand at equal steps, in their order.
    """
    told = audit["curves"][key]
    x = np.arange(len(told["x"]), dtype=float) if told.get("ticks") else numbers(told["x"])
    drawn = [
        (each, look, (each.get("curves") or {}).get(key) or {})
        for each, look in shown_rows(audit, row)
    ]
    if not np.isfinite(numbers(drawn[0][2].get("value"))).any():
        return None
    with drawing(760, 350) as figure:
        axes = figure.add_axes((0.105, 0.155, 0.865, 0.72))
        _scale(axes, x, told)
        for each, look, values in reversed(drawn):
            y = numbers(values.get("value"))
            if not np.isfinite(y).any():
                continue
            low, high = numbers(values.get("low")), numbers(values.get("high"))
            if low.size and high.size:
                axes.fill_between(x, low, high, color=look.colour, alpha=0.13, lw=0)
            size = 4.5 if look.marker != "*" else 8
            face = "white" if look is ORACLE else look.colour
            axes.plot(
                x, y, ls=look.line, color=look.colour, lw=2.4 if each is row else 1.5,
                marker=look.marker if x.size <= 24 else None, markersize=size,
                markerfacecolor=face, zorder=look.order, label=folded(each["label"], 34, 1),
            )  # fmt: skip
        axes.set_xlabel(told.get("x_title") or "", fontsize=9.5)
        axes.set_ylabel(told.get("y_title") or "", fontsize=9.5)
        axes.grid(color="#ececec")
        legend(axes)
        return svg(figure, name)


def _scale(axes: Any, x: np.ndarray, told: Mapping[str, Any]) -> None:
    """The x axis: names at equal steps; else logarithmic where asked, linear near 0."""
    positive = x[x > 0]
    if told.get("log_x") and positive.size and not told.get("ticks"):
        if (x <= 0).any():
            axes.set_xscale("symlog", linthresh=float(positive.min()), linscale=0.5)
        else:
            axes.set_xscale("log")
        axes.xaxis.minorticks_off()
    if told.get("ticks"):
        axes.set_xticks(x, [folded(str(tick), 14) for tick in told["ticks"]], minor=False)
    elif told.get("log_x") and 0 < x.size <= 12:
        axes.set_xticks(x, [f"{value:g}" for value in x], minor=False)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Any) -> None:
    """Who is who, above the axes."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, frameon=False, fontsize=9,
        handlelength=2.6, columnspacing=1.6, borderaxespad=0.2,
    )  # fmt: skip


def strips(audit: Record, row: Record, keys: Sequence[str], name: str = "strips") -> str | None:
    """One strip for each measure: dots and intervals of the row, the oracles, the originals.

    Args:
        audit: the record of an audit.
        row: one of its rows.
        keys: measures, described in `audit["measures"]`; those that are undefined for all of the
            three are left out.
        name: prefix of the ids in the picture.

    Returns:
        An SVG, each strip in the unit of its measure, with the floor (oracles against oracles)
        shaded; None without any number.
    """
    rows = shown_rows(audit, row)
    kept = [key for key in keys if any(_value(each, key)["value"] is not None for each, _ in rows)]
    if not kept:
        return None
    tall = _STRIP * len(kept) + 8
    with drawing(900, tall) as figure:
        for i, key in enumerate(kept):
            told = audit["measures"][key]
            unit = f", {told['unit']}" if told.get("unit") else ""
            top = tall - _STRIP * i
            axes = figure.add_axes((0.225, (top - 98) / tall, 0.5, 64 / tall))
            title = folded(f"{told['title']}{unit}", 90, 1)
            high = (top - 12) / tall
            figure.text(0.005, high, title, fontsize=9.5, va="center", weight="bold", color=_INK)
            _strip(axes, [(each, look, _value(each, key)) for each, look in rows],
                   summary(audit["floors"].get(key)), told)  # fmt: skip
        return svg(figure, name)


def _value(row: Record, key: str) -> dict[str, float | None]:
    return summary((row.get("measures") or {}).get(key))


def _strip(
    axes: Any,
    rows: Sequence[tuple[Record, Look, Mapping[str, float | None]]],
    floor: Mapping[str, float | None],
    told: Mapping[str, Any],
) -> None:
    scale, digits = told.get("scale", 1.0), told.get("digits", 2)
    ends = (floor["low"], floor["high"])
    low, high = ends if None not in ends else (floor["value"], floor["value"])
    if low is not None and high is not None:
        axes.axvspan(scale * low, scale * high, color="#999999", alpha=0.28, lw=1)
    for y, (_, look, found) in enumerate(rows):
        value = found["value"]
        if value is None:
            axes.text(1.02, y, UNDEFINED, va="center", fontsize=8.5, color=_SOFT,
                      transform=axes.get_yaxis_transform())  # fmt: skip
            continue
        text = f"{rounded(scale * value, digits):.{digits}f}"
        if found["low"] is not None and found["high"] is not None:
            span = (scale * found["low"], scale * found["high"])
            axes.plot(span, (y, y), color=look.colour, lw=2, solid_capstyle="butt")
            low, high = (f"{rounded(end, digits):.{digits}f}" for end in span)
            text += f"   [{low}, {high}]"
        face = "white" if look is ORACLE else look.colour
        axes.plot(scale * value, y, marker=look.marker, color=look.colour, markerfacecolor=face,
                  markersize=9 if look.marker == "*" else 6, clip_on=False)  # fmt: skip
        axes.text(1.02, y, text, va="center", fontsize=8.5, color=_INK,
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.margins(x=0.06)
    left, right = axes.get_xlim()
    if math.isclose(left, right, abs_tol=1e-12):
        axes.set_xlim(left - 0.5, right + 0.5)
    axes.locator_params(axis="x", nbins=5)
    axes.set(ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)))
    axes.set_yticklabels([folded(each["label"], 30, 1) for each, _, _ in rows], fontsize=8.5)
    axes.tick_params(axis="x", labelsize=8, length=2)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#ececec")
    axes.spines[["top", "right", "left"]].set_visible(False)
