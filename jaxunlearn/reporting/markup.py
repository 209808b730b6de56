"""The bricks of the page: its style, and tables whose text is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .tables import UNDEFINED, number
from .views import Column

_WORDS = ' class="words"'
CSS = """
:root{--ink:#1a1a1a;--soft:#595959;--line:#dcdcdc;--tint:#f6f6f3}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);
background:#fff;max-width:1180px;margin:0 auto;padding:1.2rem 1rem 4rem}
h1{font-size:1.55rem;line-height:1.3;margin:.2rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.6rem 0 .5rem;border-bottom:2px solid var(--ink);padding-bottom:.2rem}
h3{font-size:1rem;margin:1.5rem 0 .3rem}
p,li,dd{max-width:80ch;overflow-wrap:anywhere} .soft,figcaption,small{color:var(--soft)}
.kicker{margin:0;color:var(--soft);letter-spacing:.02em}
.scroll{overflow-x:auto;margin:.6rem 0} .scroll svg{display:block;min-width:680px;width:100%;
height:auto} .narrow svg{max-width:800px}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .5rem;border-bottom:1px solid var(--line);text-align:right;
vertical-align:top;white-space:nowrap}
th{font-weight:600} thead th{border-bottom:2px solid var(--soft)}
th:first-child,.words{text-align:left}
tbody th{white-space:normal;min-width:9rem;max-width:16.5rem;overflow-wrap:break-word}
td.words{white-space:normal;min-width:9rem} td small{display:block}
td.said{text-align:left;white-space:normal;padding-top:0} tr:has(+tr td.said)>*{border-bottom:0}
td.said p{margin:0;position:sticky;left:.5rem;display:inline-block;max-width:min(80ch,85vw)}
td.said b{padding:0 .5rem;border-left:.5rem solid;background:var(--tint)}
tr.reference{background:var(--tint)}
.note{border-left:.4rem solid #E69F00;background:#fdf6e7;padding:.3rem 1rem}
dt{font-weight:600;margin-top:.7rem} dd{margin:.1rem 0 0 1rem} figure{margin:0}
pre{background:var(--tint);padding:.7rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.82rem}
.reason{font-size:1.3rem;border-left:.5rem solid #D55E00;padding:.4rem 1rem;background:#fdf1ea}
"""


def spread(summary: Mapping[str, Any] | None, main: Column | None = None) -> str:
    """A number above its interval; in the scale and with the digits of `main` where it is given."""
    value, low, high = ((summary or {}).get(key) for key in ("value", "low", "high"))

    def shown(x: float) -> str:
        return number(x) if main is None else f"{main.scale * x:.{main.digits}f}"

    if value is None:
        return UNDEFINED
    if summary and summary.get("quantile95") is not None:
        return f"{shown(value)}<small>95 % below {shown(summary['quantile95'])}</small>"
    if low is None or high is None:
        return shown(value)
    return f"{shown(value)}<small>{shown(low)} to {shown(high)}</small>"


def stacked(text: str) -> str:
    """The text "0.9 [0.8, 1.0]" with its interval on a line of its own, escaped."""
    value, _, between = text.partition(" [")
    below = f"<small>{escape(between[:-1].replace(', ', ' to '))}</small>" if between else ""
    return escape(value) + below


def grid(
    heads: Sequence[str],
    rows: Iterable[tuple[str, list[str]]],
    *,
    words: tuple[int, ...] = (),
    shaded: tuple[str, ...] = (),
    raw: bool = False,
) -> str:
    """A table; cells are escaped unless `raw`, labels always; columns in `words` hold sentences."""
    body = []
    for label, cells in rows:
        shade = ' class="reference"' if label in shaded else ""
        row = "".join(
            f"<td{_WORDS if i in words else ''}>{cell if raw else escape(str(cell))}</td>"
            for i, cell in enumerate(cells, 1)
        )
        body.append(f'<tr{shade}><th scope="row">{escape(label)}</th>{row}</tr>')
    return framed(heads, body, words)


def framed(heads: Sequence[str], body: list[str], words: tuple[int, ...] = ()) -> str:
    """A table around rows that are markup already."""
    head = "".join(
        f'<th scope="col"{_WORDS if i in words else ""}>{escape(text)}</th>'
        for i, text in enumerate(heads)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
