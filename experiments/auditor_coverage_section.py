"""The section of BENCHMARKS.md on the auditors, from `auditor_coverage.json`.

Whether a bound holds as often as it says is decided here, from the record: misses are compared with
what is allowed plus three deviations of so many simulations.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.auditor_coverage import KIND, SCHEMA
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record


def read(path: Path) -> Record:
    """The record in a file; ValueError if it is something else."""
    return read_record(path, KIND, SCHEMA, "experiments.auditor_coverage")


def auditor_coverage(record: Record) -> str:
    """The section: each auditor on something whose answer is known."""
    allowed, studies = 1 - record["confidence"], record["studies"]
    trials = record["trials"]
    dear = max(2, trials // 10)
    blocks = [
        "## The auditors, audited",
        f"```sh\n{record['command']}\n```",
        paragraph(
            "Every bound and interval of the audits, on simulated data whose answer is known, at "
            f"{_percent(record['confidence'])} confidence; {trials} simulations a cell, {dear} of "
            f"the dear ones. {origin(record)}"
        ),
        "### Epsilon from runs in two worlds",
        paragraph(
            "Share of bounds beyond the truth, and mean bound. *exact*, *bonferroni* and *dkw* "
            "take the best of all thresholds; *split* chooses on half of the runs. *At most*: what "
            "so many runs can show when they separate the worlds perfectly. " +
            _verdict(_misses(studies["epsilon"]), allowed, trials)
        ),
        _epsilon(studies["epsilon"]),
        paragraph(_sharpest(studies["epsilon"])),
    ]  # fmt: skip
    if studies["one_run"]:
        blocks += [
            "### Epsilon from one run (jax-privacy's bounds)",
            paragraph(
                "Each canary's coin is told by randomised response. "
                + _verdict(_misses(studies["one_run"]), allowed, dear)
            ),
            grid(
                ["canaries", "threshold", "truth", "beyond it", "mean bound"],
                [[str(r["canaries"]), r["how"], _two(r["truth"]), _percent(r["exceeded"]),
                  _two(r["mean"])] for r in studies["one_run"]],
            ),
        ]  # fmt: skip
    blocks += [
        "### Noise of another scale than claimed",
        paragraph(_claims_words(studies["claims"], allowed, dear)),
        grid(
            ["noise / claim", "samples", "claimed epsilon", "mean bound", "refuted by the bound",
             "by the noise's distribution"],
            [[r["scale"], str(r["n"]), _two(r["claim"]), _two(r["mean"]), _percent(r["bound"]),
              _percent(r["noise"])] for r in studies["claims"]],
        ),
        "### Intervals of a mean over models",
        paragraph(
            "Share of intervals that hold the true mean, and mean width. "
            + _interval_words(studies["intervals"], record["confidence"], trials)
        ),
        _intervals(studies["intervals"]),
        "### Rates and areas",
        paragraph(
            "Least coverage over all rates from 0.01 to 0.99, by summing the binomial law; then "
            "coverage of the interval of an AUC."
        ),
        grid(
            ["trials", "Clopper-Pearson", "textbook (Wald)"],
            [[str(r["trials"]), _percent(r["clopper-pearson"]), _percent(r["wald"])]
             for r in studies["rates"]],
        ),
        grid(
            ["AUC", "members", "non-members", "covered", "width"],
            [[_two(r["truth"]), str(r["members"]), str(r["nonmembers"]), _percent(r["covered"]),
              _two(r["width"])] for r in studies["areas"]],
        ),
        "### Exposure of canaries that nobody has seen",
        paragraph(
            "Ignorance is not exposure 0: its mean is the floor, and at most 12.5 % may reach "
            "3 bits. The extrapolated one is only as good as the fit of its law (the losses here "
            "are Gumbel distributed, not skew-normal)."
        ),
        grid(
            ["references", "rank", "mean", "floor", "3 bits or more", "at most"],
            [[str(r["references"]), r["how"], _two(r["mean"]), _two(r["floor"]),
              _percent(r["beyond"]), "-" if r["how"] == "extrapolated" else _two(r["largest"])]
             for r in studies["exposure"]],
        ),
    ]  # fmt: skip
    return "\n\n".join(blocks)


def _two(value: float) -> str:
    return f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _misses(rows: Sequence[Record]) -> list[float]:
    return [row["exceeded"] for row in rows]


def _slack(share: float, trials: int) -> float:
    """Three deviations of a share that so many simulations give."""
    return 3 * math.sqrt(share * (1 - share) / trials)


def _verdict(misses: Sequence[float], allowed: float, trials: int) -> str:
    worst = max(misses)
    if worst <= allowed:
        return (
            f"The stated confidence is kept everywhere: at most {_percent(worst)} lie beyond, "
            f"{_percent(allowed)} may."
        )
    if worst <= allowed + _slack(allowed, trials):
        return (
            f"The stated confidence is kept within the error of the simulation: {_percent(worst)} "
            f"lie beyond where it is worst, {_percent(allowed)} may."
        )
    return (
        f"The stated confidence is NOT kept: {_percent(worst)} lie beyond where it is worst, "
        f"{_percent(allowed)} may."
    )


def _table(rows: Sequence[Record], first: Sequence[str], cell: Callable, heads: Callable) -> str:
    """One line for each value of `first`, one column for each `how`."""
    hows = list(dict.fromkeys(row["how"] for row in rows))
    lines: dict[tuple, dict[str, Record]] = {}
    for row in rows:
        lines.setdefault(tuple(row[key] for key in first), {})[row["how"]] = row
    body = []
    for found in lines.values():
        some = next(iter(found.values()))
        body.append([*heads(some), *(cell(found[how]) for how in hows)])
    return grid([*first, *(["truth", "at most"] if "truth" in rows[0] else []), *hows], body)


def _epsilon(rows: Sequence[Record]) -> str:
    return _table(
        rows,
        ("world", "runs"),
        lambda r: f"{_percent(r['exceeded'])}, {_two(r['mean'])}",
        lambda r: [r["world"], str(r["runs"]), _two(r["truth"]), _two(r["largest"])],
    )


def _sharpest(rows: Sequence[Record]) -> str:
    """Which way shows most, where there is something to show."""
    groups: dict[tuple, list[Record]] = {}
    for row in rows:
        if row["truth"] > 0 and row["mean"] > 0:
            groups.setdefault((row["world"], row["runs"]), []).append(row)
    wins = [max(group, key=lambda r: r["mean"])["how"] for group in groups.values()]
    counts = {how: wins.count(how) for how in dict.fromkeys(wins)}
    told = ", ".join(f"*{how}* in {n}" for how, n in sorted(counts.items(), key=lambda c: -c[1]))
    return f"Nearest to the truth, of {len(wins)} settings with something to show: {told}."


def _intervals(rows: Sequence[Record]) -> str:
    return _table(
        rows,
        ("law", "models"),
        lambda r: f"{_percent(r['covered'])}, {r['width']:.3g}",
        lambda r: [r["law"], str(r["models"])],
    )


def _interval_words(rows: Sequence[Record], confidence: float, trials: int) -> str:
    """For each way, from how many models on it holds its promise, over all laws."""
    told = []
    for how in dict.fromkeys(row["how"] for row in rows):
        own = [r for r in rows if r["how"] == how]
        worst = min(own, key=lambda r: r["covered"])
        low = {m for m in {r["models"] for r in own}
               if min(r["covered"] for r in own if r["models"] == m)
               < confidence - 0.02 - _slack(confidence, trials)}  # fmt: skip
        short = (
            f"too few at {', '.join(map(str, sorted(low)))} models" if low else "within 2 points"
        )
        told.append(
            f"*{how}*: {short} (worst {_percent(worst['covered'])}, {worst['law']}, "
            f"{worst['models']} models)"
        )
    return "; ".join(told) + "."


def _claims_words(rows: Sequence[Record], allowed: float, trials: int) -> str:
    most = max(r["n"] for r in rows)
    by_scale = {r["scale"]: r for r in rows if r["n"] == most}
    honest = [r for r in rows if r["scale"] == "1"]
    small, right = by_scale["2/3"], by_scale["1"]
    words = (
        "A mechanism is claimed to add noise of deviation 1 and adds another. Two thirds of it are "
        f"refuted by the epsilon bound in {_percent(small['bound'])} of {most}-sample audits, and "
        f"by the distribution of the noise in {_percent(small['noise'])}; the honest one in "
        f"{_percent(right['bound'])} and {_percent(right['noise'])}. Too much noise breaks no "
        "privacy claim, so the bound rightly leaves it; its distribution tells it "
        f"({_percent(by_scale['3/2']['noise'])})."
    )
    worst = max(max(r["bound"], r["noise"]) for r in honest)
    if worst > allowed + _slack(allowed, trials):
        words += f" The honest mechanism is refuted TOO OFTEN: {_percent(worst)}."
    return words
