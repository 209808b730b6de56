"""The section of BENCHMARKS.md on calibration: published and calibrated settings, side by side."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments import calibration
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record
from jaxunlearn.reporting.tables import hundredths, number

_GOOD = ("indistinguishable from retraining", "within recipe noise")


def read(path: Path) -> Record:
    """The record in `calibration.json`.

    Raises:
      ValueError: a file that is something else, or of another schema.
    """
    return read_record(path, calibration.KIND, calibration.SCHEMA, "experiments.calibration")


def calibrated(record: Record) -> str:
    """The section: for each request what was chosen, what it gave, and the best of each budget."""
    picture = "![Gap closed against collateral at each budget](docs/images/frontier.png)"
    blocks = ["## What calibration buys", f"```sh\n{record['command']}\n```"]
    blocks += [paragraph(_introduction(record)), picture]
    for name, task in record["tasks"].items():
        blocks += [f"### {name}: {task['words']} of {task['source']}", _summary(task)]
        blocks.append(grid(_HEADS, [_line(method, task) for method in _methods(task)], words=True))
        blocks.append(_budgets(record, task))
    blocks.append(paragraph(origin(record)))
    return "\n\n".join(blocks)


_HEADS = (
    "method", "published: gap", "collateral", "verdict", "calibrated: gap", "collateral", "time",
    "verdict", "proxies' gap", "calibrated settings",
)  # fmt: skip


def _introduction(record: Record) -> str:
    limit = record["limit"]
    return (
        "Each method twice on the same request: with its published constants, and with the setting "
        "that came closest to the oracles of proxies (other requests of the same kind and size) "
        f"with at most {limit:g} recipe floors of collateral there, or that of doing nothing where "
        "it is more, and at most "
        f"{100 * calibration.MAIN:g} % of retraining's time (and a quarter of that: three of "
        "thirty epochs take a little more than a tenth, since programs have overheads). The "
        "request's own oracles took no part in any choice. The published constants were made for "
        "large networks; at this scale they are a habit, not a recommendation. Gap closed and "
        "collateral as in the tables above; time is a share of retraining in the same run. The "
        "grids are in `jaxunlearn/grids.py`, every trial is in "
        "`experiments/results/calibration.json`."
    )


def _methods(task: Mapping[str, Any]) -> list[str]:
    found = dict.fromkeys(row["method"] for row in task["rows"] if row["method"])
    return [name for name in found if name in task["tried"]]


def _find(task: Mapping[str, Any], method: str, role: str) -> Mapping[str, Any] | None:
    rows = (r for r in task["rows"] if r["method"] == method and role in r["as"])
    return next(rows, None)


def _line(method: str, task: Mapping[str, Any]) -> list[str]:
    paper, own = (_find(task, method, role) for role in ("paper", "calibrated"))
    tried = task["tried"][method]
    place = tried["chosen"][f"{calibration.MAIN:g}"]
    trial = None if place is None else tried["trials"][place]
    cells = [f"`{method}`", *_cells(paper)]
    if own is None or trial is None:
        return [*cells, "-", "-", "-", "no setting within the budget", "-", "-"]
    gap, kept, verdict = _cells(own)
    settings = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
                         for k, v in trial["settings"].items())  # fmt: skip
    proxies = hundredths(sum(trial["gap_closed"]) / len(trial["gap_closed"]))
    return [*cells, gap, kept, _share(own), verdict, proxies, settings]


def _cells(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["-", "-", "-"]
    gap, kept = ((row[key] or {}).get("value") for key in ("gap_closed", "collateral"))
    return [hundredths(gap), number(kept), row["verdict"] or "-"]


def _share(row: Mapping[str, Any]) -> str:
    share = row["of_retraining"]
    return "-" if share is None else f"{100 * share:.2g} %"


def _summary(task: Mapping[str, Any]) -> str:
    """Which methods match, hide or break, by rule."""
    judged = {
        role: [r for r in task["rows"] if role in r["as"] and r["verdict"]]
        for role in ("paper", "calibrated")
    }
    limit = task.get("limit", calibration.calibration.COLLATERAL_LIMIT)
    blocks = [
        f"Proxies: {', '.join(task['proxies'])}; collateral there at most {number(limit)} floors"
        + (", that of doing nothing." if limit > calibration.calibration.COLLATERAL_LIMIT else ".")
    ]
    for role, words in (("paper", "as published"), ("calibrated", "calibrated")):
        rows = judged[role]
        limit = max(limit, calibration.calibration.COLLATERAL_LIMIT)
        kinds = {
            "match (indistinguishable, or within recipe noise)": _matches,
            "come near (nine tenths of the gap, collateral within the limit)": partial(
                _comes_near, limit
            ),
            "hide it (farther from retraining than before, or past it)": _hides,
            "break something (collapsed, or more than ten times the limit)": partial(
                _breaks, limit
            ),
            "hardly do anything (a tenth of the gap)": _idles,
        }
        told = [f"{kind}: {_or_none(_named(rows, is_one))}." for kind, is_one in kinds.items()]
        bullets = "\n".join(paragraph(f"* {text}", "  ") for text in told)
        blocks.append(f"Of {len(rows)} methods {words} these\n\n{bullets}")
    return "\n\n".join([paragraph(blocks[0]), *blocks[1:]])


def _named(rows: Sequence[Mapping[str, Any]], is_one: Callable) -> list[str]:
    return [f"`{row['method']}`" for row in rows if is_one(row)]


def _gap(row: Mapping[str, Any]) -> float:
    return (row["gap_closed"] or {}).get("value", -math.inf)


def _collateral(row: Mapping[str, Any]) -> float:
    return (row["collateral"] or {}).get("value", math.inf)


def _matches(row: Mapping[str, Any]) -> bool:
    return row["verdict"] in _GOOD


def _comes_near(limit: float, row: Mapping[str, Any]) -> bool:
    return not _matches(row) and _gap(row) >= 0.9 and _collateral(row) <= limit


def _hides(row: Mapping[str, Any]) -> bool:
    return row["verdict"] == "over-forgotten" or _gap(row) < -0.1


def _breaks(limit: float, row: Mapping[str, Any]) -> bool:
    return row["verdict"] == "collapsed" or _collateral(row) > 10 * limit


def _idles(row: Mapping[str, Any]) -> bool:
    return abs(_gap(row)) <= 0.1


def _or_none(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _budgets(record: Record, task: Mapping[str, Any]) -> str:
    """The best of each budget, by the proxies, and what they gave on the request."""
    rows = []
    for budget in record["budgets"]:
        role = f"best within {100 * budget:g} %"
        for row in (r for r in task["rows"] if role in r["as"]):
            rows.append((f"{100 * budget:g} %", f"`{row['label']}`", *_cells(row), _share(row)))
    heads = ("budget", "nearest by the proxies", "gap closed", "collateral", "verdict", "time")
    return grid(heads, rows, words=True)
