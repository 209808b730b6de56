"""One page for each row of an audit: what was found, by what, and the pictures behind it.

    pages(audit)  ->  {"pages/NAME.html": text}      every row but the oracles, the reference

A page opens with the finding in words, says audit by audit what led to it, then shows by families
(behaviour, membership, durability, representation, whatever the record holds) the curves and the
numbers of the row beside those of the oracles and of the originals. Names of files are made safe
(`page_names`). Like the report, a page is a single file without script and address; its only links
lead back to the report. All text that comes from data is escaped.

| in the record                          | on the page                                            |
|----------------------------------------|--------------------------------------------------------|
| no finding, no curve, no score         | the word "undefined" where it would stand              |
| the audit is not informative           | there are no pages                                     |
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from . import attack_pictures, audit_pictures, reading
from .attack_pictures import worst
from .audit_pictures import ORACLE, Look
from .audit_tables import heading
from .badges import badge, link, mark
from .controls import as_expected, smallest_share
from .glossary import DIRECTIONS, LIGHTS
from .markup import framed
from .page_names import PAGES, page_names
from .reading import Record, counted, family_words, listed, probability, sentence, titles
from .report import document, figure
from .tables import NOT_APPLICABLE, UNDEFINED, number

_BACK = f"<p>{link('../report.html', 'Back to the report')}</p>"


def pages(audit: Record) -> dict[str, str]:
    """The pages of an audit.

    Args:
        audit: the record of an audit, as in `audit.json`.

    Returns:
        {path relative to the folder of the report: complete HTML document}, in the order of the
        rows; the same text for the same record. Empty where the audit is not informative.

    Raises:
        ValueError: not the record of an audit, or one that contradicts itself (`reading.checked`).

    Cost: a second or so for each row, for the pictures.
    """
    reading.checked(audit)
    if reading.not_informative(audit):
        return {}
    return {
        f"{PAGES}/{name}": page(audit, row)
        for row, name in zip(audit["rows"], page_names(audit), strict=True)
        if name
    }


def page(audit: Record, row: Record) -> str:
    """The page of one row of the audit, as an HTML document."""
    task = f"{audit['task']['words']} of {audit['task']['source']}"
    body = [_BACK, f'<p class="kicker">jaxunlearn audit: {escape(task)}</p>']
    body += [_opening(audit, row), _evidence(audit, row), _families(audit, row)]
    body += [_examples(row), _roc(audit, row), _shadows(audit, row), _BACK]
    return document(f"{row['label']}: {task}", body, audited=True)


def _opening(audit: Record, row: Record) -> str:
    """The finding, in words; for a planted row, what it must have been."""
    kind = reading.light(row)
    finding = row.get("finding") or {}
    shown = f'<p class="light verdict">{mark(kind, LIGHTS[kind][0])}'
    shown += f"{escape(reading.verdict(row))}</p>"
    if row.get("expected"):
        shown = f'<p class="light verdict">{escape(reading.verdict(row))}</p>'
    told = [f"<h1>{escape(row['label'])}</h1>", shown, f"<p>{escape(sentence(row))}</p>"]
    if row.get("words"):
        told.append(f"<p>What this is: {escape(row['words'])}</p>")
    if row.get("expected"):
        kinds = {
            True: ("pass", "and was judged so: the audits can be trusted this far."),
            False: ("fail", "but was judged otherwise: these audits cannot be trusted here."),
            None: ("unknown", "but was not judged."),
        }
        mark_of, words = kinds[as_expected(row)]
        words = f"This row was planted. It must be {row['expected']}, {words}"
        told.append(f"<p><strong>{badge(mark_of, words)}</strong></p>")
    oracles = sum(each["models"] for each in reading.rows_of(audit, "oracle"))
    found = reading.told_apart(audit, row)
    facts = f"{counted(row['models'], 'model')} against {counted(oracles, 'oracle')} (true "
    facts += f"retrainings), p = {probability(finding.get('p_value'))}; told apart by "
    facts += f"{listed(found, 30) if reading.judged(audit, row) else UNDEFINED}."
    if finding.get("came_back"):
        facts += (
            f" What was forgotten came back under {listed(titles(audit, finding['came_back']))}."
        )
    return "".join(told) + f'<p class="soft">{escape(facts)}</p>'


def _evidence(audit: Record, row: Record) -> str:
    heads = ["", "said", "adjusted p", "direction", "energy", "95 % by chance", "could notice"]
    body = []
    for key, told in audit["audits"].items():
        found = (row.get("evidence") or {}).get(key) or {}
        seen, back = reading.flagged(audit, row, key), reading.came_back(row, key)
        kind, said = (
            ("came back", "came back") if back
            else ("seen", "told apart") if seen
            else ("unseen", "no difference found") if seen is False
            else ("unknown", UNDEFINED)
        )  # fmt: skip
        share = smallest_share(audit, row, key)
        cells = [
            probability(found.get("p_value")),
            found.get("direction") or NOT_APPLICABLE,
            number(reading.finite(found.get("energy"))),
            number(reading.finite(found.get("resolution"))),
            UNDEFINED if share is None else f"{100 * share:.2g} %",
        ]
        numbers = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body.append(
            f'<tr><th scope="row">{escape(told["title"])}</th>'
            f'<td class="light">{badge(kind, said)}</td>{numbers}</tr>'
            f'<tr><td class="said" colspan="{len(heads)}"><p class="soft">'
            f"{escape(told.get('words') or '')}</p></td></tr>"
        )
    directions = " ".join(
        f"{name[:1].upper()}{name[1:]}: {words[:1].lower()}{words[1:]}"
        for name, words in DIRECTIONS.items()
    )
    key = (
        "Energy is the distance between these models and the oracles; it may be a little below 0. "
        "The column beside it holds what it stays under by chance in 95 % of cases, the last one "
        "the same as a share of the originals' energy: what is smaller may be there unnoticed. "
        f"{directions}"
    )
    return (
        f'<h2>Audit by audit</h2>{framed(heads, body, (1,))}<p class="soft">{escape(key)}</p>'
    )  # fmt: skip


def _families(audit: Record, row: Record) -> str:
    """Numbers and curves of the row, family by family."""
    measures, curves = (reading.by_family(audit[part]) for part in ("measures", "curves"))
    made = []
    for i, family in enumerate(dict.fromkeys([*measures, *curves])):
        title, question = family_words(family)
        made.append(f"<h2>{escape(title)}</h2><p>{escape(question)}</p>")
        keys = measures.get(family, [])
        if keys:
            drawn = audit_pictures.strips(audit, row, keys, f"strips{i}")
            said = "".join(
                f"<dt>{escape(heading(audit['measures'][key]))}</dt>"
                f"<dd>{escape(audit['measures'][key].get('words') or '')}</dd>"
                for key in keys
            )
            words = (
                "Dot and 95 % interval of this row, of the oracles and of the originals. The grey "
                "band is the floor: one half of the oracles against the other."
            )
            made.append(_shown(drawn, "The numbers", words, "numbers"))
            made.append(f"<dl>{said}</dl>")
        for j, key in enumerate(curves.get(family, [])):
            told = audit["curves"][key]
            drawn = audit_pictures.curve(audit, row, key, f"curve{i}-{j}")
            made.append(_shown(drawn, told["title"], told.get("words") or ""))
    return "".join(made)


def _shown(drawn: str | None, title: str, words: str, kind: str = "narrow") -> str:
    """A picture under its title; the word "undefined" where there is none."""
    if drawn is None:
        return f'<h3>{escape(title)}</h3><p>{UNDEFINED}</p><p class="soft">{escape(words)}</p>'
    return figure(drawn, title, kind, words, level=3)


def _examples(row: Record) -> str:
    found = {
        part: panel for part, panel in (row.get("examples") or {}).items() if panel is not None
    }
    words = (
        "An average hides whoever is exposed most. Every example was attacked by itself; here they "
        "stand sorted by how often the attack was right, 0.5 being a coin. What lies above the "
        "dashed line of the oracles is exposed more than examples that were never learnt."
    )
    exposed = "".join(f"<li>{escape(line)}</li>" for line in _worst(found))
    drawn = attack_pictures.exposed({part.replace("_", " "): p for part, p in found.items()})
    shown = _shown(drawn, "Accuracy of the attack on each example", words, "")
    return f"<h2>Example by example</h2>{shown}" + (f"<ul>{exposed}</ul>" if exposed else "")


def _worst(panels: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The worst example of each kind of data in words, beside what the oracles give for it."""
    told = []
    for part, panel in panels.items():
        at = worst(panel.get("score"))
        if at is None:
            told.append(f"{part.replace('_', ' ')}: {UNDEFINED}.")
            continue
        floor = audit_pictures.numbers(panel.get("floor"))
        held = number(reading.finite(floor[at]) if at < floor.size else None)
        missing = sum(reading.finite(score) is None for score in panel["score"])
        told.append(
            f"Most exposed of the {part.replace('_', ' ')} data: example {at} (counted from 0), "
            f"recognised with accuracy {number(float(panel['score'][at]))}; oracles against "
            f"oracles give {held} on it."
            + (f" {counted(missing, 'example')} undefined." if missing else "")
        )
    return told


def _roc(audit: Record, row: Record) -> str:
    drawn = attack_pictures.roc(
        [
            (each["label"], each.get("roc"), look)
            for each, look in audit_pictures.shown_rows(audit, row)
        ]
    )
    words = (
        "How many forgotten examples are recognised, for each share of others that is mistaken "
        "for them; the grey line is guessing. On the right the same on logarithmic axes: an attack "
        "that is certain about a few examples shows at its lower left."
    )
    shown = _shown(drawn, "True against false positives", words, "")
    return f"<h2>How well can membership be told?</h2>{shown}"


def _shadows(audit: Record, row: Record) -> str:
    """The attack with shadow models on this row; nothing where it was not made at all."""
    told = audit.get("shadows")
    if not told:
        return ""
    rows = {each["label"]: each for each in told["rows"]}
    labels: list[tuple[str, Look]] = [
        (each["label"], look) for each, look in audit_pictures.shown_rows(audit, row)
    ]
    own = rows.get(row["label"])
    if own is None:
        return ""
    oracle = next((rows[label] for label, look in labels if look is ORACLE and label in rows), {})
    panel = {"score": own.get("examples"), "floor": oracle.get("examples")}
    sorted_ = attack_pictures.exposed({"targets": panel}, "targets")
    curves = [(label, (rows.get(label) or {}).get("roc"), look) for label, look in labels]
    drawn = attack_pictures.roc(curves, "shadows")
    words = f"{counted(told['pairs'], 'pair')} of models. {told.get('words') or ''}"
    return (
        f"<h2>Attack with shadow models</h2><p>{escape(words)}</p>"
        + _shown(sorted_, "Accuracy on each target", "Sorted, as above.", "narrow")
        + _shown(drawn, "True against false positives, with shadow models", "As above.", "")
    )
