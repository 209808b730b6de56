"""The numbers of an audit: a table for each family, with the oracles' own values first.

    numbers(audit)   measures by family, then the attack with shadow models

The first line of a table is the floor, one half of the oracles against the other; the second the
oracles themselves. What is undefined is the word "undefined".
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import reading
from .markup import framed, grid, spread
from .reading import Record, counted, family_words, rounded
from .views import Column

_AIMS = {"oracle": "aim: the oracles' value", "low": "low is better", "high": "high is better"}


def measure(found: Mapping[str, Any] | None, told: Mapping[str, Any]) -> str:
    """A number above its interval, in the unit and with the digits of its measure, as markup."""
    digits = told.get("digits", 2)
    shown = {
        end: None if value is None else rounded(told.get("scale", 1.0) * value, digits)
        for end, value in reading.summary(found).items()
    }
    return spread(shown, Column(scale=1.0, digits=digits))


def heading(told: Mapping[str, Any]) -> str:
    """Title, unit and aim of a measure."""
    unit = f", {told['unit']}" if told.get("unit") else ""
    aim = _AIMS.get(told.get("aim") or "")
    return f"{told['title']}{unit}" + (f" ({aim})" if aim else "")


def numbers(audit: Record) -> str:
    blocks = []
    order = ("oracle", "original", "method", "control")
    rows = sorted(audit["rows"], key=lambda r: order.index(r["role"]) if r["role"] in order else 9)
    for family, keys in reading.by_family(audit["measures"]).items():
        described = [audit["measures"][key] for key in keys]
        heads = ["", *(heading(told) for told in described)]
        body = [_line("oracles, half against half", audit["floors"], keys, described, True)]
        body += [
            _line(row["label"], row.get("measures") or {}, keys, described, row["role"] == "oracle")
            for row in rows
        ]
        said = "".join(
            f"<dt>{escape(told['title'])}</dt><dd>{escape(told.get('words') or '')}</dd>"
            for told in described
        )
        table = f'<div class="numbers">{framed(heads, body)}</div>'
        blocks.append(f"<h3>{escape(family_words(family)[0])}</h3>{table}<dl>{said}</dl>")
    words = (
        "Below each number stands its 95 % interval. The first line is the floor: the same "
        "number for one half of the oracles against the other, that is, what chance alone gives. "
        "Zero is rarely the aim; the oracles' value is."
    )
    shadows = _shadows(audit)
    if not blocks and not shadows:
        return ""
    return f'<h2 id="numbers">The numbers</h2><p>{words}</p>{"".join(blocks)}{shadows}'


def _line(
    label: str, found: Mapping[str, Any], keys: Sequence[str], told: Sequence[Any], shaded: bool
) -> str:
    cells = "".join(
        f"<td>{measure(found.get(key), about)}</td>" for key, about in zip(keys, told, strict=True)
    )
    shade = ' class="reference"' if shaded else ""
    return f'<tr{shade}><th scope="row">{escape(label)}</th>{cells}</tr>'


def _shadows(audit: Record) -> str:
    """The attack with shadow models, a line for each row."""
    found = audit.get("shadows")
    if not found or not found.get("rows"):
        return ""
    rates = sorted({rate for row in found["rows"] for rate in row.get("tpr") or {}}, key=float)
    share = {"scale": 100.0, "digits": 1}
    heads = ["", "accuracy, %", "AUC, %", *(f"recognised at {100 * float(r):g} % false alarms, %"
             for r in rates), "worst example, %"]  # fmt: skip
    body = [
        (row["label"], [
            measure(row.get("accuracy"), share), measure(row.get("auc"), share),
            *(measure((row.get("tpr") or {}).get(rate), share) for rate in rates),
            measure({"value": row.get("worst")}, share),
        ])
        for row in found["rows"]
    ]  # fmt: skip
    words = (
        f"{counted(found['pairs'], 'pair')} of models. {found.get('words') or ''} Guessing is 50 % "
        "for accuracy and AUC (how often a forgotten example is ranked before another one), and "
        "the share of false alarms itself for what is recognised."
    )
    table = f'<div class="numbers">{grid(heads, body, raw=True)}</div>'
    return f"<h3>Membership attack with shadow models</h3><p>{escape(words)}</p>{table}"
