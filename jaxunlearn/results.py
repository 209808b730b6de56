"""What a comparison found: every metric of every model, its floor, and a verdict, as plain data.

`assemble` turns the outputs of all groups of models into `Results`; `write` and `read` move them to and from
`results.json`. The file is data only and carries its schema version: a newer one is refused, never guessed at. Undefined
numbers are null, never 0 and never NaN.

    record = {schema, status, headline, task, settings, versions, metrics, parts, floors, floor, rows, curves, notes}

| key      | holds                                                                                        |
|----------|----------------------------------------------------------------------------------------------|
| status   | "informative", "nothing to forget", or "not informative: ..."                                 |
| parts    | part -> number of examples, words                                                             |
| floors   | part -> recipe floor of the energy: value, recipe, resolution                                 |
| floor    | metric -> part -> the metric between two independent halves of the oracles                     |
| rows     | one per group: label, role, scores (metric -> part -> summary), membership, verdict, seconds   |
| curves   | label -> mean ROC of the loss attack                                                          |

A summary is {"value", "low", "high", "per_model"}: mean over models, its bootstrap interval, and each model's number.
"""

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn import audit
from jaxunlearn.data.tasks import Task

SCHEMA = 1
VERDICT_PARTS = audit.PARTS
_AGREEMENT: dict[str, Callable] = {
    "jensen_shannon": audit.jensen_shannon,
    "activation_distance": audit.activation_distance,
    "prediction_agreement": audit.prediction_agreement,
}
_ATTACK_SCORES = ("loss", "confidence", "entropy")
_ROC_GRID = np.linspace(0, 1, 51)


class Part(NamedTuple):
    """One part of a task as it is evaluated."""

    columns: dict[str, np.ndarray]
    words: str
    available: int  # rows of the part; more than evaluated if it was thinned


class Group(NamedTuple):
    """One ensemble and its outputs."""

    label: str
    role: str  # original, oracle, recipe, method
    logits: dict[str, np.ndarray]  # part -> (M, n, C)
    compile: float  # seconds
    run: float  # seconds, all models of the group together; 0 when it came from the cache
    facts: dict[str, Any]


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


_WORDS = {
    "forget": ("train", "forget", "training examples to forget"),
    "retain": ("train", "retain", "retained training examples"),
    "adjacent": ("train", "adjacent", "retained training examples that resemble them"),
    "test": ("test", "retain", "test examples of other kinds"),
    "forget_test": ("test", "forget", "test examples of the forgotten kind"),
    "adjacent_test": ("test", "adjacent", "test examples that resemble them"),
}


def parts_of(task: Task, rows: int, seed: int) -> dict[str, Part]:
    """The parts that are evaluated, each thinned to at most `rows` examples by a fixed random choice."""
    found = {}
    for part, (split, name, words) in _WORDS.items():
        if name not in task.parts(split):
            continue
        columns = task.columns(split, name)
        count = len(columns["y"])
        if count == 0 and part != "forget":
            continue
        if part == "test" and "forget" not in task.parts("test"):
            words = "test examples"
        if count > rows:
            keep = np.sort(np.random.default_rng([seed, len(part)]).permutation(count)[:rows])
            columns = {column: values[keep] for column, values in columns.items()}
        found[part] = Part(columns, words, count)
    return found


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
      groups: original, oracle, recipes, methods, in this order (no oracle if there is nothing to forget).
      parts: from `parts_of`; the outputs of the groups are on these.
      notes: warnings to be shown.
      versions, seconds: for the record.
    """
    labels = {part: entry.columns["y"] for part, entry in parts.items()}
    oracle = next((g for g in groups if g.role == "oracle"), None)
    judged = _Judge(groups, labels, task.source.num_classes, settings) if oracle else None
    metrics = _Metrics(oracle, labels, parts, settings)
    retrain = next((g.run for g in groups if g.facts.get("method") == "retrain"), None)
    rows = [_row(g, metrics, judged, retrain) for g in groups]
    status = _status(rows, judged)
    duplicates = task.near_duplicates()
    record = {
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
            "classes": task.source.num_classes,
            "near_duplicates": duplicates._asdict(),
        },
        "settings": dataclasses.asdict(settings),
        "versions": dict(versions),
        "metrics": dict(audit.METRIC_VERSIONS),
        "seconds": seconds,
        "parts": {
            part: {"examples": len(labels[part]), "available": p.available, "words": p.words}
            for part, p in parts.items()
        },
        "floors": judged.floors if judged else {},
        "floor": metrics.floor(),
        "rows": rows,
        "curves": {g.label: metrics.curve(g) for g in groups if g.role != "recipe"},
        "notes": [*task.notes, *notes, *_duplicate_note(duplicates)],
    }
    return Results(plain(record))


def _duplicate_note(duplicates: Any) -> list[str]:
    count = sum(value for name, value in duplicates._asdict().items() if name != "radius")
    if not count:
        return []
    return [f"{count} retained or test rows repeat a forget row or nearly do: they cap what can be forgotten."]


def _row(group: Group, metrics: "_Metrics", judged: "_Judge | None", retrain: float | None) -> dict:
    judgement = judged(group) if judged else audit.judge({}, audit.Groups([], [], []), seed=0)
    return {
        "label": group.label,
        "role": group.role,
        **group.facts,
        "models": len(next(iter(group.logits.values()))),
        "scores": metrics.scores(group),
        "tug_of_war": metrics.tug_of_war(group),
        "membership": metrics.membership(group),
        "verdict": judgement,
        "seconds": {
            "compile": group.compile,
            "run": group.run,
            "of_retraining": group.run / retrain if retrain and group.role == "method" else None,
        },
    }


class _Judge:
    """Verdicts of all groups against one set of oracles: the matrices are computed once."""

    def __init__(self, groups: list[Group], labels: Mapping, classes: int, settings: Any):
        present = [p for p in VERDICT_PARTS if p in labels and len(labels[p])]
        stacked = {p: np.concatenate([g.logits[p] for g in groups]) for p in present}
        self.matrices = {p: audit.hellinger_matrix(z) for p, z in stacked.items()}
        scores = {p: audit.part_scores(z, labels[p]) for p, z in stacked.items()}
        self.accuracies = {p: s.accuracy for p, s in scores.items() if s is not None}
        ends = np.cumsum([0, *(len(g.logits["forget"]) for g in groups)])
        self.indices = {g.label: range(a, b) for g, a, b in zip(groups, ends, ends[1:], strict=False)}
        by_role = {role: [self.indices[g.label] for g in groups if g.role == role] for role in
                   ("original", "oracle", "recipe")}  # fmt: skip
        self.original, self.oracle, self.recipes = by_role["original"][0], by_role["oracle"][0], by_role["recipe"]
        self.chance = 1 / classes
        self.settings = settings
        raw = audit.recipe_floor(
            self.matrices, self.oracle, self.recipes, permutations=settings.permutations, seed=settings.seed
        )
        self.raw_floors = raw
        self.floors = {part: floor._asdict() for part, floor in raw.items()}

    def __call__(self, group: Group) -> dict[str, Any] | None:
        if group.role == "oracle":
            return None
        own = self.indices[group.label]
        if group.role == "recipe":
            energies = {
                part: audit.energy(matrix, own, self.oracle) for part, matrix in self.matrices.items()
            }
            return {"verdict": "reference", "words": "a recipe that nobody would call different", "energies": energies}
        found = audit.judge(
            self.matrices,
            audit.Groups(self.original, self.oracle, own, self.recipes),
            accuracies=self.accuracies,
            chance=self.chance,
            paired=group.facts.get("method") != "retrain",
            floors=self.raw_floors,
            permutations=self.settings.permutations,
            resamples=self.settings.resamples,
            seed=self.settings.seed,
        )
        record = found._asdict()
        record["verdict"] = found.verdict.value
        del record["floors"]
        return record


class _Metrics:
    """The classical metrics of a group, and their floors between two halves of the oracles."""

    def __init__(self, oracle: Group | None, labels: Mapping, parts: Iterable[str], settings: Any):
        self.oracle, self.labels, self.settings = oracle, labels, settings
        self.present = [p for p in parts if len(labels[p])]
        self.margins = {p: audit.margins(oracle.logits[p], labels[p]) for p in self.present} if oracle else {}

    def floor(self) -> dict[str, Any]:
        """The same metrics of one half of the oracles, with the other half as the reference."""
        if self.oracle is None:
            return {}
        first, second = _halves(self.oracle)
        other = _Metrics(second, self.labels, self.present, self.settings)
        return other.scores(first) | {"tug_of_war": other.tug_of_war(first)}

    def summary(self, values: Any) -> dict[str, Any] | None:
        if values is None:
            return None
        values = np.asarray(values, np.float64)
        rng = np.random.default_rng(self.settings.seed)
        interval = audit.mean_interval(values, rng=rng, resamples=self.settings.resamples)
        ends = {"value": None, "low": None, "high": None} if interval is None else interval._asdict()
        return {k: ends[k] for k in ("value", "low", "high")} | {"per_model": values.tolist()}

    def scores(self, group: Group) -> dict[str, Any]:
        """metric -> part -> summary."""
        found: dict[str, Any] = {}
        for part in self.present:
            logits = group.logits[part]
            plain_scores = audit.part_scores(logits, self.labels[part])
            if plain_scores is not None:
                found.setdefault("loss", {})[part] = self.summary(plain_scores.loss)
                found.setdefault("accuracy", {})[part] = self.summary(plain_scores.accuracy)
            if self.oracle is None or group is self.oracle:
                continue
            for name, measure in _AGREEMENT.items():
                values = audit.agreement(measure, logits, self.oracle.logits[part])
                found.setdefault(name, {})[part] = self.summary(values)
            found.setdefault("klom", {})[part] = self._klom(group, part)
        return found

    def _klom(self, group: Group, part: str) -> dict[str, Any] | None:
        own = audit.margins(group.logits[part], self.labels[part])
        try:
            found = audit.klom_summary(audit.klom(self.margins[part], own))
        except ValueError:  # a model without finite margins has no KLoM
            return None
        return None if found is None else {"value": found.mean, "quantile95": found.quantile95}

    def tug_of_war(self, group: Group) -> dict[str, Any] | None:
        if self.oracle is None:
            return None
        parts = [p for p in ("forget", "retain", "test") if p in self.present]
        own, reference = (
            {p: s.accuracy if (s := audit.part_scores(g.logits[p], self.labels[p])) else None for p in parts}
            for g in (group, self.oracle)
        )
        return self.summary(audit.tug_of_war(own, reference))

    def membership(self, group: Group) -> dict[str, Any] | None:
        """score -> {auc, accuracy, tpr}: forgotten training examples against held-out ones of the same kind."""
        outsiders = self._outsiders()
        if outsiders is None:
            return None
        found = {}
        for score in _ATTACK_SCORES:
            try:
                attack = audit.attack(
                    group.logits["forget"], self.labels["forget"], group.logits[outsiders],
                    self.labels[outsiders], score=score, rng=np.random.default_rng(self.settings.seed),
                )  # fmt: skip
            except audit.TooFew as error:
                return {"undefined": str(error)}
            found[score] = None if attack is None else {k: self.summary(v) for k, v in attack._asdict().items()}
        return found

    def _outsiders(self) -> str | None:
        """Held-out examples of the forgotten kind, or all test examples when all kinds are forgotten from."""
        return next((p for p in ("forget_test", "test") if p in self.present and "forget" in self.present), None)

    def curve(self, group: Group) -> dict[str, list[float]] | None:
        """Mean over models of the ROC of the loss attack, on a common grid of false positive rates."""
        outsiders = self._outsiders()
        if outsiders is None:
            return None
        members, others = (
            audit.attack_signal(group.logits[p], self.labels[p], score="loss") for p in ("forget", outsiders)
        )
        rates = []
        for m, o in zip(members, others, strict=True):
            if np.isfinite(m).all() and np.isfinite(o).all():
                curve = audit.roc_curve(m, o)
                rates.append(np.interp(_ROC_GRID, curve.fpr, curve.tpr))
        if not rates:
            return None
        return {"fpr": _ROC_GRID.tolist(), "tpr": np.mean(rates, axis=0).tolist()}


def _halves(oracle: Group) -> tuple[Group, Group]:
    pairs = {part: audit.halves(logits) for part, logits in oracle.logits.items()}
    return tuple(
        oracle._replace(logits={part: pair[i] for part, pair in pairs.items()}) for i in (0, 1)
    )  # type: ignore[return-value]


def _status(rows: list[dict], judged: _Judge | None) -> str:
    if judged is None:
        return "nothing to forget"
    verdicts = [row["verdict"] for row in rows if row["role"] == "original"]
    found = verdicts[0]
    return f"not informative: {found['words']}" if found["verdict"] == "not informative" else "informative"


_GOOD = ("indistinguishable from retraining", "within recipe noise")


def _headline(status: str, rows: list[dict], task: Task) -> str:
    """What was found, in one sentence."""
    if status != "informative":
        reasons = {"nothing to forget": "The request is empty: there is nothing to forget."}
        return reasons.get(status, f"This comparison says nothing: {status.removeprefix('not informative: ')}.")
    tried = [row for row in rows if row["role"] == "method" and row["method"] != "retrain"]
    good = [row["label"] for row in tried if row["verdict"]["verdict"] in _GOOD]
    closest = max(
        (row for row in tried if row["verdict"]["gap_closed"] and row["verdict"]["verdict"] != "collapsed"),
        key=lambda row: row["verdict"]["gap_closed"].value,
        default=None,
    )
    ask = f"Asked to forget {task.words} of {task.source.name}"
    if good:
        return f"{ask}, {_listed(good)} cannot be told from true retraining beyond recipe noise."
    if closest is None:
        return f"{ask}, no method gave usable models."
    verdict = closest["verdict"]
    return (
        f"{ask}, none of {len(tried)} approximate methods matches true retraining; the nearest on forget data is "
        f"{closest['label']}, which closes {100 * verdict['gap_closed'].value:.0f} % of the gap and is {verdict['verdict']}."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def plain(value: Any) -> Any:
    """`value` as JSON data: tuples and arrays to lists, named tuples to objects, non-finite numbers to null."""
    if hasattr(value, "_asdict"):
        return {k: plain(v) for k, v in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__jax_array__"):
        return plain(np.asarray(value).tolist())
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"results: {type(value).__name__} is not plain data.")


def write(results: Results, path: Path) -> Path:
    """Writes `results.json` whole or not at all: a temporary sibling, then a rename."""
    text = json.dumps(results.record, indent=1, allow_nan=False)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def read(path: Path) -> Results:
    """The results in a `results.json`.

    Raises:
      ValueError: not JSON, not a comparison, or of a newer schema than this version understands.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a results file ({error}).") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(schema, int) or record.get("kind") != "jaxunlearn compare":
        raise ValueError(f"{path}: not the results of a jaxunlearn comparison (no schema number).")
    if schema > SCHEMA:
        raise ValueError(
            f"{path}: schema {schema} is newer than {SCHEMA}, the newest this version reads. Upgrade jaxunlearn."
        )
    return Results(record)
