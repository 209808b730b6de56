"""The section of BENCHMARKS.md on shadow models, from `shadows.json`; every number is of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.shadows import KIND, SCHEMA
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record
from jaxunlearn.reporting.tables import number

UNDEFINED = "undefined"


def read(path: Path) -> Record:
    """The record in a file; ValueError if it is something else."""
    return read_record(path, KIND, SCHEMA, "experiments.benchmarks.shadows")


def attacks(record: Record) -> str:
    """The section: a table for each request, then what a plain loop would cost."""
    job = record["job"]
    words = (
        f"U-LiRA with {job['pairs']} pairs of shadow models (`jaxunlearn.auditing.shadows`) on "
        f"digits: an MLP {'-'.join(map(str, job['layers']))}, Adam {job['learning_rate']:g}, "
        f"batches of {job['batch_size']}, {job['epochs']} epochs. Twins share out the forgotten "
        "examples: one was trained on a half and unlearned it, the other never saw it. *original*: "
        "nothing is unlearned; *oracle*: true retraining, which is guessing. Accuracy, AUC and the "
        "share recognised at 1 % false alarms in %, with 95 % intervals; *worst* is the accuracy "
        "on the most exposed example, and the largest of many is above 50 % by chance too: compare "
        "it with the oracle's. *p*: an exact test of each row against guessing, by "
        f"{job['relabellings']} swaps of twins. Seconds are of all {2 * job['pairs']} models of a "
        f"row. {origin(record)}"
    )
    blocks = ["## The attack with shadow models", f"```sh\n{record['command']}\n```"]
    blocks.append(paragraph(words))
    for study in record["studies"]:
        blocks += _study(study)
    blocks.append(paragraph(_loop(record)))
    return "\n\n".join(blocks)


def _study(study: Record) -> list[str]:
    heads = ["row", "accuracy", "AUC", "TPR at 1 %", "worst", "p", "compile, s", "run, s"]
    methods = len(study["rows"]) - 2
    head = (
        f"{study['description']} {study['targets']} targets, {methods} methods: "
        f"{study['seconds']:.0f} s in all, compilation, intervals and tests included."
    )
    notes = [paragraph(f"Note: {note}") for note in study["notes"]]
    return [paragraph(head), grid(heads, [_row(row) for row in study["rows"]]), *notes]


def _row(row: Record) -> list[str]:
    p = row["p_value"]
    return [
        row["label"],
        _share(row["accuracy"]),
        _share(row["auc"]),
        _share(row["tpr"]["0.01"]),
        UNDEFINED if row["worst"] is None else f"{100 * row['worst']:.0f}",
        UNDEFINED if p is None else f"{p:.3f}",
        number(row["seconds"]["compile"]),
        number(row["seconds"]["run"]),
    ]


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return UNDEFINED
    ends = [found["low"], found["high"]]
    interval = "" if None in ends else f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"
    return f"{100 * found['value']:.1f}{interval}"


def _loop(record: Record) -> str:
    torch, ratio = record["torch"], record["ratios"]
    if torch is None:
        return "PyTorch was not installed: there is no ratio."
    models = 2 * record["job"]["pairs"]
    stages = [stage for stage in torch["measured"] if stage != "training"]
    strange = [stage for stage, found in torch["same_job"].items() if not found["same"]]
    same = (
        "the same job: mean margins of what was seen differ by at most three standard errors at "
        "every stage"
        if not strange
        else f"NOT the same job at {', '.join(strange)}, so the ratio means nothing"
    )
    return (
        f"**A plain PyTorch loop, extrapolated.** In the same process {torch['models']} of the "
        f"{models} shadows of {torch['task']} were trained one after another, and unlearned by "
        f"{', '.join(stages)}, in {sum(torch['measured'].values()):.1f} s (PyTorch "
        f"{torch['version']}, the faster of {' and '.join(map(str, torch['tried']))} threads: "
        f"{torch['threads']}). All {models} would take {ratio['torch']:.0f} s: this number is "
        f"measured seconds times {models} / {torch['models']}, and was not run. Ours took "
        f"{number(ratio['ours'])} s for the same stages, and {number(ratio['compile'])} s to "
        f"compile them: {ratio['run']:.1f} times faster, {ratio['with_compile']:.1f} times with "
        f"compilation. It is {same}."
    )
