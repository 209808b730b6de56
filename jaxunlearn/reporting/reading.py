"""What the record of an audit says, as facts: who was flagged, by which audit, and what follows.

    flagged(row, audit)  <=>  the audit is among those that the finding names,
                              or, where a row has no finding, p(row, audit) <= level

The record is the plain data of `audit.json`. The text table and the front page (`front`) and the
page of each row (`pages`) read it through this module and `controls`, so that they can never
disagree. Nothing here knows the name of an audit or of a method: titles and words are those of the
record.

| in the record                            | read as                                             |
|------------------------------------------|-----------------------------------------------------|
| status "not informative: ..."            | the reason; nothing is shown as a result            |
| a verdict that is not known here         | "caution" if anything was flagged, else "unknown"   |
| no finding, or None for a number         | "undefined", never 0 and never a pass               |
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxunlearn.audit.verdict import Verdict

from .glossary import FAMILIES
from .tables import UNDEFINED

Record = Mapping[str, Any]

# verdict -> what a decision-maker may conclude; the words of each level are in `glossary.LIGHTS`
_LIGHT_OF = {
    Verdict.INDISTINGUISHABLE.value: "pass",
    Verdict.RECIPE_NOISE.value: "caution",
    Verdict.OVER_FORGOTTEN.value: "caution",
    Verdict.ELSEWHERE.value: "caution",
    "differs from retraining": "caution",
    Verdict.UNDER_FORGOTTEN.value: "fail",
    "forgotten traces remain": "fail",
    "came back": "fail",
    Verdict.COLLAPSED.value: "fail",
    Verdict.NOT_INFORMATIVE.value: "unknown",
    Verdict.NOTHING_TO_FORGET.value: "unknown",
}


def checked(audit: Record) -> Record:
    """The record itself, once it is known to be one that can be shown.

    Raises:
        ValueError: another kind or schema of record, a row that speaks of an audit, measure or
            curve that the record does not describe, a curve of another length than its x.
    """
    kind, schema = audit.get("kind"), audit.get("schema")
    if kind != "jaxunlearn audit":
        raise ValueError(
            f"audit record: expected the kind 'jaxunlearn audit', got {kind!r}. "
            "Give the object of audit.json, not that of results.json."
        )
    if schema != 1:
        raise ValueError(
            f"audit record: expected schema 1, got {schema!r}. "
            "Make the audit again with this version: jaxunlearn audit --run DIR."
        )
    for row in audit["rows"]:
        for field, described in (
            ("evidence", "audits"),
            ("measures", "measures"),
            ("curves", "curves"),
        ):
            unknown = [key for key in row.get(field) or {} if key not in audit[described]]
            if unknown:
                raise ValueError(
                    f"audit record: row {row['label']!r} has {field} of {unknown[0]!r}, which "
                    f"{described!r} does not describe. Add its title and words there."
                )
        for key, curve in (row.get("curves") or {}).items():
            points = len(audit["curves"][key]["x"])
            for part, values in (curve or {}).items():
                if values is not None and len(values) != points:
                    raise ValueError(
                        f"audit record: {part!r} of the curve {key!r} of row {row['label']!r}: "
                        f"expected {points} numbers, one for each x, got {len(values)}."
                    )
    return audit


def not_informative(audit: Record) -> str | None:
    """Why the audit says nothing, or None where it says something."""
    kind, _, reason = str(audit["status"]).partition(": ")
    return (reason or "no reason was recorded") if kind == "not informative" else None


def finite(value: Any) -> float | None:
    """The number; None for None, NaN and infinities.

    Example:
        >>> finite(0.5), finite(float("nan")), finite(None)
        (0.5, None, None)
    """
    return float(value) if value is not None and math.isfinite(value) else None


def summary(found: Mapping[str, Any] | None) -> dict[str, float | None]:
    """value, low and high of a summary that may lack any of them."""
    return {key: finite((found or {}).get(key)) for key in ("value", "low", "high")}


def rounded(value: float, digits: int) -> float:
    """The number with so many digits, and without the sign of a zero.

    Example:
        >>> rounded(-0.3, 0), rounded(0.126, 2)
        (0.0, 0.13)
    """
    return round(value, digits) + 0.0


def probability(p: float | None) -> str:
    """A p-value with two significant digits; a p-value is never 0.

    Example:
        >>> [probability(p) for p in (0.31, 0.0512, 0.0005, 1.0, 0, None)]
        ['0.31', '0.051', '0.0005', '1.00', '< 0.0001', 'undefined']
    """
    value = finite(p)
    if value is None:
        return UNDEFINED
    if value < 1e-4:
        return "< 0.0001"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def flagged(audit: Record, row: Record, key: str) -> bool | None:
    """Whether the audit tells the row's models from the oracles; None where that is undefined."""
    finding = row.get("finding")
    if finding is not None and key in (finding.get("flagged") or ()):
        return True
    p = finite(((row.get("evidence") or {}).get(key) or {}).get("p_value"))
    if p is None:
        return None
    return False if finding is not None else p <= level(audit)


def told_apart(audit: Record, row: Record) -> list[str]:
    """Titles of the audits that tell the row's models from the oracles."""
    return titles(audit, [key for key in audit["audits"] if flagged(audit, row, key)])


def judged(audit: Record, row: Record) -> int:
    """How many audits could say anything of a row."""
    return sum(flagged(audit, row, key) is not None for key in audit["audits"])


def came_back(row: Record, key: str) -> bool:
    """Whether what was forgotten came back under this audit."""
    return key in ((row.get("finding") or {}).get("came_back") or ())


def level(audit: Record) -> float:
    """The share of retrainings that the audit calls different by chance; 0.05 where unsaid."""
    found = finite(audit["settings"].get("level"))
    return 0.05 if found is None else found


def light(row: Record) -> str:
    """What the finding of a row supports: "pass", "caution", "fail" or "unknown"."""
    finding = row.get("finding") or {}
    known = _LIGHT_OF.get(finding.get("verdict", ""))
    if known == "pass" and (finding.get("flagged") or finding.get("came_back")):
        return "caution"  # a verdict and its reasons that contradict each other are no pass
    return known or ("caution" if finding.get("flagged") else "unknown")


def verdict(row: Record) -> str:
    """The words of the verdict; "undefined" without one."""
    return (row.get("finding") or {}).get("verdict") or UNDEFINED


def outcome(row: Record) -> str:
    """ "flagged" or "not flagged", by any audit; "undefined" without a finding."""
    finding = row.get("finding")
    if finding is None:
        return UNDEFINED
    return "flagged" if finding.get("flagged") else "not flagged"


def rows_of(audit: Record, *roles: str) -> list[Record]:
    """The rows of these roles, in their order."""
    return [row for row in audit["rows"] if row["role"] in roles]


def by_family(described: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Keys of audits, measures or curves by family, in the order of the record."""
    families: dict[str, list[str]] = {}
    for key, entry in described.items():
        families.setdefault(entry.get("family") or "", []).append(key)
    return families


def listed(names: Iterable[str], most: int = 6) -> str:
    """Names in a row, or how many there are.

    Example:
        >>> listed(["a", "b"]), listed("abcdefgh", most=3), listed([])
        ('a, b', 'a, b, c and 5 more', 'none')
    """
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return (", ".join(found[:most]) + more) or "none"


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "oracle"), counted(4, "oracle")
        ('1 oracle', '4 oracles')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"


def headline(audit: Record) -> str:
    """The verdicts of all methods in one line."""
    asked = f"Asked to forget {audit['task']['words']} of {audit['task']['source']}."
    reason = not_informative(audit)
    if reason:
        return f"{asked} This audit says nothing: {reason}."
    groups: dict[str, list[str]] = {}
    for row in rows_of(audit, "method"):
        groups.setdefault(verdict(row), []).append(row["label"])
    if not groups:
        return f"{asked} No method was audited."
    said = (f"{words[:1].upper()}{words[1:]}: {listed(n, 4)}." for words, n in groups.items())
    return " ".join([asked, *said])


def family_words(family: str) -> tuple[str, str]:
    """Title and question of a family; its own name where it has none."""
    return FAMILIES.get(family, (family[:1].upper() + family[1:] or "Other audits", ""))


def sentence(row: Record) -> str:
    """The words of a finding, without its verdict in front; "undefined" without one."""
    words = (row.get("finding") or {}).get("words") or "Undefined: there is no finding."
    words = words.removeprefix(f"{verdict(row)}: ")
    return words[:1].upper() + words[1:]


def titles(audit: Record, keys: Sequence[str] | None) -> list[str]:
    """Titles of audits, in the order of the record."""
    return [told["title"] for key, told in audit["audits"].items() if key in (keys or ())]
