"""The section of BENCHMARKS.md on analytic heads, from `analytic.json`."""

from pathlib import Path

from experiments.benchmarks.analytic import DRIFTING, KIND, SCHEMA
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record
from jaxunlearn.methods.exact.analytic import STATES
from jaxunlearn.reporting.tables import number

RATIO, DRIFT, GROWTH = 100.0, 1e-6, 1.5  # asked for


def read(path: Path) -> Record:
    """The record in a file; ValueError if it is something else."""
    return read_record(path, KIND, SCHEMA, "experiments.benchmarks.analytic")


def analytic(record: Record) -> str:
    """The section: the cost of a request, what a refit costs, and the drift of the states."""
    setting, against = record["settings"], record["against"]
    heads = ["state", *(f"{number(r['learnt'])} learnt, ms" for r in record["requests"]),
             "refit / request", "differs from refit by"]  # fmt: skip
    body = [
        [
            f"`{state}`",
            *(number(1e3 * r["seconds"][state]) for r in record["requests"]),
            number(against["seconds"] / _slowest(record, state)),
            f"{against['disagreement'][state]:.0e}",
        ]
        for state in STATES
    ]
    drift = [
        [f"`{state}`", *(f"{record['drift'][kind][state]:.1e}" for kind in ("float32", "float64"))]
        for state in DRIFTING
    ]
    blocks = [
        "## Deleting an example from an analytic head",
        f"```sh\n{record['command']}\n```",
        paragraph(
            "`analytic_head(gamma=0.1)`: one example is forgotten and the head asked for, float32, "
            f"{setting['features']} features and {setting['classes']} classes, medians of "
            f"{setting['repeats']} repeats. A refit of {number(against['rows'])} rows (one "
            f"product, one Cholesky solve, single floats) takes {number(against['seconds'])} s. "
            f"Seed {setting['seed']}. {origin(record)}"
        ),
        grid(heads, body),
        paragraph(
            f"Drift: {setting['requests']} requests, learning and forgetting in turns, in blocks "
            f"of 1 to 8 rows of {setting['drift_features']} features of scales 1 to 0.01; the "
            "largest difference of the head from a float64 solve of the rows that are there, over "
            "its largest weight."
        ),
        grid(["state", "float32", "float64"], drift),
        "\n".join(paragraph(f"* {each}", "  ") for each in findings(record)),
    ]
    return "\n\n".join(blocks)


def findings(record: Record) -> list[str]:
    """Which goals were met, by rule."""
    against, requests = record["against"], record["requests"]
    growth = {
        s: max(r["seconds"][s] for r in requests) / min(r["seconds"][s] for r in requests)
        for s in STATES
    }
    quick = [f"`{s}`" for s in STATES if against["seconds"] / _slowest(record, s) >= RATIO]
    grown = [f"`{s}` ({number(growth[s])} times)" for s in STATES if growth[s] > GROWTH]
    worst = max(record["drift"][kind]["gram"] for kind in ("float32", "float64"))
    met = "as asked" if worst <= DRIFT else "MORE than asked"
    return [
        f"At least {RATIO:g} times cheaper than a refit: {', '.join(quick) or 'none'}.",
        f"Cost grows with what was learnt: {', '.join(grown) or 'none'}.",
        f"Drift of the default state at most {worst:.1e}, {met} ({DRIFT:g}).",
    ]


def _slowest(record: Record, state: str) -> float:
    return max(request["seconds"][state] for request in record["requests"])
