"""Can these audits see, and what can they not? Planted models, a matrix of findings, limits.

    trust(audit)    one box: were the planted models judged as they must be?
    seeing(audit)   the planted models one by one, and the matrix of rows and audits
    limits(audit)   what nobody may conclude

A planted model is one of which the right answer is known: an untouched original, a retraining that
saw some of the forgotten data, a model whose answers alone were masked must be flagged; a further
true retraining must not. Rows of the matrix are told by the record, not by their names.
"""

from collections.abc import Callable, Sequence
from html import escape

from . import reading
from .badges import badge, mark
from .controls import as_expected, controls, noticeable, noticed, planted
from .markup import framed
from .page_names import linked
from .reading import Record, counted, listed, probability
from .tables import UNDEFINED


def trust(audit: Record) -> str:
    """Whether the planted models were judged as they must be, before anything else is said."""
    right, wrong, unjudged = controls(audit)
    total = len(right) + len(wrong) + len(unjudged)
    if not total:
        words = (
            "Nothing was planted in this audit, so nothing shows what it can see. A model that was "
            "not told apart may simply not have been looked at closely enough."
        )
        return f'<p class="distrust">{mark("unknown")}{escape(words)}</p>'
    if not wrong and not unjudged:
        words = (
            f"These audits were tested on {counted(total, 'planted model')} of which the right "
            "answer is known, and judged every one of them as it must be."
        )
        return f'<p class="trust">{mark("pass")}{escape(words)}</p>'
    told = [
        f"{row['label']} must be {row['expected']} and was {reading.outcome(row)}" for row in wrong
    ]
    told += [f"{row['label']} could not be judged" for row in unjudged]
    words = (
        f"Of {counted(total, 'planted model')} of which the right answer is known, "
        f"{len(wrong) + len(unjudged)} {'was' if len(told) == 1 else 'were'} not judged as they "
        f"must be: {'; '.join(told)}. Read every finding below with that in mind."
    )
    kind = "fail" if wrong else "unknown"
    return f'<p class="distrust"><strong>{mark(kind)}{escape(words)}</strong></p>'


def seeing(audit: Record) -> str:
    """The planted models, and the matrix of audits and rows."""
    words = (
        "An audit that flags nothing proves nothing unless it would have flagged something. So "
        "models were hidden among the others of which the right answer is known: some that must be "
        "flagged, since they remember, and some that must not, since they are true retrainings."
    )
    heads = ["", "what it is", "must be", "was", "p-value", ""]
    body = []
    marks = {True: ("pass", "as it must be"), False: ("fail", "not as it must be")}
    for row, label in linked(audit):
        if not row.get("expected"):
            continue
        finding = row.get("finding")
        kind, said = marks.get(as_expected(row), ("unknown", "not judged"))  # type: ignore
        cells = [row["expected"], reading.outcome(row), probability((finding or {}).get("p_value"))]
        body.append(
            f'<tr><th scope="row">{label}</th>'
            f'<td class="words wide">{escape(row.get("words") or "")}</td>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + f'<td class="light">{badge(kind, said)}</td></tr>'
        )
    table = framed(heads, body, (1,)) if body else "<p>No model was planted.</p>"
    key = (
        '<p class="soft key">Adjusted p-values. '
        f"<span>{badge('seen', 'told from the oracles')}</span> "
        f"<span>{badge('came back', 'what was forgotten came back')}</span> "
        f"<span>{badge('unseen', 'no difference found')}</span></p>"
    )
    return (
        f'<h2 id="seeing">Can these audits see?</h2><p>{escape(words)}</p>{table}'
        f"<h3>Audit by audit</h3>{key}{_matrix(audit)}"
    )


def _matrix(audit: Record) -> str:
    keys = list(audit["audits"])
    heads = ["", *(audit["audits"][key]["title"] for key in keys)]
    pairs = [(row, label) for row, label in linked(audit) if row["role"] != "oracle"]
    body: list[str] = []

    def group(title: str, rows: Sequence[tuple[Record, str]]) -> None:
        if rows:
            body.append(
                f'<tr class="group"><th scope="rowgroup">{title}</th>'
                f'<td colspan="{len(keys)}"></td></tr>'
            )
        for row, label in rows:
            cells = "".join(_cell(audit, row, key) for key in keys)
            body.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')

    def line(title: str, told: Callable[[str], str]) -> None:
        cells = "".join(f"<td>{escape(told(key))}</td>" for key in keys)
        body.append(f'<tr class="reference"><th scope="row">{escape(title)}</th>{cells}</tr>')

    def tally(expected: str) -> Callable[[str], str]:
        def told(key: str) -> str:
            seen, judged = noticed(audit, key, expected)
            return f"{seen} of {judged}" if judged else UNDEFINED

        return told

    def least(key: str) -> str:
        share = noticeable(audit, key)
        return UNDEFINED if share is None else (
            "not even the original" if share >= 1 else f"{100 * share:.2g} %"
        )  # fmt: skip

    group("planted", [pair for pair in pairs if pair[0].get("expected")])
    if planted(audit):
        line("must be flagged, and was", tally("flagged"))
        line("must not be, and was", tally("not flagged"))
    line("smallest difference it could notice", least)
    group("methods", [pair for pair in pairs if not pair[0].get("expected")])
    words = (
        "The smallest difference is what sampling alone gives in one of twenty draws, as a share "
        "of the distance of the originals from the oracles: what is smaller may be there unnoticed."
    )
    table = framed(heads, body)
    return f'<div class="matrix">{table}</div><p class="soft">{escape(words)}</p>'


def _cell(audit: Record, row: Record, key: str) -> str:
    seen = reading.flagged(audit, row, key)
    back = reading.came_back(row, key)
    p = escape(probability(((row.get("evidence") or {}).get(key) or {}).get("p_value")))
    if seen is None and not back:
        return f'<td class="undefined">{UNDEFINED}</td>'
    kind = "came back" if back else "seen" if seen else "unseen"
    words = {"came back": "came back", "seen": "told apart", "unseen": "no difference found"}[kind]
    return f"<td>{mark(kind, words)}{p}</td>"


def limits(audit: Record) -> str:
    """What nobody may conclude from this audit."""
    share = f"{100 * reading.level(audit):g} %"
    task = audit["task"]
    shares = {key: noticeable(audit, key) for key in audit["audits"]}
    known = sorted((value, key) for key, value in shares.items() if value is not None)
    items = [
        "No audit proves that nothing is left. These are the attacks that were tried; one that "
        "nobody tried may see more.",
        f"This is one request ({task['words']} of {task['source']}) and one way of training. "
        "Another request, model or recipe needs an audit of its own.",
        "A finding is about the method, run again and again with other random numbers. It is no "
        "certificate for one particular model.",
        f"In up to {share} of runs a true retraining would be flagged by chance; with many methods "
        "a single flag near that limit means little.",
    ]
    if known:
        sharp, dull = known[0], known[-1]
        low, high = (f"{100 * value:.2g} %" for value in (sharp[0], dull[0]))
        items.append(
            "Small differences stay unnoticed. The sharpest audit, "
            f"{audit['audits'][sharp[1]]['title']}, could notice {low} of the distance between "
            f"originals and oracles; the dullest, {audit['audits'][dull[1]]['title']}, {high}. "
            "More models make audits sharper."
        )
    missing = {
        row["label"]: [
            told["title"]
            for key, told in audit["audits"].items()
            if reading.flagged(audit, row, key) is None
        ]
        for row in reading.rows_of(audit, "method")
    }
    gaps = [
        f"{label} ({listed(names) if len(names) < len(audit['audits']) else 'every audit'})"
        for label, names in missing.items()
        if names
    ]
    if gaps:
        items.append(f"Undefined, and so neither good nor bad: {'; '.join(gaps)}.")
    told = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<h2 id="limits">What this does not show</h2><ul>{told}</ul>'
