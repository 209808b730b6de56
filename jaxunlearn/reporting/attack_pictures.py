"""The pictures of attacks: how exposed each example is, and ROC curves.

    exposed    a_(1) >= a_(2) >= ...: the accuracy of an attack on each example, sorted, beside
               the same for oracles against oracles
    roc        true against false positive rate, linear, and logarithmic for the few false alarms

Looks are those of `audit_pictures`: the row blue and solid, the oracles black and dashed, the
originals orange and dotted. Equal data give equal bytes; a picture of nothing is None.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .audit_pictures import ORACLE, ROW, Look, legend, numbers
from .drawing import drawing, folded, svg

_INK, _PALE, _SOFT = "#1a1a1a", "#c9c9c9", "#595959"


def worst(scores: Sequence[Any] | None) -> int | None:
    """Which example an attack is most accurate on: the first of the largest; None without any.

    Example:
        >>> worst([0.5, None, 0.9, 0.9])
        2
    """
    found = numbers(scores)
    return int(np.nanargmax(found)) if np.isfinite(found).any() else None


def exposed(panels: Mapping[str, Mapping[str, Any]], name: str = "examples") -> str | None:
    """How exposed each example is: attack accuracies, sorted, one panel for each kind of data.

    Args:
        panels: title -> {"score": accuracy per example in [0, 1], "floor": the same for oracles
            against oracles, or None}.
        name: prefix of the ids in the picture.

    Returns:
        An SVG with the number of the worst example beside its point, counted from 0; None where no
        example has a score.

    Across are shares of the examples, so that panels of different sizes compare.
    """
    known = {title: p for title, p in panels.items() if worst(p.get("score")) is not None}
    if not known:
        return None
    with drawing(900, 360) as figure:
        width = 0.93 / len(known)
        for i, (title, panel) in enumerate(known.items()):
            axes = figure.add_axes((0.065 + i * width, 0.15, width - 0.06, 0.66))
            axes.axhline(0.5, color=_PALE, lw=1.2)
            axes.text(0, 0.49, "guessing", fontsize=8.5, color=_SOFT, va="top",
                      bbox={"color": "white", "pad": 0.5})  # fmt: skip
            for values, look, label in (
                (panel.get("floor"), ORACLE, "oracles against oracles"),
                (panel["score"], ROW, "these models"),
            ):
                found = numbers(values)
                found = np.sort(found[np.isfinite(found)])[::-1]
                across = 100 * (np.arange(found.size) + 0.5) / max(1, found.size)
                if found.size:
                    axes.plot(across, found, color=look.colour, ls=look.line, label=label,
                              lw=2.2 if look is ROW else 1.5,
                              marker=look.marker if found.size == 1 else None)  # fmt: skip
            at = worst(panel["score"])
            top = float(np.nanmax(numbers(panel["score"])))
            size = int(np.isfinite(numbers(panel["score"])).sum())
            axes.plot(50 / size, top, marker="o", color=ROW.colour, markersize=6, zorder=5)
            axes.annotate(
                f"example {at}: {top:.2f}", (50 / size, top), xytext=(10, 5), fontsize=9,
                textcoords="offset points", color=_INK, va="bottom",
            )  # fmt: skip
            axes.set(xlim=(-2, 102), ylim=(min(0.28, _least(panel)), 1.09))
            axes.set_xticks([0, 50, 100], ["0", "50", "100"])
            axes.tick_params(labelsize=8.5)
            count = f"{size} example{'s' if size != 1 else ''}"
            axes.set_title(f"{title} ({count})", fontsize=10, loc="left", pad=24)
            axes.set_xlabel("share of the examples, most exposed first, %", fontsize=9.5)
            if i == 0:
                axes.set_ylabel("accuracy of the attack", fontsize=9.5)
            axes.grid(color="#f0f0f0")
            axes.spines[["top", "right"]].set_visible(False)
            legend(axes)
        return svg(figure, name)


def _least(panel: Mapping[str, Any]) -> float:
    values = np.concatenate([numbers(panel["score"]), numbers(panel.get("floor"))])
    return float(np.nanmin(values)) - 0.03


def roc(
    curves: Sequence[tuple[str, Mapping[str, Any] | None, Look]], name: str = "roc"
) -> str | None:
    """ROC curves, linear and on logarithmic axes, which show the attacks with few false alarms.

    Args:
        curves: (label, {"fpr", "tpr"} or None, its look) each; the first is the row's own.
        name: prefix of the ids in the picture.

    Returns:
        An SVG; None where the first curve is undefined. On logarithmic axes a false positive
        rate of 0 is drawn at their end, and a true positive rate of 0 is left out.
    """
    own = [(label, _rates(found or {}), look) for label, found, look in curves]
    known = [each for each in own if each[1][0].size]
    if not known or known[0] is not own[0]:
        return None
    rates = np.concatenate([fpr for _, (fpr, _), _ in known])
    smallest = rates[rates > 0].min() if (rates > 0).any() else 0.1
    end = 10.0 ** min(-1, max(-4, math.floor(math.log10(smallest))))
    with drawing(900, 420) as figure:
        for i, least in enumerate((0.0, end)):
            axes = figure.add_axes((0.075 + 0.5 * i, 0.125, 0.41, 0.755))
            guessing = np.geomspace(least, 1, 2) if i else np.array([0.0, 1.0])
            axes.plot(guessing, guessing, color=_PALE, lw=1.4)
            for label, (fpr, tpr), look in reversed(known):
                seen = tpr > 0 if i else tpr >= 0
                axes.plot(np.maximum(fpr[seen], least), np.maximum(tpr[seen], least),
                          color=look.colour,
                          ls=look.line, lw=2.2 if look is known[0][2] else 1.5,
                          zorder=look.order, label=folded(label, 34, 1))  # fmt: skip
            if i:
                axes.set(xscale="log", yscale="log", xlim=(least, 1.15), ylim=(least, 1.15))
                ticks = [10.0**k for k in range(round(math.log10(least)), 1)]
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
                    axis.minorticks_off()
            else:
                axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
                axes.set_ylabel("forgotten examples recognised (true positive rate)", fontsize=9.5)
                legend(axes)
            axes.set_xlabel("others mistaken for them (false positive rate)", fontsize=9.5)
            axes.tick_params(labelsize=8.5)
            axes.grid(color="#ececec")
            axes.spines[["top", "right"]].set_visible(False)
        return svg(figure, name)


def _rates(curve: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, where both are defined."""
    fpr, tpr = numbers(curve.get("fpr")), numbers(curve.get("tpr"))
    known = np.isfinite(fpr) & np.isfinite(tpr)
    return fpr[known], tpr[known]
