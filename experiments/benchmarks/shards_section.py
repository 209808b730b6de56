"""The section of BENCHMARKS.md on shards, from `shards.json`; every number is the record's."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.shards import KIND, SCHEMA
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record


def read(path: Path) -> Record:
    """The record in a file; ValueError if it is something else."""
    return read_record(path, KIND, SCHEMA, "experiments.benchmarks.shards")


def sharding(record: Record) -> str:
    """The section: a table by number of shards, then the kills."""
    job = record["job"]
    words = (
        f"An MLP 128-64 on {job['rows']} rows of digits, Adam {job['learning_rate']:g}, batches of "
        f"{job['batch_size']}, {job['epochs']} epochs a stage, {job['slices']} slices a shard; "
        f"accuracy on {job['test']} test rows, mean ± standard deviation over {job['seeds']} "
        "seeds, by mean softmax and by majority vote. Cost: examples retrained for one deletion, "
        "in % of a training; *expected* is (1/S)(2/3 + 1/(3R)), *planned* the mean over every "
        "single row, *run* the mean of those timed. Seconds: median of `forget` for one random "
        "row, files included, and of training anew on what is left; each pair gave the same bits. "
        f"{origin(record)}"
    )
    heads = ["shards", "accuracy, mean", "majority", "expected", "planned", "run", "forget, s"]
    blocks = [
        "## Sharded training",
        f"```sh\n{record['command']}\n```",
        paragraph(words),
        grid([*heads, "retrain, s", "ratio"], [_row(study) for study in record["studies"]]),
        paragraph(_killed(record["kills"])),
    ]
    return "\n\n".join(blocks)


def _spread(values: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def _row(study: Record) -> list[str]:
    pairs = zip(study["retrain"], study["forget"], strict=True)
    return [
        str(study["shards"]),
        _spread(study["accuracy"]["mean"]),
        _spread(study["accuracy"]["majority"]),
        f"{100 * study['expected']:.1f}",
        f"{100 * study['planned']:.1f}",
        f"{100 * statistics.mean(study['measured']):.1f}",
        f"{statistics.median(study['forget']):.3f}",
        f"{statistics.median(study['retrain']):.3f}",
        f"{statistics.median(a / b for a, b in pairs):.1f}",
    ]


def _killed(kills: Record) -> str:
    hit = ", ".join(f"{count} {when}" for when, count in kills["hit"].items())
    verdict = "all" if kills["passed"] == kills["kills"] else f"ONLY {kills['passed']}"
    return (
        f"**Kills.** {kills['kills']} processes were killed (SIGKILL) at random moments of a "
        f"deletion of {kills['rows']} rows from {kills['shards']} shards ({hit}). After the same "
        f"calls again {verdict} of them had the bits of a run that never had the rows, and its "
        "checkpoints."
    )
