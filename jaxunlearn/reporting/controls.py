"""The planted models of an audit: rows of which it is known beforehand what must be said of them.

    right  <=>  (some audit flagged the row) == (the row must be flagged)

They audit the audits: leftovers that are flagged show what the suite can see, a further retraining
that is not shows that it does not cry wolf. `noticeable` is how small a difference could have been
seen, which is what a row that was not flagged is worth.

| in the record                            | read as                                             |
|------------------------------------------|-----------------------------------------------------|
| a planted row without a finding          | neither right nor wrong: it was not judged          |
| an audit without a number for a row      | left out of the tally                               |
| no original, or an energy of it up to 0  | shares of its energy are undefined                  |
"""

from typing import NamedTuple

from .reading import Record, finite, flagged, outcome, rows_of


class Controls(NamedTuple):
    """How the planted models were judged."""

    right: list[Record]  # rows that were judged as they must be
    wrong: list[Record]
    unjudged: list[Record]


def planted(audit: Record) -> list[Record]:
    """The rows of which it is known beforehand what a trustworthy audit must say."""
    return [row for row in audit["rows"] if row.get("expected")]


def as_expected(row: Record) -> bool | None:
    """Whether a planted row was judged as it must be; None where it was not judged."""
    return None if row.get("finding") is None else outcome(row) == row["expected"]


def controls(audit: Record) -> Controls:
    """The planted rows by how they were judged."""
    sorted_out = Controls([], [], [])
    for row in planted(audit):
        held = as_expected(row)
        (sorted_out.unjudged if held is None else sorted_out[0 if held else 1]).append(row)
    return sorted_out


def noticed(audit: Record, key: str, expected: str) -> tuple[int, int]:
    """(flagged by this audit, judged by it) among the planted rows that must be `expected`."""
    found = [flagged(audit, row, key) for row in planted(audit) if row["expected"] == expected]
    return sum(each is True for each in found), sum(each is not None for each in found)


def smallest_share(audit: Record, row: Record, key: str) -> float | None:
    """The resolution of an audit on a row, as a share of the energy of the untouched original.

        resolution(row) / E(originals, oracles)

    An energy above the resolution stands out from sampling in 95 % of cases. 1 or more: the audit
    could not even have seen the original.

    Returns:
        The share; None where there is no original, or its energy is not positive.
    """
    ends = [
        finite(((each.get("evidence") or {}).get(key) or {}).get(name))
        for each, name in [
            (row, "resolution"),
            *((r, "energy") for r in rows_of(audit, "original")[:1]),
        ]
    ]
    if len(ends) < 2 or ends[0] is None or ends[1] is None or ends[1] <= 0:
        return None
    return ends[0] / ends[1]


def noticeable(audit: Record, key: str) -> float | None:
    """The smallest share that an audit could have noticed in this run.

    That of the planted rows that must not be flagged, since their models differ from the oracles
    by sampling alone; without any, the smallest over all rows.
    """
    innocent = [row for row in planted(audit) if row["expected"] == "not flagged"]
    for rows in (innocent, audit["rows"]):
        shares = [smallest_share(audit, row, key) for row in rows]
        known = [share for share in shares if share is not None]
        if known:
            return min(known)
    return None
