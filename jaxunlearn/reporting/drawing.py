"""Figures that come out the same everywhere: a style of their own, and SVG to stand inside a page.

Equal calls give equal bytes: letters are drawn as paths, nothing is dated, ids are derived from the
content, and the settings of the user neither enter nor change. Text is never read as mathematics,
so that a label may hold any character. matplotlib is imported when a figure is made.
"""

import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DPI = 100  # pixels per inch of every figure


def folded(label: str, width: int, most: int = 2) -> str:
    """A label on at most that many lines, broken after a space or a bracket where it can be.

    Example:
        >>> folded("neggrad_plus(alpha=0.9, epochs=3)", 24)
        'neggrad_plus(alpha=0.9,\\nepochs=3)'
    """
    spaced = label.replace("(", "( ")
    return textwrap.fill(spaced, width, max_lines=most, placeholder=" ...").replace("( ", "(")


@contextmanager
def drawing(width: int, height: int) -> Iterator[Any]:
    """An empty figure of that many pixels; draw and save it inside the block."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({
            "svg.fonttype": "path", "svg.hashsalt": "jaxunlearn", "text.parse_math": False,
            "axes.edgecolor": "#888888", "axes.axisbelow": True, "xtick.color": "#444444",
        })  # fmt: skip
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        FigureCanvasAgg(figure)
        yield figure


def svg(figure: Any, name: str) -> str:
    """The figure as an SVG element that can stand in a page beside others.

    Args:
        figure: a figure of `drawing`, within its block.
        name: prefix of all ids in the picture; different for each picture of a page.

    Returns:
        "<svg ...>...</svg>", without header, metadata, comments or name spaces.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.strip()
