"""The front page of an audit, for somebody who has to decide, and its text for a terminal.

    front(audit)         markup that stands first in `report.html`
    audit_table(audit)   one line for each row, the planted models beneath

The order is that of the questions: what was asked, what was done, what the evidence supports; can
these audits see at all; what this does not show; the numbers. A word is explained before it is
used, a finding has a shape and words beside its colour, and each row has a page of its own
(`pages`). All text that comes from data is escaped.

| in the record                         | on the front page                                       |
|---------------------------------------|---------------------------------------------------------|
| not informative                       | the reason, large; what was asked; no result of any kind|
| a planted model judged wrongly        | a warning before everything else                        |
| nothing was planted                   | it is said that nothing shows what these audits can see |
| an undefined number                   | the word "undefined"                                    |
"""

import json
import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any

from . import reading
from .audit_tables import numbers
from .badges import badge, link, mark
from .controls import as_expected, planted
from .glossary import LIGHTS
from .markup import framed, grid
from .page_names import linked
from .reading import Record, counted, family_words, listed, probability, sentence
from .tables import NOT_APPLICABLE, UNDEFINED, number
from .trust import limits, seeing, trust


def front(audit: Record) -> str:
    """The audit part of a report.

    Args:
        audit: the record of an audit, as in `audit.json`.

    Returns:
        Markup for the body of a page, its links relative to the folder of the report; the same
        text for the same record.

    Raises:
        ValueError: not the record of an audit, or one that contradicts itself (`reading.checked`).
    """
    reading.checked(audit)
    title = f"{audit['task']['words']} of {audit['task']['source']}"
    body = [f'<p class="kicker">jaxunlearn audit: {escape(title)}</p>']
    body += [f"<h1>{escape(reading.headline(audit))}</h1>"]
    reason = reading.not_informative(audit)
    if reason:
        told = "No result is shown, because none would mean anything."
        body += [f'<p class="reason">Not informative: {escape(reason)}.</p>', f"<p>{told}</p>"]
        body += [_asked(audit), noted(audit), _repeat(audit)]
    else:
        body += [_ways(), trust(audit), _asked(audit), _done(audit), _supported(audit)]
        body += [seeing(audit), limits(audit), noted(audit), numbers(audit), _each(audit)]
        body += [_repeat(audit)]
    return "\n".join(text for text in body if text)


def _ways() -> str:
    ways = (
        ("supported", "What the evidence supports"),
        ("seeing", "Can these audits see?"),
        ("limits", "What this does not show"),
        ("numbers", "The numbers"),
        ("comparison", "The comparison behind it"),
    )
    return f"<nav>{' '.join(link('#' + place, words) for place, words in ways)}</nav>"


def noted(audit: Record) -> str:
    """The notes of the record in a box."""
    items = "".join(f"<li>{escape(note)}</li>" for note in audit.get("notes") or ())
    return f'<div class="note"><strong>Notes</strong><ul>{items}</ul></div>' if items else ""


def _asked(audit: Record) -> str:
    return f"<h2>What was asked</h2><p>{escape(audit['task']['description'])}</p>"


def _done(audit: Record) -> str:
    def sizes(*roles: str) -> str:
        found = sorted({row["models"] for row in reading.rows_of(audit, *roles)})
        return f"{found[0]} to {found[-1]}" if len(found) > 1 else str(found[0]) if found else "no"

    methods, hidden = reading.rows_of(audit, "method"), reading.rows_of(audit, "control")
    items = [
        f"{sizes('oracle')} models were trained anew without what was to be forgotten. They are "
        "called oracles, and they are the measure: a model has forgotten if nobody can tell it "
        "from them.",
        f"{sizes('original')} models were trained on everything, as before the request. They are "
        "called originals: what should no longer be recognisable.",
        f"{counted(len(methods), 'method')} that should make an original forget "
        f"{'was' if len(methods) == 1 else 'were'} run, {sizes('method')} models each: "
        f"{listed([row['label'] for row in methods], 30)}.",
    ]
    if hidden:
        items.append(
            f"{counted(len(hidden), 'kind')} of models were planted to test the audits themselves: "
            f"{listed([row['label'] for row in hidden], 30)}."
        )
    items.append(
        f"{counted(len(audit['audits']), 'audit')} asked something of every one of these models:"
    )
    told = "".join(f"<li>{escape(item)}</li>" for item in items[:-1])
    families = ""
    for family, keys in reading.by_family(audit["audits"]).items():
        title, question = family_words(family)
        names = listed([audit["audits"][key]["title"] for key in keys], 30)
        families += f"<li><strong>{escape(title)}.</strong> {escape(f'{question} {names}.')}</li>"
    relabelled = audit["settings"].get("permutations")
    share = f"{100 * reading.level(audit):g} %"
    test = (
        "How findings come about: the models of a method and the oracles are mixed and dealt out "
        f"again at random{f', {relabelled} times' if relabelled else ''}. The p-value is the share "
        "of deals in which the two heaps differ as much as the method and the oracles really do. A "
        "small one means: this is no accident. Whatever stays at or below "
        f"{share} is flagged. The p-values are corrected for asking "
        f"many questions at once, so that a true retraining is flagged in at most {share} of runs."
    )
    return (
        f"<h2>What was done</h2><ul>{told}<li>{escape(items[-1])}<ul>{families}</ul></li></ul>"
        f"<p>{escape(test)}</p>"
    )


def _supported(audit: Record) -> str:
    heads = ["", "what the evidence supports", "p-value", "told apart by"]
    body = []
    for row, label in linked(audit):
        if row["role"] != "method":
            continue
        finding, kind = row.get("finding") or {}, reading.light(row)
        found = reading.told_apart(audit, row)
        judged = reading.judged(audit, row)
        apart = f"{len(found)} of {counted(judged, 'audit')}" if judged else UNDEFINED
        names = f"<small>{escape(listed(found, 3))}</small>" if found else ""
        shown = f"{mark(kind, LIGHTS[kind][0])}{escape(reading.verdict(row))}"
        body.append(
            f'<tr><th scope="row">{label}</th><td class="light">{shown}</td>'
            f"<td>{escape(probability(finding.get('p_value')))}</td>"
            f'<td class="words">{apart}{names}</td></tr>'
            f'<tr><td class="said" colspan="{len(heads)}"><p>{escape(sentence(row))}</p></td></tr>'
        )
    if not body:
        return '<h2 id="supported">What the evidence supports</h2><p>No method was audited.</p>'
    key = "".join(
        f"<li>{badge(kind, f'{words}: {said}')}</li>" for kind, (words, said) in LIGHTS.items()
    )
    return (
        f'<h2 id="supported">What the evidence supports</h2>{framed(heads, body, (1, 3))}'
        "<p>The claim in question is that a method's models are like ones that never saw the data. "
        f'It is:</p><ul class="key">{key}</ul>'
    )


def _each(audit: Record) -> str:
    rows = [(told["title"], [told.get("words") or ""]) for told in audit["audits"].values()]
    table = grid(("audit", "what is done, and what a difference would mean"), rows, words=(1,))
    return f"<h2>The audits one by one</h2>{table}"


def _repeat(audit: Record) -> str:
    run = audit.get("run") or {}
    facts: list[tuple[str, Any]] = [("command", audit.get("command") or UNDEFINED)]
    facts += [(f"run: {key}", value) for key, value in run.items()]
    facts += [*audit["settings"].items()]
    facts += [(f"version of {key}", value) for key, value in (audit.get("versions") or {}).items()]
    facts += [("metric definitions", audit.get("metrics") or {}), ("schema", audit["schema"])]
    facts += [("seconds in all", number(reading.finite(audit.get("seconds"))))]
    shown = "\n".join(f"{k}: {v if isinstance(v, str) else json.dumps(v)}" for k, v in facts)
    return f"<h2>To repeat this audit</h2><pre>{escape(shown)}</pre>"


def audit_table(audit: Record, width: int = 116) -> str:
    """The findings of an audit as text for a terminal.

    Args:
        audit: the record of an audit.
        width: columns to fill, at least 80. Where the audits that flagged a row do not fit, the
            rest of them are counted; a long label has a line of its own.

    Returns:
        Several lines without a final newline: the headline, a line for each method (verdict,
        p-value, what told it apart), a line for each planted model (what it must be, what it was).

    Raises:
        ValueError: a width below 80, or not the record of an audit.
    """
    if width < 80:
        raise ValueError(f"audit_table: expected a width of at least 80 columns, got {width}.")
    reading.checked(audit)
    top = textwrap.wrap(reading.headline(audit), width, break_on_hyphens=False)
    if reading.not_informative(audit):
        return "\n".join([*top, "No result is shown."])
    lines = [
        (row["label"], textwrap.shorten(reading.verdict(row), 40, placeholder=" ..."), row)
        for row in reading.rows_of(audit, "method")
    ]
    marks = {True: ", as it must be", False: ": WRONG", None: ""}
    below = [
        (row["label"], f"{reading.outcome(row)}{marks[as_expected(row)]}", row)
        for row in planted(audit)
    ]
    both = [*lines, *below]
    second = max([8, *(len(words) for _, words, _ in both)])
    longest = max([8, *(len(label) for label, _, _ in both)])
    first = min(longest, 26, width - second - 25)  # 25: a p-value, "12 audits", the gaps
    room = width - first - second - 15

    def told(label: str, words: str, row: Record) -> list[str]:
        finding = row.get("finding") or {}
        found = reading.told_apart(audit, row)
        p = probability(finding.get("p_value"))
        apart = _fitting(found, room) if reading.judged(audit, row) else NOT_APPLICABLE
        rest = f"  {words:<{second}}  {p:>9}  {apart}".rstrip()
        return [label, " " * first + rest] if len(label) > first else [f"{label:<{first}}{rest}"]

    head = f"{'':<{first}}  {'finding':<{second}}  {'p-value':>9}  told by"
    body = [head[:width].rstrip(), "-" * min(width, len(head))]
    body += [text for line in lines for text in told(*line)]
    body += ["", "Planted, to see whether these audits can see:"] if below else []
    body += [text for line in below for text in told(*line)]
    return "\n".join([*top, "", *body])


def _fitting(names: Sequence[str], room: int) -> str:
    """As many names as there is room for, the others counted."""
    for most in range(len(names), 0, -1):
        text = listed(names, most)
        if len(text) <= room:
            return text
    return counted(len(names), "audit") if names else "none"
