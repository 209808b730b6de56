"""What a comparison found: every metric of every model, its floor, and a verdict, as plain data.

`assemble` turns the outputs of all groups of models into `Results`; `write` and `read` move them to
and from `results.json`. The file is data only and carries its schema version: a newer one is
refused, never guessed at. Undefined numbers are null, never 0 and never NaN.

    record = {schema, status, headline, task, settings, versions, metrics, parts, floors, floor,
    rows, curves, notes}

| key    | holds                                                                                 |
|--------|---------------------------------------------------------------------------------------|
| status | "informative", "nothing to forget", or "not informative: ..."                         |
| parts  | part -> number of examples, words                                                     |
| floors | part -> recipe floor of the energy: value, recipe, resolution                         |
| floor  | metric -> part -> the metric between two independent halves of the oracles            |
| rows   | one per group: label, role, scores (metric -> part -> summary), membership, verdict,  |
|        | seconds                                                                               |
| curves | label -> mean ROC of the loss attack                                                  |

A record of recommenders (`jaxunlearn.compare_ratings`) or of a regression has three fields more,
`column`, `attacks` and `whole`, which `jaxunlearn.reporting.views` reads. Schema 2 added them.

A summary is {"value", "low", "high", "per_model"}: mean over models, its bootstrap interval, and
each model's number. KLoM is a number of the whole group: its interval is over examples, and it has
no number per model.
"""

import dataclasses
import enum
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxunlearn import audit, scoring_regression
from jaxunlearn.data.tasks import Task
from jaxunlearn.publishing import publish_text
from jaxunlearn.scoring import Group as Group
from jaxunlearn.scoring import Judge, Metrics, judge_classifiers
from jaxunlearn.scoring import Part as Part
from jaxunlearn.scoring import parts_of as parts_of

SCHEMA = 2


@dataclasses.dataclass(frozen=True)
class Results:
    """A comparison as plain data; see the module."""

    record: dict[str, Any]

    @property
    def status(self) -> str:
        return self.record["status"]

    @property
    def informative(self) -> bool:
        return not self.status.startswith("not informative")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.record["rows"]

    def row(self, label: str) -> dict[str, Any]:
        """The row of that label."""
        return next(row for row in self.rows if row["label"] == label)


def assemble(
    task: Task,
    settings: Any,
    groups: list[Group],
    parts: Mapping[str, Part],
    notes: list[str],
    versions: Mapping[str, str],
    seconds: float,
) -> Results:
    """All metrics, floors and verdicts of a comparison.

    Args:
      task, settings: what was compared, for the record.
      groups: original, oracle, recipes, methods, in this order (no oracle if there is nothing to
        forget).
      parts: from `parts_of`; the outputs of the groups are on these.
      notes: warnings to be shown.
      versions, seconds: for the record.
    """
    labels = {part: entry.columns["y"] for part, entry in parts.items()}
    oracle = next((g for g in groups if g.role == "oracle"), None)
    target, duplicates = task.source.target, task.near_duplicates()
    facts: dict[str, Any] = {"near_duplicates": duplicates._asdict()}
    if target is None:
        classes = task.source.num_classes
        judged = judge_classifiers(groups, labels, classes, settings) if oracle else None
        metrics = Metrics(oracle, labels, parts, settings)
        facts |= {"classes": classes}
        shown = {}
    else:
        unit = scoring_regression.deviation_of(task.source)
        judge = scoring_regression.judge_regression
        judged = judge(groups, parts, unit, settings) if oracle else None
        metrics = scoring_regression.RegressionMetrics(oracle, parts, target, unit, settings)
        facts |= {"target": target._asdict()}
        shown = scoring_regression.shown(target)
    found = gather(task, settings, groups, judged, metrics, facts, notes, versions, seconds)
    found["notes"] += _duplicate_note(duplicates)
    found["parts"] = {
        part: {"examples": len(labels[part]), "available": p.available, "words": p.words}
        for part, p in parts.items()
    }
    return Results(plain(found | shown))


def gather(
    task: Any,
    settings: Any,
    groups: Sequence[Any],
    judged: Judge | None,
    metrics: Any,
    facts: Mapping[str, Any],
    notes: Sequence[str],
    versions: Mapping[str, str],
    seconds: float,
) -> dict[str, Any]:
    """What every record holds, whatever the models are; all but `parts`.

    Args:
      groups: as for `assemble`; each has `label`, `role`, `models`, `compile`, `run`, `facts`.
      judged: verdicts; None if there is nothing to forget.
      metrics: has `scores`, `whole`, `membership` and `curve` of a group, and `floor()`.
      facts: more about the task.
    """
    retrain = next((g.run for g in groups if g.facts.get("method") == "retrain"), None)
    rows = [_row(g, metrics, judged, retrain) for g in groups]
    status = _status(rows, judged)
    return {
        "schema": SCHEMA,
        "kind": "jaxunlearn compare",
        "status": status,
        "headline": _headline(status, rows, task),
        "task": {
            "name": task.name,
            "words": task.words,
            "description": task.describe(),
            "source": task.source.name,
            "digest": task.digest,
            "source_digest": task.source.digest,
            **facts,
        },
        "settings": dataclasses.asdict(settings),
        "versions": dict(versions),
        "metrics": dict(audit.METRIC_VERSIONS),
        "seconds": seconds,
        "floors": (judged.floors if judged else None) or {},
        "floor": metrics.floor(),
        "rows": rows,
        "curves": {g.label: metrics.curve(g) for g in groups if g.role != "recipe"},
        "notes": [*getattr(task, "notes", ()), *notes],
    }


def _duplicate_note(duplicates: Any) -> list[str]:
    count = sum(value for name, value in duplicates._asdict().items() if name != "radius")
    if not count:
        return []
    return [
        f"{count} retained or test rows repeat a forget row or nearly do: "
        "they cap what can be forgotten."
    ]


def _row(group: Any, metrics: Any, judged: Judge | None, retrain: float | None) -> dict:
    judgement = judged(group) if judged else audit.judge({}, audit.Groups([], [], []), seed=0)
    return {
        "label": group.label,
        "role": group.role,
        **group.facts,
        "models": group.models,
        "scores": metrics.scores(group),
        **metrics.whole(group),
        "membership": metrics.membership(group),
        "verdict": judgement,
        "seconds": {
            "compile": group.compile,
            "run": group.run,
            "of_retraining": group.run / retrain if retrain and group.role == "method" else None,
        },
    }


def _status(rows: list[dict], judged: Judge | None) -> str:
    if judged is None:
        return "nothing to forget"
    found = next(row["verdict"] for row in rows if row["role"] == "original")
    return found["words"] if found["verdict"] == "not informative" else "informative"


_GOOD = ("indistinguishable from retraining", "within recipe noise")


def _headline(status: str, rows: list[dict], task: Any) -> str:
    """What was found, in one sentence."""
    if status != "informative":
        reasons = {"nothing to forget": "The request is empty: there is nothing to forget."}
        return reasons.get(
            status, f"This comparison says nothing: {status.removeprefix('not informative: ')}."
        )
    tried = [row for row in rows if row["role"] == "method" and row["method"] != "retrain"]
    good = [row["label"] for row in tried if row["verdict"]["verdict"] in _GOOD]
    closest = max(
        (
            row
            for row in tried
            if row["verdict"]["verdict"] != "collapsed"
            and row["verdict"]["gap_closed"]
            and row["verdict"]["gap_closed"].value > 0
        ),
        key=lambda row: row["verdict"]["gap_closed"].value,
        default=None,
    )
    ask = f"Asked to forget {task.words} of {task.source.name}"
    if not tried:
        return f"{ask}; no approximate method was tried."
    if good:
        return f"{ask}, {_listed(good)} cannot be told from true retraining beyond recipe noise."
    if closest is None:
        return f"{ask}, no method came nearer to true retraining than doing nothing."
    verdict = closest["verdict"]
    cost = verdict["collateral"]
    price = "" if cost is None else f" at {cost.value:.2g} recipe floors of collateral"
    return (
        f"{ask}, none of {len(tried)} approximate methods matches true retraining; the nearest on "
        f"forget data is {closest['label']}, which closes "
        f"{100 * verdict['gap_closed'].value:.0f} % of the gap{price} "
        f"(verdict: {verdict['verdict']})."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def plain(value: Any) -> Any:
    """`value` as JSON data: tuples and arrays to lists, named tuples to objects, non-finite numbers
    to null."""
    if hasattr(value, "_asdict"):
        return {k: plain(v) for k, v in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(v) for v in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"results: {type(value).__name__} is not plain data.")


def write(results: Results, path: Path) -> Path:
    """Writes `results.json` whole or not at all: a temporary sibling, then a rename.

    A hash of every field is stored with it, so that `read` can tell what was edited since.
    """
    return publish_text(path, sealed(results.record))


def read(path: Path) -> Results:
    """The results in a `results.json`.

    Raises:
      ValueError: not JSON, not a comparison, of a newer schema than this version understands, or
        edited since it was written; the field is named.
    """
    words = "the results of a jaxunlearn comparison"
    return Results(unsealed(path, kind="jaxunlearn compare", schema=SCHEMA, words=words))


def sealed(record: Mapping[str, Any]) -> str:
    """A record as JSON, with a hash of each of its fields."""
    return json.dumps(dict(record) | {"hashes": _hashes(record)}, indent=1, allow_nan=False)


def unsealed(path: Path, *, kind: str, schema: int, words: str) -> dict[str, Any]:
    """The record in a file that `sealed` made.

    Args:
      path: of the file.
      kind: what its field `kind` must say.
      schema: the newest that is understood.
      words: what it is, for messages.

    Raises:
      ValueError: not JSON, not of the kind, newer, or edited since; the field is named.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a results file ({error}).") from None
    found_schema = record.get("schema") if isinstance(record, dict) else None
    if type(found_schema) is not int or record.get("kind") != kind:
        raise ValueError(f"{path}: not {words} (no schema number).")
    if found_schema > schema:
        raise ValueError(
            f"{path}: schema {found_schema} is newer than {schema}, the newest this version "
            "reads. Upgrade jaxunlearn."
        )
    stored = record.pop("hashes", None)
    found = _hashes(record)
    stored = stored if isinstance(stored, dict) else {}
    for field in sorted(stored.keys() | found.keys()):
        if stored.get(field) != found.get(field):
            raise ValueError(
                f"{path}: '{field}' is not what was written: the file was edited, or a field added "
                "or removed. Run the comparison again."
            )
    return record


def _hashes(record: Mapping[str, Any]) -> dict[str, str]:
    """field -> sha256 of its canonical JSON."""
    texts = {field: json.dumps(value, sort_keys=True) for field, value in record.items()}
    return {field: hashlib.sha256(text.encode()).hexdigest() for field, text in texts.items()}
