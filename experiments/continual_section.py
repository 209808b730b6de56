"""The section of BENCHMARKS.md on continual learning, from `continual.json`.

Numbers are read from the record; which sentence stands under them is decided by it too.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from experiments.continual import KIND, SCHEMA, SCORES
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record

_NAMES = {
    "none": "none",
    "l2": "L2",
    "ewc offline": "EWC, offline",
    "ewc online": "EWC, online",
    "predictions": "distillation of predictions",
    "features": "distillation of features",
}
_RIVALS = ("ewc offline", "ewc online", "features")


def read(path: Path) -> Record:
    """The record in a file; ValueError if it is something else."""
    return read_record(path, KIND, SCHEMA, "experiments.continual")


def continual(record: Record) -> str:
    """The section: what was asked, two tables per source, and whether L2 beats its rivals."""
    blocks = [
        "## Continual learning without stored examples",
        f"```sh\n{record['command']}\n```",
        paragraph(
            "Classes come in tasks, no older example is kept, and a penalty against the model "
            "before each task is added to its loss (`jaxunlearn.penalties`, "
            "`jaxunlearn.distillation`). Each cell: accuracy after the last task, mean over tasks, "
            "in %, ± half its 95 % interval over seeds; forgetting F in points, from the best an "
            "older task ever had; the strength mu, best on validation data over a log grid (* "
            "where that is an end of the grid). *Local* loss: cross-entropy among the classes of "
            "the task; *full*: among all so far. EWC takes the Fisher of the model's own label "
            f"distribution, scaled to mean 1. Each seed has weights and an order of the classes "
            f"of its own. {origin(record)}"
        ),
    ]
    for study in record["studies"]:
        blocks += _study(study)
    return "\n\n".join(blocks)


def _study(study: Record) -> list[str]:
    setting, held_out = study["setting"], study["held_out"]
    fisher = " (for the full loss sampled once per example)" if setting["sampled"] else ""
    words = (
        f"{setting['tasks']} tasks of {study['classes'] // setting['tasks']} classes, "
        f"{study['rows_per_class']} rows per class, {study['network']}, Adam "
        f"{setting['learning_rate']:g}, batches of {setting['batch_size']}, {setting['epochs']} "
        f"epochs per task{fisher}; validation {held_out['validation']} rows, test "
        f"{held_out['test']}; {setting['seeds']} seeds. The pretrained body has seen "
        f"{study['pretraining_rows']} other rows for {setting['pretraining']} epochs."
    )
    blocks = [f"### {study['source']}", paragraph(words)]
    for score in SCORES:
        blocks.append(_table(study, score))
    return [*blocks, "\n".join(_findings(study))]


def _columns(study: Record) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["start"], row["loss"]) for row in study["rows"]))


def _row(study: Record, start: str, loss: str, penalty: str) -> Record | None:
    for row in study["rows"]:
        if (row["start"], row["loss"], row["penalty"]) == (start, loss, penalty):
            return row
    return None


def _half_width(values: Sequence[float]) -> float:
    """Half the 95 % Student interval of a mean; NaN for a single value."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5) if n > 1 else np.nan


def _table(study: Record, score: str) -> str:
    columns = sorted(_columns(study))
    kinds = list(dict.fromkeys(row["penalty"] for row in study["rows"]))
    body = []
    for kind in kinds:
        cells = []
        for start, loss in columns:
            row = _row(study, start, loss, kind)
            cells.append(_cell(row[score], kind) if row else "-")
        body.append([_NAMES[kind], *cells])
    return grid([score, *(f"{start}, {loss}" for start, loss in columns)], body)


def _cell(found: Record, kind: str) -> str:
    half = _half_width(found["accuracy"])
    spread = "" if np.isnan(half) else f" ±{100 * half:.1f}"
    strength = "" if kind == "none" else f", mu {found['mu']:g}{'*' * found['at_edge']}"
    return (
        f"{100 * np.mean(found['accuracy']):.1f}{spread} "
        f"(F {100 * np.mean(found['forgetting']):.1f}{strength})"
    )


def compared(ours: Sequence[float], theirs: Sequence[float]) -> tuple[str, float, float]:
    """(word, mean difference, half its 95 % interval), paired over seeds.

    The word is "ahead of" or "behind" where the interval leaves out 0, else "level with".
    """
    difference = np.subtract(ours, theirs)
    mean, half = float(difference.mean()), _half_width(difference.tolist())
    if np.isnan(half) or abs(mean) <= half:
        return "level with", mean, half
    return ("ahead of" if mean > 0 else "behind"), mean, half


def _findings(study: Record) -> list[str]:
    """L2 against EWC and feature distillation, per start and loss; then the published claim."""
    lines, claims = [], []
    for start, loss in sorted(_columns(study)):
        for score in SCORES:
            l2 = _row(study, start, loss, "l2")
            rivals = [r for r in _RIVALS if _row(study, start, loss, r)]
            if l2 is None or not rivals:
                continue
            parts = []
            for rival in rivals:
                row = _row(study, start, loss, rival)
                assert row is not None
                word, mean, half = compared(l2[score]["accuracy"], row[score]["accuracy"])
                spread = "" if np.isnan(half) else f" ± {100 * half:.1f}"
                parts.append(f"{word} {_NAMES[rival]} ({100 * mean:+.1f}{spread})")
                if start == "pretrained":
                    claims.append(word)
            lines.append(
                paragraph(f"* {start}, {loss}, {score}: L2 is {'; '.join(parts)}.", indent="  ")
            )
    return [*lines, "", paragraph(_claim(claims))]


def _claim(words: Sequence[str]) -> str:
    published = (
        "Published (arXiv:2203.17269): from a pretrained start plain L2 beats EWC and feature "
        "distillation."
    )
    if not words:
        return f"{published} Not asked here: there is no pretrained start."
    ahead, behind = words.count("ahead of"), words.count("behind")
    counts = f"L2 is ahead in {ahead}, behind in {behind} and level in "
    counts += f"{len(words) - ahead - behind} of {len(words)} comparisons from a pretrained start."
    if ahead == len(words):
        return f"{published} It is reproduced here: {counts}"
    if ahead > behind:
        return f"{published} It is reproduced in part: {counts}"
    return f"{published} It is NOT reproduced here: {counts}"
