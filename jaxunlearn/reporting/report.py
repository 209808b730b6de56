"""The report of a comparison: one page that reads without network, one picture, one text table.

    html(record)        the page: finding, what was asked, table, pictures, metrics, glossary
    html(record, audit) the same, behind the front page of an audit of that comparison
    png(record, path)   the picture for a README
    table(record)       the text for a terminal

The page is a single file: style and pictures are inside, there is no script, no font and no address
to fetch. It says what was found in its first sentence, and everything behind that below. All text
that comes from data is escaped.

| status of the record  | the page                                                              |
|-----------------------|-----------------------------------------------------------------------|
| informative           | everything                                                            |
| nothing to forget     | accuracies; distances, verdict pictures and curves are left out       |
| not informative       | the reason, large; what was asked; no score of any kind               |

With an audit, links lead to the pages of its rows (`pages`), which lie in a folder beside the page.

An undefined number is the word "undefined", never 0.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from . import frontier, pictures
from .badges import CSS as AUDIT_CSS
from .front import front
from .glossary import METRICS, RATING_METRICS, REGRESSION_METRICS, VERDICTS
from .markup import CSS, framed, grid, spread, stacked
from .pictures import png as png
from .tables import (
    NOT_APPLICABLE,
    UNDEFINED,
    Line,
    floors_sentence,
    lines,
    not_informative,
    number,
    parts,
)
from .tables import table as table
from .views import attacks, column, whole


def html(record: Mapping[str, Any], audit: Mapping[str, Any] | None = None) -> str:
    """The page of a comparison.

    Args:
        record: the record of a comparison, as in `results.json`.
        audit: the record of an audit of it, as in `audit.json`; its front page then stands first.

    Returns:
        A complete HTML document; the same text for the same records.

    Raises:
        ValueError: the audit is of another request, or no audit (`reading.checked`).

    Cost: a second or two, for the pictures.
    """
    if audit is not None:
        asked, audited = (
            (part["task"]["name"], part["task"]["source"]) for part in (record, audit)
        )
        if asked != audited:
            raise ValueError(
                f"html: the comparison is of {asked[0]!r} of {asked[1]!r}, the audit of "
                f"{audited[0]!r} of {audited[1]!r}. Audit this one: jaxunlearn audit --run DIR."
            )
    title = f"{record['task']['words']} of {record['task']['source']}"
    body = [
        f'<p class="kicker">jaxunlearn compare: {escape(title)}</p>',
        f"<h1>{escape(record['headline'])}</h1>",
    ]
    reason = not_informative(record)
    if reason:
        told = "No score is shown, because none would mean anything."
        body += [f'<p class="reason">Not informative: {escape(reason)}.</p>', f"<p>{told}</p>"]
        body += [_asked(record), _notes(record), _reproduce(record)]
    else:
        body += [_asked(record), _notes(record), _found(record), _pictures(record)]
        body += [_membership(record), _metrics(record), _glossary(record), _reproduce(record)]
    if audit is None:
        return document(title, body)
    body = [front(audit), '<div class="part" id="comparison">', *body, "</div>"]
    return document(title, body, audited=True)


def document(title: str, body: Iterable[str], audited: bool = False) -> str:
    """A complete HTML document; the style of audits is inside where it is `audited`."""
    style = CSS + AUDIT_CSS if audited else CSS
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(text for text in body if text)
        + "\n</body></html>\n"
    )


def _asked(record: Mapping[str, Any]) -> str:
    rows = [
        (part.replace("_", " "), [entry["words"], *_counts(entry)])
        for part, entry in ((part, record["parts"][part]) for part in parts(record))
    ]
    return f"<h2>What was asked</h2><p>{escape(record['task']['description'])}</p>" + grid(
        ("part", "what it is", "examples evaluated", "available"), rows, words=(1,)
    )


def _counts(entry: Mapping[str, Any]) -> list[str]:
    return [str(entry["examples"]), str(entry["available"])]


def _notes(record: Mapping[str, Any]) -> str:
    if not record["notes"]:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in record["notes"])
    return f'<div class="note"><strong>Notes and warnings</strong><ul>{items}</ul></div>'


def _found(record: Mapping[str, Any]) -> str:
    shown = parts(record)
    main = column(record)
    unit = f", {main.unit}" if main.unit else ""
    heads = ["", "models", *(f"{part.replace('_', ' ')}{unit}" for part in shown)]
    heads += ["gap closed", "collateral", "time"]
    body = []
    for line in lines(record):
        cells = [str(line.models), *(spread(line.accuracy[part], main) for part in shown)]
        cells += [stacked(line.gap_closed), stacked(line.collateral), escape(line.time)]
        shade = ' class="reference"' if line.role in ("oracle", "recipe") else ""
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        body.append(
            f'<tr{shade}><th scope="row">{escape(line.label)}</th>{numbers}</tr>'
            f'<tr{shade}><td class="said" colspan="{len(heads)}">{_said(line)}</td></tr>'
        )
    return (
        f"<h2>What was found</h2>{framed(heads, body)}"
        f'<p class="soft">{escape(main.words)}; below each number stands its 95 % '
        "interval over models. Gap closed, on forget data: 1 is as near to true retraining as a "
        "retraining, 0 as far as the original, below 0 farther. Collateral: the largest distance "
        "from retraining on data that should have stayed (retain, adjacent, remote, test), in "
        "recipe floors; up to 1 is what an innocent change of the training recipe does. Time is a "
        "share of retraining (in seconds where retrain was not among the methods). The aim on "
        f"forget data is no extreme of {escape(main.title)} but the oracle's value. "
        f"{escape(floors_sentence(record))}</p>"
    )


def _said(line: Line) -> str:
    """The verdict as a coloured badge, and its sentence."""
    badge = (
        f'<b style="border-color:{pictures.style(line)[0]}">{escape(line.verdict)}</b> '
        if line.verdict
        else ""
    )
    return f"<p>{badge}{escape(line.sentence.removeprefix(f'{line.verdict}: '))}</p>"


def _pictures(record: Mapping[str, Any]) -> str:
    main = column(record)
    texts = (
        (
            "Trade-off",
            pictures.tradeoff(record),
            "narrow",
            "Down is nearer to retraining on forget data, left is less damage to other data. Both "
            "axes are in recipe floors: inside the shaded corner lie differences that an innocent "
            "change of the training recipe makes as well. The oracle (true retraining) is at 0, 0 "
            "by definition.",
        ),
        (
            "What each budget buys",
            frontier.frontier(record),
            "narrow",
            "Time as a share of retraining, measured in the same run. Hollow: more than "
            f"{frontier.GENTLE:g} recipe floors of collateral. The line joins the nearest of the "
            f"others at each budget. No method is better in all of forgetting, collateral and time "
            f"than {_listed(frontier.unbeaten(record))}.",
        ),
        (
            f"{main.title[:1].upper()}{main.title[1:]} on every part",
            pictures.accuracies(record),
            "",
            f"The dashed line is the oracle's {main.title}, and the aim; thin lines are 95 % "
            "intervals.",
        ),
        (
            "Distance from retraining on every part",
            pictures.energies(record),
            "",
            "Energy between a row and the oracles in recipe floors; the dashed line is one floor.",
        ),
    )
    return "".join(figure(svg, title, kind, words) for title, svg, kind, words in texts)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "another"


def figure(svg: str | None, title: str, kind: str, words: str, level: int = 2) -> str:
    """A picture under its title, with words below; nothing where there is no picture."""
    if svg is None:
        return ""
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    return (
        f'<h{level}>{escape(title)}</h{level}><figure><div class="scroll {kind}">{svg}</div>'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )


def _membership(record: Mapping[str, Any]) -> str:
    view = attacks(record)
    picture = figure(pictures.curves(record), "Can membership be inferred?", "", view.words)
    found = [(row["label"], row["membership"]) for row in record["rows"] if row["membership"]]
    if not found:
        return picture
    oracle = next((r["membership"] for r in record["rows"] if r["role"] == "oracle"), None) or {}
    reasons = sorted({a["undefined"] for _, a in found if "undefined" in a})
    told = f'<p class="soft">Undefined: {escape("; ".join(reasons))}</p>' if reasons else ""
    if not picture:
        picture = "<h2>Can membership be inferred?</h2>"
    for title, shown in view.tables:
        rows = [(label, _attacked(own, oracle, label, shown)) for label, own in found]
        heads = ["", *(heading for _, _, heading in shown)]
        picture += f"<h3>{escape(title)}</h3>" + grid(heads, rows, raw=True)
    return picture + told


def _attacked(own: Mapping, oracle: Mapping, label: str, shown: Sequence) -> list[str]:
    """The cells of one row, the oracle's own value under each."""
    if "undefined" in own:
        return [UNDEFINED] * len(shown)
    cells = []
    for score, name, _ in shown:
        value, held = ((a.get(score) or {}).get(name) for a in (own, oracle))
        beside = "" if held is None or label == "oracle" else (
            f"<small>oracle {number(held.get('value'))}</small>"
        )  # fmt: skip
        cells.append(spread(value) + beside)
    return cells


def _metrics(record: Mapping[str, Any]) -> str:
    blocks = []
    for name, (title, words) in (METRICS | RATING_METRICS | REGRESSION_METRICS).items():
        single = name in whole(record)
        own = {
            row["label"]: row.get(name) if single else row["scores"].get(name)
            for row in record["rows"]
        }
        if not any(own.values()):
            continue
        shown = ["all parts"] if single else _columns(record, own.values())
        floor = record["floor"].get(name)
        rows = [("floor", floor), *((label, found) for label, found in own.items() if found)]
        cells = [
            (label, [spread(found if single else (found or {}).get(part)) for part in shown])
            for label, found in rows
        ]
        heads = ["", *(part.replace("_", " ") for part in shown)]
        blocks.append(f'<h3>{escape(title)}</h3><p class="soft">{escape(words)}</p>')
        blocks.append(grid(heads, cells, shaded=("floor",), raw=True))
    if not blocks:
        return ""
    return (
        "<h2>Classical metrics, each beside its floor</h2><p>The floor is the same metric between "
        "two independent halves of the oracles: what is no farther from them than that is not a "
        "difference.</p>" + "".join(blocks)
    )


def _columns(record: Mapping[str, Any], found: Iterable[Mapping[str, Any] | None]) -> list[str]:
    """The parts, or what else a metric is told for (groups of people, say)."""
    others = [key for each in found for key in each or () if key not in record["parts"]]
    return list(dict.fromkeys(others)) or parts(record)


def _glossary(record: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in VERDICTS.items()
    )
    rule = escape(str(record["metrics"].get("verdict", "")))
    premise = escape(" ".join([f"Rule v{rule}.", column(record).premise]).strip())
    return f"<h2>What the verdicts mean</h2><p>{premise}</p><dl>{items}</dl>"


def _reproduce(record: Mapping[str, Any]) -> str:
    task, settings = record["task"], dict(record["settings"])
    recipe = settings.pop("recipe", {})
    facts: list[tuple[str, Any]] = [("command", command(record)), *settings.items()]
    facts += [(f"recipe: {key}", value) for key, value in recipe.items()]
    facts += [(f"version of {key}", value) for key, value in record["versions"].items()]
    facts += [
        ("digest of the data", task["source_digest"]),
        ("digest of the split", task["digest"]),
    ]
    if "near_duplicates" in task:
        facts += [("near duplicates", task["near_duplicates"])]
    facts += [("metric definitions", record["metrics"]), ("schema", record["schema"])]
    facts += [("seconds in all", number(record["seconds"]))]
    methods = [
        (row["label"], [row.get("guarantee", ""), json.dumps(row.get("arguments", {})),
                        row.get("preset", ""), _paper(row), number(row["seconds"]["compile"])])
        for row in record["rows"] if row["role"] == "method"
    ]  # fmt: skip
    heads = ("method", "guarantee", "arguments", "preset", "paper", "compilation, s")
    shown = "\n".join(
        f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in facts
    )
    how = grid(heads, methods, words=(1, 2, 3, 4)) if methods else ""
    return f"<h2>To reproduce this</h2>{how}<pre>{escape(shown)}</pre>"


def _paper(row: Mapping[str, Any]) -> str:
    return f"arXiv:{row['paper']}" if row.get("paper") else NOT_APPLICABLE


def command(record: Mapping[str, Any]) -> str:
    """The command line that asks for this comparison again, quoted for a shell.

    The one that the record holds, or else one made from its task, methods and settings.
    """
    if record.get("command"):
        return record["command"]
    settings, task = record["settings"], record["task"]
    methods = ",".join(row["label"] for row in record["rows"] if row["role"] == "method")
    words = ["jaxunlearn", "compare", "--source", task["source"], "--forget", task["name"]]
    words += ["--methods", methods] if methods else []
    options = {name: value for name, value in settings["recipe"].items() if value is not None}
    options |= {name: settings[name] for name in ("seeds", "oracles", "seed", "rows")}
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
