"""The section of BENCHMARKS.md on leaving rows out of kernel machines, from `kernel.json`."""

import itertools
import math
from pathlib import Path

from experiments.benchmarks.kernel import KIND, RHO, SCHEMA
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record
from jaxunlearn.reporting.tables import NOT_APPLICABLE, number

_AGREE = 1e-6  # asked for in float64


def read(path: Path) -> Record:
    """The record in a file; ValueError if it is something else."""
    return read_record(path, KIND, SCHEMA, "experiments.benchmarks.kernel")


def kernels(record: Record) -> str:
    """The section: ridge, support vectors, networks of finite width."""
    blocks = [
        "## Leaving rows out of kernel machines",
        f"```sh\n{record['command']}\n```",
        paragraph(
            "Rows F are forgotten from a machine on n rows (RBF kernel of 5 inputs, float64) and "
            f"the result is compared with a fit of what is left. Medians of {record['turns']} "
            f"turns that the programs take in one process. Seed {record['seed']}. {origin(record)}"
        ),
        _ridge(record),
        _judgement(record),
    ]
    return "\n\n".join(blocks + _hinge(record) + _widths(record))


def _ridge(record: Record) -> str:
    heads = [
        "n", "F", "leave out, ms", "forget, ms", "refit, ms", "SciPy, ms",
        "refit / forget", "SciPy / leave out", "differs by",
    ]  # fmt: skip
    body = []
    for row in record["ridge"]:
        s = row["seconds"]
        body.append([
            str(row["n"]),
            str(row["forget"]),
            *(number(1e3 * s[name]) for name in ("leave_out", "forget", "refit", "SciPy")),
            number(s["refit"] / s["forget"]),
            number(s["SciPy"] / s["leave_out"]),
            f"{max(row['agreement'].values()):.0e}",
        ])  # fmt: skip
    note = paragraph(
        f"Kernel ridge, rho = {RHO:g}. *Leave out*: weights without F, the state stays; *forget*: "
        "the whole state without F, checked; *refit*: the same state by a factorisation; *SciPy*: "
        "`cho_factor` and `cho_solve` on the kernel of what is left, weights alone."
    )
    return f"{grid(heads, body)}\n\n{note}"


def _judgement(record: Record) -> str:
    worst = max(max(row["agreement"].values()) for row in record["ridge"])
    agree = (
        f"All weights agree with a fit of what is left within {worst:.0e}."
        if worst <= _AGREE
        else f"**The weights DISAGREE** with a fit of what is left, by {worst:.0e}."
    )
    slower = [
        f"n = {row['n']}, F = {row['forget']}"
        for row in record["ridge"]
        if row["seconds"]["forget"] >= row["seconds"]["refit"]
    ]
    words = f"Forgetting is not faster than refitting at: {'; '.join(slower) or 'none'}."
    return "\n".join(f"* {item}" for item in (agree, words))


def _hinge(record: Record) -> list[str]:
    if not record["hinge"]:
        return []
    heads = [
        "n", "F", "support vectors", "events", "path, ms", "ascent, ms", "SVC, ms",
        "ascent / path", "gap", "differs by",
    ]  # fmt: skip
    body = []
    for row in record["hinge"]:
        s = row["seconds"]
        body.append([
            *(str(row[name]) for name in ("n", "forget", "support", "events")),
            number(1e3 * s["path"]),
            number(1e3 * s["ascent"]),
            number(1e3 * s["SVC"]) if "SVC" in s else NOT_APPLICABLE,
            number(s["ascent"] / s["path"]),
            f"{row['gap']:.0e}",
            f"{row['agreement']:.0e}",
        ])  # fmt: skip
    note = paragraph(
        "Support vector machine without intercept, C = 1; F are support vectors. *Path*: their "
        "weights led to 0 while the rest stays optimal; *ascent*: dual coordinate ascent from "
        "zeros to a relative gap of 100 machine epsilons; *SVC*: libsvm with an intercept, so "
        "another problem, to its tolerance 1e-6. *Gap*: the certificate after the path."
    )
    return ["### Support vectors", grid(heads, body), note]


def _widths(record: Record) -> list[str]:
    heads = ["loss", "width", "from the infinite kernel", "rate", "from its own kernel", "rate"]
    body, sentences = [], []
    for name, rows in record["widths"].items():
        for before, row in zip([None, *rows[:-1]], rows, strict=True):
            rates = [_rate(before, row, key) for key in ("limit", "own")]
            cells = [number(row["limit"]), rates[0], number(row["own"]), rates[1]]
            body.append([name, str(row["width"]), *cells])
        falling = all(
            a[key] > b[key] for a, b in itertools.pairwise(rows) for key in ("limit", "own")
        )
        effect = record["moved"][name]
        sentences.append(
            f"* {name}: the differences {'fall' if falling else '**do NOT fall**'} with every "
            f"width; forgetting F itself changes predictions by {number(effect)}."
        )
    note = paragraph(
        "Two-layer ReLU networks in tangent-kernel parameterisation, trained without F (6 of 30 "
        "rows) by full-batch descent on the loss and an l2 penalty to their start, against the "
        "machine that forgot F: rms over 50 test points and "
        f"{record['seeds']} networks. *Rate*: the power of the width at which the difference "
        "fell from the row above; theory says -0.5, and for a network's own kernel, the tangent "
        "kernel at its start, at most that. The hinge takes a tenth of the learning rate and ten "
        "times the steps: its subgradient chatters at the margin by the size of a step."
    )
    return ["### Networks of finite width", grid(heads, body), note, "\n".join(sentences)]


def _rate(before: Record | None, row: Record, key: str) -> str:
    if before is None:
        return NOT_APPLICABLE
    return number(math.log(row[key] / before[key]) / math.log(row["width"] / before["width"]))
