"""The section of BENCHMARKS.md on alternating least squares: sweeps, deletions, retrainings."""

import statistics
from pathlib import Path

from experiments.benchmarks.als import KIND, OURS, PAIRS, RIVALS, SCHEMA
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record
from jaxunlearn.reporting.tables import number

ASKED_RATIO, ASKED_TIMES, ASKED_ROWS = 0.8, 10.0, 0.010
_RUNS = ("rows", "3 sweeps", "converged", "converged, sweeps only", "retrained",
         "retrained, Newton steps")  # fmt: skip


def read(path: Path) -> Record:
    """The record in a file; ValueError if it is something else."""
    return read_record(path, KIND, SCHEMA, "experiments.benchmarks.als")


def alternating(record: Record) -> str:
    """The section: sweeps beside `implicit`, deletions beside retrainings, and what was asked."""
    blocks = [
        "## Recommenders: sweeps, and deletions that end where retraining ends",
        f"```sh\n{record['command']}\n```",
        paragraph(
            f"Factorisations of rank {record['rank']}, float32, seed {record['seed']}. "
            f"{origin(record)}"
        ),
        *_sweeps(record),
        *_deletions(record["deletions"]),
    ]
    return "\n\n".join(blocks)


def _sweeps(record: Record) -> list[str]:
    labels = [n for n in (*OURS, *RIVALS) if n in record["sizes"][0]["seconds"]]
    times = [
        [
            f"{size['ratings']:,}", f"{size['users']:,} x {size['items']:,}",
            *(number(1e3 * size["seconds"][name]["value"]) for name in labels),
            number(1e3 * size["floor"]),
        ]
        for size in record["sizes"]
    ]  # fmt: skip
    ratios = [
        [f"{size['ratings']:,}", *(_ranged(size["ratio"].get(name)) for name in PAIRS)]
        for size in record["sizes"]
    ]
    memory = [
        [
            f"{size['ratings']:,}",
            *(
                "not known" if size["bytes"][name] is None else number(size["bytes"][name] / 1e6)
                for name in ("places", "values", "factors", "while solving", "gathered at once")
            ),
            number(size["arranged"]),
            number(max(size["first_call"].values())),
        ]
        for size in record["sizes"]
    ]
    return [
        "### A sweep",
        grid(["ratings", "users x items", *labels, "floor"], times),
        paragraph(
            f"Milliseconds, medians of {record['repeats']} turns; the objective of Hu, Koren and "
            "Volinsky on planted ratings. *cg* solves to a relative residual of 1e-5, *block* is "
            "one cycle of iALS++ with blocks of 32. *floor*: the operations of normal equations "
            "and Cholesky factors at the speed of a large product, "
            f"{number(record['operations_a_second'] / 1e9)} GFLOP/s."
        ),
        grid(
            [
                "ratings",
                *(
                    f"{name} / {rival.removeprefix('implicit, ')} of implicit"
                    for name, rival in PAIRS.items()
                ),
            ],
            ratios,
        ),  # fmt: skip
        paragraph(_judged_sweeps(record)),
        grid(
            [
                "ratings",
                "places",
                "values",
                "factors",
                "while solving",
                "if gathered at once",
                "arranging, s",
                "first call, s",
            ],
            memory,
        ),  # fmt: skip
        paragraph(
            "Megabytes: *places* say where each rating is for both sides, padding included; *while "
            "solving* is what the compiled sweep asks for beside its arguments and results, which "
            "it would exceed many times by gathering the factors beside all ratings at once. "
            "Arranging is done once on the host; the first call compiles."
        ),
    ]


def _ranged(ratio: Record | None) -> str:
    if ratio is None:
        return "not installed"
    return f"{number(ratio['value'])} [{number(ratio['low'])}, {number(ratio['high'])}]"


def _judged_sweeps(record: Record) -> str:
    size = min(record["sizes"], key=lambda size: abs(size["ratings"] - 1_000_000))
    ratio = size["ratio"].get("cholesky")
    if ratio is None:
        return "`implicit` was not installed: nothing to compare with."
    met = "at most" if ratio["value"] <= ASKED_RATIO else "**MORE than**"
    return (
        f"With {size['ratings']:,} ratings a sweep by Cholesky factors takes {met} {ASKED_RATIO} "
        f"of the time of `implicit`'s ({number(ratio['value'])}). After the first half the factors "
        f"differ by {size['agreement']:.1e} of the largest."
    )


def _deletions(found: Record) -> list[str]:
    rows = []
    for each in found["deletions"]:
        runs = each["runs"]
        cells = (f"{number(1e3 * runs[n]['seconds'])}{_work(runs[n])}" for n in _RUNS)
        rows.append([str(each["user"]), str(each["removed"]), *cells])
    apart = [
        [
            str(each["user"]), f"{each['undeleted']:.1e}",
            *(f"{each['runs'][n]['from_retrained']:.1e}" for n in _RUNS),
            f"{each['runs']['converged']['distance']:.1e}",
        ]
        for each in found["deletions"]
    ]  # fmt: skip
    original, constants = found["original"], found["constants"]
    listed = ", ".join(f"{name} {value}" for name, value in constants.items())
    return [
        "### A deletion",
        paragraph(
            f"All ratings of one user, from a converged model of {found['data']}: "
            f"{found['ratings']:,} ratings, {found['users']:,} x {found['items']:,}, rank "
            f"{found['rank']}, {listed}. The spectral ratio of the original is "
            f"{original['ratio']:.6f}: "
            + (
                "it is the global optimum to within an RMS difference of predictions of "
                if original["ratio"] <= 1 + 1e-4
                else "a higher rank would do better, and other optima are not ruled out; RMS bound "
            )
            + f"{original['distance']:.1e}."
        ),
        grid(["user", "ratings", *_RUNS], rows),
        paragraph(
            "Milliseconds, compiled before; in brackets full sweeps, Newton steps and their "
            "products with the Hessian. *retrained* starts from new factors and stops at the same "
            "tolerance; a retraining without convergence is marked with a cross."
        ),
        grid(["user", "not deleted", *_RUNS, "bound"], apart),
        paragraph(
            "Root mean square difference of predictions, over what is retained, from the "
            "retraining with Newton steps; *bound*: to any optimal retraining, from the dual, "
            "without retraining."
        ),
        paragraph(_judged_deletions(found)),
    ]


def _work(run: Record) -> str:
    cross = "" if run["converged"] or not run["sweeps"] or run["sweeps"] == 3 else " x"
    counts = f"{run['sweeps']}" + (
        f" + {run['newton_steps']} / {run['products']}" if run["newton_steps"] else ""
    )
    return f" ({counts}){cross}" if run["sweeps"] else ""


def _judged_deletions(found: Record) -> str:
    def times(rival: str) -> list[float]:
        return [
            each["runs"][rival]["seconds"] / each["runs"]["converged"]["seconds"]
            for each in found["deletions"]
        ]

    plain, newton = times("retrained"), times("retrained, Newton steps")
    alone = times("converged, sweeps only")
    rows = statistics.median(e["runs"]["rows"]["seconds"] for e in found["deletions"])
    met = "at least" if min(plain) >= ASKED_TIMES else "**NOT always**"
    quick = "below" if rows < ASKED_ROWS else "**NOT below**"
    return (
        f"A converged deletion is {met} {ASKED_TIMES:.0f} times faster than retraining by sweeps: "
        f"{number(min(plain))} to {number(max(plain))} times; than retraining with the same Newton "
        f"steps {number(min(newton))} to {number(max(newton))} times; than the same deletion by "
        f"sweeps alone {number(min(alone))} to {number(max(alone))} times. The affected rows alone "
        f"take {number(1e3 * rows)} ms at the median, {quick} {1e3 * ASKED_ROWS:.0f} ms."
    )
