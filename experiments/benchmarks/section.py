"""The section of BENCHMARKS.md on many models as one program, from `ensemble.json`."""

from collections.abc import Mapping
from typing import Any

from experiments.markdown import grid, origin, paragraph
from jaxunlearn.reporting.tables import NOT_APPLICABLE, number

Record = Mapping[str, Any]


def many_models(record: Record) -> str:
    """The section on an ensemble as one program against a PyTorch loop."""
    job, floor = record["job"], record["floor"]
    rates = ", ".join(f"{r / 1e9:.0f} GFLOP/s ({shape})" for shape, r in floor["rates"].items())
    body = [["floor", "", number(floor["seconds"]), "1", "", ""]]
    for p in record["programs"]:
        body.append([
            p["program"],
            number(p["compile"]) if "compile" in p else NOT_APPLICABLE,
            number(p["seconds"]),
            number(p["seconds"] / floor["seconds"]),
            str(p["models"]),
            f"{100 * p['accuracy']:.2f} ±{100 * p['standard_error']:.2f}",
        ])  # fmt: skip
    blocks = [
        "## Many models as one program",
        f"```sh\n{record['command']}\n```",
        paragraph(
            f"{job['models']} true retrainings for {job['task']} ({job['rows']} rows), an MLP "
            f"{'-'.join(map(str, job['layers']))}, Adam {job['learning_rate']:g}, batches of "
            f"{job['batch_size']}, {job['epochs']} epochs: `ensemble(train)` on {job['devices']} "
            "JAX devices of this machine's cores against a plain PyTorch loop that trains one "
            f"model after another in the same process. Seconds are medians of {job['repeats']} "
            "repeats that take turns, for all models; a program that trained fewer per repeat is "
            f"scaled. {origin(record)}"
        ),
        grid(
            ["program", "compile, s", "run, s", "run / floor", "models", "held-out accuracy, %"],
            body,
        ),
        paragraph(
            f"The floor is counted: {floor['flops'] / 1e9:.1f} GFLOP of matrix products at the "
            f"best rate measured in the same run ({rates}); optimiser, gathers and everything "
            "elementwise come on top."
        ),
        *_speed(record),
    ]
    return "\n\n".join(blocks)


def _speed(record: Record) -> list[str]:
    if not record["ratios"]:
        return ["PyTorch was not installed: there is no ratio."]
    heads = ["ours", "against", "speed-up", "with compilation"]
    body = [
        [program, f"{kind}: {r['against']}", number(r["run"]), number(r["with_compile"])]
        for program, kinds in record["ratios"].items()
        for kind, r in kinds.items()
    ]
    job = record["same_job"]
    same = "the same job" if job["same"] else "NOT the same job, so the ratios mean nothing"
    words = (
        f"Held-out accuracies differ by {100 * job['difference']:.2f} ± "
        f"{100 * job['standard_error']:.2f} points (one standard error): {same}. PyTorch is taken "
        "at its fastest number of threads; several PyTorch processes at once could divide its time "
        f"by at most the {record['machine']['cores']} cores."
    )
    return [grid(heads, body), paragraph(words)]
