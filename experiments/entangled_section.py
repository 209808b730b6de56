"""The section of BENCHMARKS.md on the entangled task, from `entangled.json`.

Numbers are read from the record; which sentence stands under them is decided by it too.
"""

from pathlib import Path

import numpy as np

from experiments.entangled import AT_LEAST, KIND, PARTS, SCHEMA, STAGES, WITHIN
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record


def read(path: Path) -> Record:
    """The record in a file; ValueError if it is something else."""
    return read_record(path, KIND, SCHEMA, "experiments.entangled")


def entangled(record: Record) -> str:
    """The section: what was asked, the forgotten digit part by part, the proxies, the findings."""
    main, *proxies = record["studies"]
    settings = ", ".join(f"{k} {v:g}" for k, v in record["arguments"].items())
    blocks = [
        "## A forgotten digit among its like: the entangled task",
        f"```sh\n{record['command']}\n```",
        paragraph(
            f"Digits under the labels odd and even; the digit {main['digit']} is forgotten by "
            f"`entanglement` ({record['preset']}: {settings}). *Adjacent* are the other odd "
            "digits, *remote* the even ones. Each cell: accuracy in % and mean loss in nats, means "
            f"over {record['seeds']} seeds ± the standard deviation over them. The setting was "
            "found on the proxies, other odd digits, on their training and validation data, before "
            f"anything of digit {main['digit']} was measured. {origin(record)}"
        ),
        *(_table(main, split) for split in main["scores"]),
    ]
    if proxies:
        blocks += [paragraph("The same on training data of the proxies:"), _proxies(proxies)]
    return "\n\n".join([*blocks, "\n".join(findings(record))])


def _cell(found: Record) -> str:
    shown = []
    for name, scale, digits in (("accuracy", 100, 1), ("loss", 1, 3)):
        values = scale * np.array(found[name])
        spread = f" ±{values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
        shown.append(f"{values.mean():.{digits}f}{spread}")
    return ", ".join(shown)


def _table(study: Record, split: str) -> str:
    rows = study["rows"][split]
    heads = [split, *(f"{part} ({rows[part]})" for part in PARTS)]
    scores = study["scores"][split]
    return grid(
        heads,
        [[s, *(_cell(scores[s][part]) for part in PARTS)] for s in STAGES if s in scores],
    )


def _proxies(studies: list[Record]) -> str:
    heads = ["digit", "adjacent drop", "of it back", "forget loss, stage 2 / 1", "both goals"]
    body = []
    for study in studies:
        made, seeds = study["outcome"], study["outcome"]["holds"]["seeds"]
        body.append([
            str(study["digit"]),
            f"{100 * made['drop']['mean']:.1f} points",
            _share(made["share"]["mean"]),
            f"{made['forget_loss']['mean']:.2f}",
            f"{'yes' if made['holds']['mean'] else 'no'} ({sum(seeds)} of {len(seeds)} seeds)",
        ])  # fmt: skip
    return grid(heads, body)


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:.0f} %"


def findings(record: Record) -> list[str]:
    """Whether stage 2 repairs without undoing, and how far from retraining the result is."""
    main = record["studies"][0]
    made, count = main["outcome"], record["seeds"]
    ratio, good = made["forget_loss"]["mean"], sum(made["holds"]["seeds"])
    share = made["share"]["mean"]
    asked = f"at least {100 * AT_LEAST:.0f} % back, forget loss within {100 * WITHIN:.0f} %"
    verdict = "holds" if made["holds"]["mean"] else "does NOT hold"
    lines = [
        f"* Stage 1 costs the adjacent data {100 * made['drop']['mean']:.1f} points of training "
        f"accuracy; stage 2 gives {_share(share)} of it back and moves the mean forget loss by "
        f"{100 * (ratio - 1):+.1f} %. Asked: {asked}. It {verdict} for the means, and for {good} "
        f"of {count} seeds."
    ]
    scores = main["scores"]["train"]
    for part in PARTS:
        ours, theirs = (np.array(scores[s][part]["accuracy"]) for s in ("stage 2", "oracle"))
        losses = [np.mean(scores[s][part]["loss"]) for s in ("stage 2", "oracle")]
        inside = theirs.min() <= ours.mean() <= theirs.max()
        word = "within" if inside else "above" if ours.mean() > theirs.max() else "below"
        lines.append(
            f"* {part}: accuracy {100 * ours.mean():.1f} %, {word} the range of the oracles "
            f"({100 * theirs.min():.1f} to {100 * theirs.max():.1f} %); loss {losses[0]:.3f} nats "
            f"against {losses[1]:.3f}."
        )
    return [paragraph(line, indent="  ") for line in lines]
