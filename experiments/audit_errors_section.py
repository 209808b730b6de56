"""The section of BENCHMARKS.md on how often the suite of audits is wrong, from `audit_errors.json`.

The sentences are chosen by the record: whether the false alarms lie within what is allowed, and
which planted groups were flagged, is decided here and never written for a result.
"""

from pathlib import Path

from scipy import stats

from experiments.audit_errors import KIND, SCHEMA
from experiments.markdown import grid, origin, paragraph
from experiments.records import Record, read_record
from jaxunlearn.audit import clopper_pearson


def read(path: Path) -> Record:
    """The record in a file; ValueError if it is something else."""
    return read_record(path, KIND, SCHEMA, "experiments.audit_errors")


def audit_errors(record: Record) -> str:
    """The section: false alarms, then power."""
    small, large = record["small"], record["large"]
    blocks = [
        "## How often the audits are wrong",
        f"```sh\n{record['command']}\n```",
        paragraph(
            "The suite of `jaxunlearn audit`, all audits in one permutation test at level "
            f"{record['level']:g}, on models whose answer is known. {origin(record)}"
        ),
        "### False alarms",
        paragraph(
            f"In every trial {small['models']} models retrained anew stand in the place of a "
            f"method, against {small['oracles']} oracles retrained anew (MLP, {small['rows']} rows "
            f"of digits, {small['epochs']} epochs). {_alarm_words(record)}"
        ),
        _alarms(record),
        paragraph(
            "The same audit by audit: how often each would have raised an alarm by itself, at the "
            "same level and without regard to the others, and how often it was named by the test "
            "over all."
        ),
        _alone(record),
        "### Power: which audit catches which",
        paragraph(
            f"Planted groups of {large['models']} models against {large['oracles']} oracles "
            "(default comparison of digits). Adjusted p-values; flagged ones are bold, with an "
            "arrow where the group lies towards the original (<) or beyond retraining (>). "
            + _power_words(record)
        ),
    ]
    for name, groups in record["loud"].items():
        blocks += [f"#### {name}", _power(record, groups)]
    return "\n\n".join(blocks)


def _alarm_words(record: Record) -> str:
    level, found = record["level"], record["quiet"]
    too_many = [
        name for name, each in found.items()
        if stats.binomtest(
            each["flagged"], each["trials"], level, alternative="greater"
        ).pvalue < 0.025
    ]  # fmt: skip
    if too_many:
        return f"More than {100 * level:g} % of trials raise an alarm on {', '.join(too_many)}."
    return (
        f'Anything but "indistinguishable from retraining" may be said in {100 * level:g} % of '
        "trials; what is said is within its sampling error of that, or below."
    )


def _alarms(record: Record) -> str:
    rows = []
    for name, each in record["quiet"].items():
        k, n = each["flagged"], each["trials"]
        low, high = clopper_pearson(k, n)
        rows.append([
            name, str(n), str(k), f"{100 * k / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
            f"{100 * each['any_alone'] / n:.1f}",
        ])  # fmt: skip
    heads = ["request", "trials", "false alarms", "%, 95 % interval", "% without adjusting"]
    return grid(heads, rows)


def _alone(record: Record) -> str:
    names = list(record["quiet"])
    heads = ["audit", *(f"{name}: {what}" for name in names for what in ("alone, %", "named, %"))]
    rows = []
    for key, entry in record["audits"].items():
        cells = []
        for each in record["quiet"].values():
            for counts in (each["alone"], each["by"]):
                k = counts.get(key)
                cells.append("-" if k is None else f"{100 * k / each['trials']:.1f}")
        rows.append([entry["title"], *cells])
    return grid(heads, rows)


def _power_words(record: Record) -> str:
    wrong = [
        f"{label} ({task})"
        for task, groups in record["loud"].items()
        for label, each in groups.items()
        if (each["p_value"] <= record["level"]) != (each["expected"] == "flagged")
    ]
    if wrong:
        return f"Not judged as they must be: {', '.join(wrong)}."
    return "Every group that must be flagged is, and no group of fresh oracles."


_ARROWS = {"towards the original": " <", "away from it": " >"}


def _power(record: Record, groups: Record) -> str:
    def cell(p: float | None, direction: str | None = None) -> str:
        if p is None:
            return "-"
        return (
            f"**{p:.2g}{_ARROWS.get(direction or '', '')}**" if p <= record["level"] else f"{p:.2g}"
        )

    rows = [["**all audits together**", *(cell(each["p_value"]) for each in groups.values())]]
    for key, entry in record["audits"].items():
        found = [each["audits"].get(key) for each in groups.values()]
        if any(found):
            rows.append([
                entry["title"],
                *(cell(f["p_value"], f["direction"]) if f else "-" for f in found),
            ])  # fmt: skip
    for name in next(iter(groups.values()))["usual"]:
        cells = [cell(each["usual"][name]) for each in groups.values()]
        rows.append([f"*by itself: {name}*", *cells])
    return grid(["audit", *groups], rows)
