"""The section of BENCHMARKS.md on deleting people from a linear autoencoder."""

from pathlib import Path

from experiments.benchmarks.autoencoder import EXACT, KIND, PEOPLE, REFITS, SCHEMA
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record
from jaxunlearn.reporting.tables import number


def read(path: Path) -> Record:
    """The record in a file; ValueError if it is something else."""
    return read_record(path, KIND, SCHEMA, "experiments.benchmarks.autoencoder")


def autoencoder(record: Record) -> str:
    """The section: times and ratios, errors, and what they say about the claims."""
    one, many = map(str, PEOPLE)
    heads = [
        "items", "dtype", "forget 1, ms", f"forget {many}, ms", "refit, ms", "ratio, 1",
        f"ratio, {many}", "Gram, ms", "MB",
    ]  # fmt: skip
    times, errors = [], []
    for size in record["sizes"]:
        seconds, ratio, error = size["seconds"], size["ratio"], size["error"]
        label = [str(size["items"]), size["dtype"]]
        times.append([
            *label,
            number(1e3 * seconds[one]["value"]),
            number(1e3 * seconds[many]["value"]),
            f"{number(1e3 * seconds[size['fastest_refit']]['value'])} ({size['fastest_refit']})",
            *(f"{number(r['value'])} [{number(r['low'])}, {number(r['high'])}]"
              for r in (ratio[one], ratio[many])),
            number(1e3 * size["gram_seconds"]),
            number(size["bytes"] / 1e6),
        ])  # fmt: skip
        shown = (one, many, *REFITS, f"{one} not forgotten")
        errors.append([*label, *(f"{error[name]:.1e}" for name in shown)])
    blocks = [
        "## Deleting people from a linear autoencoder",
        f"```sh\n{record['command']}\n```",
        paragraph(
            "`ease(...).forget`, the exact downdate of P = (X'X + lambda I)^-1 by the rows of 1 or "
            f"{many} people, against inverting X'X + lambda I without them. Planted implicit "
            f"feedback, three people for each item, lambda {record['regularisation']:g}, seed "
            f"{record['seed']}. {origin(record)}"
        ),
        grid(heads, times),
        paragraph(
            f"Medians of {record['repeats']} turns in which requests and refits follow each other "
            "in one process; *ratio*: the faster refit over the request, with its range; the refit "
            "is given X'X, whose making is in the column *Gram*. A request includes all checks. "
            "*MB*: P and X'X, all that a learner keeps but for eight bytes a person."
        ),
        grid(
            ["items", "dtype", "forget 1", f"forget {many}", *REFITS, "not forgetting"],
            errors,
        ),
        paragraph(
            "The largest entry of |B - B*|, B* being the refit in float64; in the last column of "
            "the model that still has the person."
        ),
        *_judgement(record),
    ]
    return "\n\n".join(blocks)


def _judgement(record: Record) -> list[str]:
    """Sentences that follow from the record."""
    double = [size for size in record["sizes"] if size["dtype"] == "float64"]
    sentences = []
    if double:
        worst = max(size["error"][str(m)] for size in double for m in PEOPLE)
        met = "equals" if worst <= EXACT else "**does NOT equal**"
        sentences.append(
            f"In float64 the downdate {met} the refit to {EXACT:g} (largest difference "
            f"{worst:.1e})."
        )
    ratios = [size["ratio"][str(PEOPLE[0])]["value"] for size in record["sizes"]]
    slow = sum(ratio <= 1 for ratio in ratios)
    sentences.append(
        f"One person is forgotten {number(min(ratios))} to {number(max(ratios))} times faster than "
        "by a refit."
        if not slow
        else f"**NOT faster** than a refit in {slow} of {len(ratios)} settings."
    )
    return [paragraph(" ".join(sentences))]
