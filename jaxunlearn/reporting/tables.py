"""The table of a comparison, as text: what every model got, beside the floors, and the verdicts.

    record  ->  lines (one per group of models)  ->  text

`lines` is the reading of a record that the text table, the page (`report`) and the pictures
(`pictures`) share, so that they can never disagree. A record is the plain data of a comparison: the
object in `results.json`.

| in the record                        | shown as                                                 |
|--------------------------------------|----------------------------------------------------------|
| a number that could not be computed  | "undefined", never 0                                     |
| a number that a row cannot have      | "-" (the gap that the oracle itself closes, say)         |
| status "not informative: ..."        | the reason, and no score at all                          |
| status "nothing to forget"           | scores of what is there; distances are undefined         |
| `retrain` was not among the methods  | the time is in seconds instead of a share of retraining  |
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxunlearn.audit.groups import KEPT

from .views import Column, column

UNDEFINED = "undefined"
NOT_APPLICABLE = "-"
PART_ORDER = ("forget", "adjacent", "remote", "retain", "test", "forget_test", "adjacent_test")
_TABLE_PARTS = ("forget", "adjacent", "remote", "retain", "test")
_LABEL_WIDTH = 18


class Line(NamedTuple):
    """One group of models, ready to be shown."""

    label: str
    models: int
    role: str  # original, oracle, recipe, method
    accuracy: dict[str, Mapping[str, Any] | None]  # of the main metric (`views.column`): part ->
    # {value, low, high}; None = undefined
    energy: dict[str, float | None]  # part -> energy to the oracles in recipe floors
    gap_closed: str
    collateral: str
    time: str
    verdict: str  # the words of the verdict; "" for the oracle
    sentence: str


def not_informative(record: Mapping[str, Any]) -> str | None:
    """Why the comparison says nothing, or None where it says something."""
    kind, _, reason = record["status"].partition(": ")
    return (reason or "no reason was recorded") if kind == "not informative" else None


def parts(record: Mapping[str, Any]) -> list[str]:
    """The parts of the record in the order in which they are shown."""
    known = [part for part in PART_ORDER if part in record["parts"]]
    return known + [part for part in record["parts"] if part not in PART_ORDER]


def lines(record: Mapping[str, Any]) -> list[Line]:
    """One `Line` per row of the record, in its order; none where it is not informative."""
    if not_informative(record):
        return []
    return [_line(record, row) for row in record["rows"]]


def number(value: float | None) -> str:
    """Three significant digits or fewer, without an exponent where that reads well.

    Example:
        >>> [number(v) for v in (0.00531, 0.934, 1.5, 27.04, 336.2, 0, None, float("nan"))]
        ['0.0053', '0.93', '1.50', '27.0', '336', '0', 'undefined', 'undefined']
    """
    if value is None or not math.isfinite(value):
        return UNDEFINED
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6:
        return f"{value:.2g}"
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return f"{value:.{digits}f}" if size >= 0.1 else f"{value:.2g}"


def hundredths(value: float | None) -> str:
    """A number near 1 with two digits: a share, not a measurement of any size.

    Example:
        >>> [hundredths(v) for v in (0.934, -0.0024, 1, -120.4, None)]
        ['0.93', '0.00', '1.00', '-120', 'undefined']
    """
    if value is None or abs(value) >= 100:
        return number(value)
    return f"{round(value, 2) + 0.0:.2f}"


def interval(
    summary: Mapping[str, Any] | None, shown: Callable[[float | None], str] = number
) -> str:
    """A number with the ends of its interval: "0.93 [0.90, 0.95]"."""
    value, low, high = ((summary or {}).get(key) for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return shown(value)
    return f"{shown(value)} [{shown(low)}, {shown(high)}]"


def percent(summary: Mapping[str, Any] | None, spread: bool = True) -> str:
    """A share in per cent, with half the width of its interval: "98.1 ±0.4"."""
    return shown(summary, Column(), spread)


def shown(summary: Mapping[str, Any] | None, main: Column, spread: bool = True) -> str:
    """A value of the main metric, with half the width of its interval.

    Example:
        >>> rmse = Column("rmse", "RMSE", "", 1.0, 3)
        >>> shown({"value": 0.9123, "low": 0.9113, "high": 0.9128}, rmse)
        '0.912 ±0.001'
    """
    value, low, high = ((summary or {}).get(key) for key in ("value", "low", "high"))
    if value is None:
        return UNDEFINED
    text = f"{main.scale * value:.{main.digits}f}"
    if not spread or low is None or high is None:
        return text
    return f"{text} ±{main.scale * max(high - value, value - low):.{main.digits}f}"


def in_floors(record: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float | None]:
    """part -> energy between the row and the oracles, in recipe floors of that part."""
    energies = (row.get("verdict") or {}).get("energies") or {}
    return {
        part: None if energies.get(part) is None else energies[part] / floor["value"]
        for part, floor in record["floors"].items()
    }


def kept_in_floors(energy: Mapping[str, float | None]) -> float | None:
    """The largest of these energies on data that should have stayed: the value of the collateral.

    Example:
        >>> kept_in_floors({"forget": 40.0, "retain": 0.5, "test": 1.5, "forget_test": 60.0})
        1.5
    """
    return max((e for part in KEPT if (e := energy.get(part)) is not None), default=None)


def _line(record: Mapping[str, Any], row: Mapping[str, Any]) -> Line:
    verdict, role = row.get("verdict") or {}, row["role"]
    accuracy = row["scores"].get(column(record).metric, {})
    gap, collateral = (
        interval(verdict[key], written) if key in verdict else NOT_APPLICABLE
        for key, written in (("gap_closed", hundredths), ("collateral", number))
    )
    return Line(
        row["label"],
        row["models"],
        role,
        {part: accuracy.get(part) for part in parts(record)},
        in_floors(record, row),
        gap,
        collateral,
        _time(row),
        verdict.get("verdict", ""),
        verdict.get("words", "the reference: true retrainings on what is retained"),
    )


def _time(row: Mapping[str, Any]) -> str:
    if row["role"] != "method":
        return NOT_APPLICABLE
    share, seconds = row["seconds"]["of_retraining"], row["seconds"]["run"]
    if share is None:
        return UNDEFINED if seconds is None else f"{number(seconds)} s"
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def floors_sentence(record: Mapping[str, Any]) -> str:
    """The recipe floor of every part in words; it is the unit of the collateral."""
    listed = [
        f"{part.replace('_', ' ')} {number(record['floors'][part]['value'])}"
        for part in parts(record)
        if part in record["floors"]
    ]
    if not listed:
        return "There are no recipe floors: nothing was retrained."
    return (
        "One recipe floor (energy between oracles of two innocent recipes, or what sampling alone "
        f"gives if that is more): {', '.join(listed)}."
    )


def table(record: Mapping[str, Any], width: int = 116) -> str:
    """The results as text that a person reads without a legend.

    Args:
        record: the record of a comparison.
        width: columns to fill, at least 80. Where the table does not fit, long labels go on a line
            of their own, and then the intervals are left out.

    Returns:
        Several lines without a final newline: what was asked, the finding, the table (original,
        oracle, alternative recipes, methods), the floors, and one verdict in words for each row.

    Raises:
        ValueError: a width below 80.
    """
    if width < 80:
        raise ValueError(f"table: expected a width of at least 80 columns, got {width}.")
    asked = [*_wrap(record["task"]["description"], width), ""]
    reason = not_informative(record)
    if reason:
        return "\n".join([*asked, *_wrap(f"NOT INFORMATIVE: {reason}. No score is shown.", width)])
    rows, main = lines(record), column(record)
    measured = [part for part in _TABLE_PARTS if part in record["parts"]]
    if "remote" in measured:
        measured.remove("retain")  # it is adjacent and remote together
    names = {"original": "originals", "oracle": "oracles (true retrainings)"}
    sized = ", ".join(f"{row.models} {names[row.role]}" for row in rows if row.role in names)
    unit = " in %" if main.unit == "%" else ""
    legend = (
        f"{sized}. {_upper(main.title)}{unit} with half its 95 % interval over models. Gap closed "
        "on forget data: 1 = as near to true retraining as a retraining, 0 = as far as the "
        "original. Collateral: largest distance from retraining on data that should have stayed, "
        "in recipe floors (up to 1 is what an innocent change of the recipe does). Time: share of "
        "retraining."
    )
    legend += f" {main.premise}" if main.premise else ""
    body = _fitting(rows, measured, width, main)
    verdicts = [
        text
        for row in rows
        for text in _wrap(f"{row.label}: {row.sentence}", width, "  ")
        if row.role in ("original", "method")
    ]
    blocks = [*asked, *_wrap(record["headline"], width), "", *_wrap(legend, width), "", *body, ""]
    return "\n".join([*blocks, *_wrap(floors_sentence(record), width), "", "Verdicts", *verdicts])


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _fitting(rows: Sequence[Line], measured: Sequence[str], width: int, main: Column) -> list[str]:
    """The roomiest layout that fits; the narrowest where none does."""
    longest = max((len(row.label) for row in rows), default=0)
    body: list[str] = []
    for label_width, spread in ((longest, True), (_LABEL_WIDTH, True), (_LABEL_WIDTH, False)):
        body = _body(rows, measured, label_width, spread, main)
        if max(map(len, body)) <= width:
            break
    return body


def _body(
    rows: Sequence[Line], measured: Sequence[str], label_width: int, spread: bool, main: Column
) -> list[str]:
    cells = [
        [
            *(shown(row.accuracy[part], main, spread) for part in measured),
            *(t if spread else t.partition(" [")[0] for t in (row.gap_closed, row.collateral)),
            row.time,
        ]
        for row in rows
    ]
    heads = [*measured, "gap closed", "collateral", "time"]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    indent = " " * label_width

    def joined(texts: Sequence[str]) -> str:
        return "".join(f"  {text:>{w}}" for text, w in zip(texts, widths, strict=True))

    over = sum(widths[: len(measured)]) + 2 * len(measured) - 2
    body = [f"{indent}  {f' {main.title} on '.center(over, '-')}", indent + joined(heads)]
    body.append("-" * len(body[1]))
    for row, texts in zip(rows, cells, strict=True):
        if len(row.label) > label_width:
            body += [row.label, indent + joined(texts)]
        else:
            body.append(f"{row.label:<{label_width}}{joined(texts)}")
    return body


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
