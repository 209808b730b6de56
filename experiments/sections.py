"""The sections of BENCHMARKS.md on comparisons: records in, Markdown out.

    overview      every method against every task: verdict and gap closed
    comparison    one `results.json`

Pure functions of the records. A sentence is chosen by what the record says (who matches, who does
not, which is nearest), never written for a result.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.markdown import grid, origin, paragraph
from jaxunlearn.audit import Verdict
from jaxunlearn.reporting import tables

Record = Mapping[str, Any]

GOOD = (Verdict.INDISTINGUISHABLE.value, Verdict.RECIPE_NOISE.value)
_METRICS = {
    "jensen_shannon": "Jensen-Shannon",
    "activation_distance": "activation distance",
    "prediction_agreement": "agreement",
    "klom": "KLoM",
}
_PARTS = ("forget", "forget_test", "adjacent", "adjacent_test", "remote", "retain", "test")


def _title(record: Record) -> str:
    return f"{record['task']['name']} of {record['task']['source']}"


def _methods(record: Record) -> list[Record]:
    return [row for row in record["rows"] if row["role"] == "method"]


def _listed(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def _shown_parts(record: Record) -> list[str]:
    return [part for part in _PARTS if part in record["parts"]]


def overview(records: Sequence[Record]) -> str:
    """Method against task: the verdict, and the share of the gap that was closed."""
    labels = dict.fromkeys(row["label"] for record in records for row in _methods(record))

    def cell(record: Record, label: str) -> str:
        if tables.not_informative(record):
            return "not informative"
        verdict = next((r["verdict"] for r in _methods(record) if r["label"] == label), None)
        if verdict is None:
            return tables.NOT_APPLICABLE
        gap = verdict.get("gap_closed")
        words = verdict["verdict"]
        return f"{words} ({tables.hundredths(gap['value'])})" if gap else words

    body = [[f"`{label}`", *(cell(record, label) for record in records)] for label in labels]
    table = grid(["method", *map(_title, records)], body, words=True)
    return f"## At a glance\n\nVerdict, and gap closed on forget data in brackets.\n\n{table}"


def comparison(record: Record) -> str:
    """The section of one comparison."""
    top = [f"## {_title(record)}", f"```sh\n{record['command']}\n```", _made(record)]
    reason = tables.not_informative(record)
    if reason:
        told = (
            f"**Not informative:** {reason}. No score is shown, because none would mean anything."
        )
        return "\n\n".join([*top, paragraph(told), *_notes(record)])
    blocks = [
        paragraph(f"**{record['headline']}**"),
        _scores(record),
        "\n".join(findings(record)),
        "### Distances to retraining, and their floors",
        paragraph(
            "Energy between the models of a row and the oracles, part by part. One recipe floor is "
            "the larger of the two lines under it: the largest energy between oracles of two "
            "innocent recipes, and what sampling so few models gives by itself."
        ),
        _distances(record),
        "### Classical metrics on forget data, beside their floors",
        paragraph(
            "The floor is the same metric between two independent halves of the oracles. "
            "Membership: area under the curve of the loss attack on forgotten examples; it is to "
            "be compared with the oracle's, not with 0.5."
        ),
        _classical(record),
        "### Settings",
        _settings(record),
        *_notes(record),
    ]
    return "\n\n".join(top + blocks)


def _made(record: Record) -> str:
    settings, recipe = record["settings"], record["settings"]["recipe"]
    count = {row["role"]: row["models"] for row in record["rows"] if row["role"] != "recipe"}
    models = ", ".join(f"{count[r]} {r}s" for r in ("original", "oracle") if r in count)
    thinned = [p for p, entry in record["parts"].items() if entry["examples"] < entry["available"]]
    return paragraph(
        f"{record['task']['description']} Network {recipe['model']}, {recipe['optimizer']} "
        f"{recipe['learning_rate']:g}, batches of {recipe['batch_size']}, {recipe['epochs']} "
        f"epochs; {models}; seed {settings['seed']}"
        + (f"; {settings['rows']} rows evaluated of: {', '.join(thinned)}" if thinned else "")
        + f". {origin(record)}"
    )


def _notes(record: Record) -> list[str]:
    notes = [paragraph(f"* {note}", "  ") for note in record["notes"]]
    return ["Notes of the run:\n\n" + "\n".join(notes)] if notes else []


def _scores(record: Record) -> str:
    shown = _shown_parts(record)
    body = []
    for line, row in zip(tables.lines(record), record["rows"], strict=True):
        verdict = row["verdict"] or {}
        p = verdict.get("p_value")
        body.append([
            f"`{line.label}`" if line.role == "method" else line.label,
            str(line.models),
            *(tables.percent(line.accuracy[part]) for part in shown),
            line.gap_closed,
            line.collateral,
            line.verdict or "the reference",
            tables.number(p) if p is not None else tables.NOT_APPLICABLE,
            line.time,
        ])  # fmt: skip
    heads = ["", "models", *shown, "gap closed", "collateral", "verdict", "p", "time"]
    return grid(heads, body)


def findings(record: Record) -> list[str]:
    """What the record says in sentences: who matches the oracles, who does not, and by how much."""
    methods = _methods(record)
    tried = [row for row in methods if row.get("method") != "retrain"]
    good = [row["label"] for row in tried if row["verdict"]["verdict"] in GOOD]
    bad = [row["label"] for row in tried if row["label"] not in good]
    sentences = []
    if good:
        sentences.append(f"Not to be told from retraining beyond recipe noise: {_listed(good)}.")
    if bad:
        sentences.append(f"Told from retraining: {_listed(bad)}.")
    alive = [r for r in tried if r["verdict"]["verdict"] != Verdict.COLLAPSED.value]
    for key, words, best in (
        ("gap_closed", "Nearest on forget data: `{}` (gap closed {}).", max),
        ("collateral", "Least collateral: `{}` ({} recipe floors).", min),
    ):
        measured = [r for r in alive if (r["verdict"].get(key) or {}).get("value") is not None]
        if measured:
            row = best(measured, key=lambda r: r["verdict"][key]["value"])
            value = row["verdict"][key]["value"]
            shown = tables.hundredths(value) if key == "gap_closed" else tables.number(value)
            sentences.append(words.format(row["label"], shown))
    for row in methods:
        if row.get("method") == "retrain":
            found = row["verdict"]["verdict"]
            as_it = "as it must be" if found in GOOD else "although it retrains: read with care"
            sentences.append(f"The control, `{row['label']}`, is {found}, {as_it}.")
    bullets = [paragraph(f"* `{r['label']}`: {r['verdict']['words']}.", "  ") for r in methods]
    return [paragraph(" ".join(sentences)), "", *bullets]


def _distances(record: Record) -> str:
    floors = record["floors"]
    shown = [part for part in _shown_parts(record) if part in floors]
    names = {
        "value": "one recipe floor",
        "recipe": "... between recipes",
        "resolution": "... by sampling",
    }
    body = [
        [words, *(tables.number(floors[part].get(key)) for part in shown)]
        for key, words in names.items()
    ]
    for row in record["rows"]:
        if row["role"] != "oracle":
            energies = (row["verdict"] or {}).get("energies") or {}
            label = f"`{row['label']}`" if row["role"] == "method" else row["label"]
            body.append([label, *(tables.number(energies.get(part)) for part in shown)])
    return grid(["energy to the oracles", *shown], body)


def _classical(record: Record) -> str:
    def cells(scores: Record, whole: Record | None, membership: Record | None) -> list[str]:
        measured = [(scores.get(name) or {}).get("forget") for name in _METRICS]
        attack = (membership or {}).get("loss") or {}
        return [
            tables.interval(each) if each else tables.NOT_APPLICABLE
            for each in (*measured, whole, attack.get("auc"))
        ]

    floor = record["floor"]
    body = [["floor", *cells(floor, floor.get("tug_of_war"), None)]]
    for row in record["rows"]:
        if row["role"] != "recipe":
            label = f"`{row['label']}`" if row["role"] == "method" else row["label"]
            body.append([label, *cells(row["scores"], row["tug_of_war"], row["membership"])])
    return grid(["", *_METRICS.values(), "tug of war", "membership"], body)


def _settings(record: Record) -> str:
    body = [
        [
            f"`{row['label']}`",
            ", ".join(f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}"
                      for k, v in row["arguments"].items()),
            row["preset"],
            ", ".join(row["needs"]),
            row["guarantee"],
            f"arXiv:{row['paper']}" if row["paper"] else tables.NOT_APPLICABLE,
        ]
        for row in _methods(record)
    ]  # fmt: skip
    heads = ["method", "arguments", "rule", "needs", "guarantee", "source"]
    return grid(heads, body, words=True)
