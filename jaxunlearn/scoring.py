"""Outputs of groups of models to numbers: the parts that are looked at, verdicts, classical metrics
and their floors.

`parts_of` says what is evaluated, `Judge` compares every group with the oracles, for classifiers
made by `judge_classifiers`, which computes the distance matrices once. `Metrics` computes loss,
accuracy, agreement, KLoM, tug-of-war and the simple membership attack, each beside the same metric
between two independent halves of the oracles.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn import audit
from jaxunlearn.data.tasks import Task

_AGREEMENT: dict[str, Callable] = {
    "jensen_shannon": audit.jensen_shannon,
    "activation_distance": audit.activation_distance,
    "prediction_agreement": audit.prediction_agreement,
}
_ATTACK_SCORES = ("loss", "confidence", "entropy")
_ROC_GRID = np.linspace(0, 1, 51)
_FROM_NOTHING = ("retrain", "blind_model")  # methods whose models have no original of their own


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

    @property
    def models(self) -> int:
        return len(next(iter(self.logits.values())))


_WORDS = {
    "forget": ("train", "forget", "training examples to forget"),
    "retain": ("train", "retain", "retained training examples"),
    "adjacent": ("train", "adjacent", "retained training examples that resemble them"),
    "remote": ("train", "remote", "retained training examples that do not"),
    "test": ("test", "retain", "test examples of other kinds"),
    "forget_test": ("test", "forget", "test examples of the forgotten kind"),
    "adjacent_test": ("test", "adjacent", "test examples that resemble them"),
}


def parts_of(task: Task, rows: int, seed: int) -> dict[str, Part]:
    """The parts that are evaluated, each thinned to at most `rows` examples by a fixed random
    choice."""
    found = {}
    for part, (split, name, words) in _WORDS.items():
        if ("adjacent" if name == "remote" else name) not in task.parts(split):
            continue
        columns = task.columns(split, name)
        count = len(columns["y"])
        if count == 0 and part != "forget":
            continue
        if part == "test" and "forget" not in task.parts("test"):
            words = "test examples"
        if count > rows:
            rng = np.random.default_rng([seed, zlib.crc32(part.encode())])
            keep = np.sort(rng.permutation(count)[:rows])
            columns = {column: values[keep] for column, values in columns.items()}
        found[part] = Part(columns, words, count)
    return found


def judge_classifiers(groups: list[Group], labels: Mapping, classes: int, settings: Any) -> "Judge":
    """`Judge` of models that give logits: Hellinger distances, accuracy, chance 1 / classes."""
    matrices: dict[str, np.ndarray] = {}
    accuracies: dict[str, np.ndarray] = {}
    for part in audit.PARTS:
        if part in labels and len(labels[part]):
            logits = np.concatenate([g.logits[part] for g in groups])
            matrix = audit.hellinger_matrix(logits)
            scores = audit.part_scores(logits, labels[part])
            assert matrix is not None and scores is not None
            matrices[part], accuracies[part] = matrix, scores.accuracy
    return Judge(groups, matrices, accuracies, 1 / classes, settings)


class Judge:
    """Verdicts of all groups against one set of oracles.

    Args:
      groups: in the order in which their models are numbered; each has `label`, `role`, `models`
        and `facts`.
      matrices: part -> (M, M) distances between all models of all groups.
      accuracies: part -> (M,) what the premises of the verdict call accuracy, 1 = perfect.
      chance: its value for a model that knows nothing.
      settings: seed, permutations and resamples.
    """

    def __init__(
        self,
        groups: Sequence[Any],
        matrices: dict[str, np.ndarray],
        accuracies: dict[str, np.ndarray],
        chance: float,
        settings: Any,
    ):
        self.matrices, self.accuracies = matrices, accuracies
        ends = np.cumsum([0, *(g.models for g in groups)])
        spans = zip(groups, ends[:-1], ends[1:], strict=True)
        self.indices = {g.label: range(first, last) for g, first, last in spans}
        self.original, self.oracle = (
            next(self.indices[g.label] for g in groups if g.role == role)
            for role in ("original", "oracle")
        )
        self.recipes = [self.indices[g.label] for g in groups if g.role == "recipe"]
        self.chance = chance
        self.settings = settings
        self.floors = self._floors()

    def _floors(self) -> dict[str, audit.Floor] | None:
        """Recipe floors; None where a reference model is not finite (then nothing is judged)."""
        reference = [*self.oracle, *(i for recipe in self.recipes for i in recipe)]
        if not all(
            np.isfinite(m[np.ix_(reference, reference)]).all() for m in self.matrices.values()
        ):
            return None
        return audit.recipe_floor(
            self.matrices,
            self.oracle,
            self.recipes,
            permutations=self.settings.permutations,
            seed=self.settings.seed,
        )

    def __call__(self, group: Any) -> dict[str, Any] | None:
        if group.role == "oracle":
            return None
        own = self.indices[group.label]
        if group.role == "recipe":
            energies = {
                part: audit.energy(matrix, own, self.oracle)
                for part, matrix in self.matrices.items()
            }
            return {
                "verdict": "reference",
                "words": "a recipe that nobody would call different",
                "energies": energies,
            }
        found = audit.judge(
            self.matrices,
            audit.Groups(self.original, self.oracle, own, self.recipes),
            accuracies=self.accuracies,
            chance=self.chance,
            paired=group.facts.get("paired", group.facts.get("method") not in _FROM_NOTHING),
            floors=self.floors,
            permutations=self.settings.permutations,
            resamples=self.settings.resamples,
            seed=self.settings.seed,
        )
        record = found._asdict()
        record["verdict"] = found.verdict.value
        del record["floors"]
        return record


def summary(values: Any, settings: Any) -> dict[str, Any] | None:
    """{"value", "low", "high", "per_model"} of one number per model; None of None."""
    if values is None:
        return None
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(settings.seed)
    interval = audit.mean_interval(values, rng=rng, resamples=settings.resamples)
    ends = {"value": None, "low": None, "high": None} if interval is None else interval._asdict()
    return {k: ends[k] for k in ("value", "low", "high")} | {"per_model": values.tolist()}


class Metrics:
    """The classical metrics of a group, and their floors between two halves of the oracles."""

    def __init__(self, oracle: Group | None, labels: Mapping, parts: Iterable[str], settings: Any):
        self.oracle, self.labels, self.settings = oracle, labels, settings
        self.present = [p for p in parts if len(labels[p])]
        self.margins = (
            {p: audit.margins(oracle.logits[p], labels[p]) for p in self.present} if oracle else {}
        )

    def floor(self) -> dict[str, Any]:
        """The same metrics of one half of the oracles, with the other half as the reference."""
        if self.oracle is None:
            return {}
        first, second = _halves(self.oracle)
        other = Metrics(second, self.labels, self.present, self.settings)
        return other.scores(first) | other.whole(first)

    def summary(self, values: Any) -> dict[str, Any] | None:
        return summary(values, self.settings)

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
        """KLoM of the whole group: its interval is over examples, since one model has no KLoM."""
        own = audit.margins(group.logits[part], self.labels[part])
        try:
            values = audit.klom(self.margins[part], own)
        except ValueError:  # a model without finite margins has no KLoM
            return None
        found = audit.klom_summary(values)
        if values is None or found is None:
            return None
        rng = np.random.default_rng(self.settings.seed)
        interval = audit.mean_interval(values, rng=rng, resamples=self.settings.resamples)
        assert interval is not None
        ends = {"low": interval.low, "high": interval.high}
        return {"value": found.mean, **ends, "quantile95": found.quantile95}

    def whole(self, group: Group) -> dict[str, Any]:
        """Metrics that have one value for all parts together."""
        return {"tug_of_war": self.tug_of_war(group)}

    def tug_of_war(self, group: Group) -> dict[str, Any] | None:
        if self.oracle is None:
            return None
        parts = [p for p in ("forget", "retain", "test") if p in self.present]
        own, reference = (
            {
                p: s.accuracy if (s := audit.part_scores(g.logits[p], self.labels[p])) else None
                for p in parts
            }
            for g in (group, self.oracle)
        )
        return self.summary(audit.tug_of_war(own, reference))

    def membership(self, group: Group) -> dict[str, Any] | None:
        """score -> {auc, accuracy, tpr}: forgotten training examples against held-out ones of the
        same kind."""
        outsiders = self._outsiders()
        if outsiders is None:
            return None
        found = {}
        for score in _ATTACK_SCORES:
            try:
                attack = audit.attack(
                    group.logits["forget"],
                    self.labels["forget"],
                    group.logits[outsiders],
                    self.labels[outsiders],
                    score=score,
                    rng=np.random.default_rng(self.settings.seed),
                )
            except audit.TooFew as error:
                return {"undefined": str(error)}
            found[score] = (
                None
                if attack is None
                else {k: self.summary(v) for k, v in attack._asdict().items()}
            )
        return found

    def _outsiders(self) -> str | None:
        """Held-out examples of the forgotten kind, or all test examples when all kinds are
        forgotten from."""
        return next(
            (p for p in ("forget_test", "test") if p in self.present and "forget" in self.present),
            None,
        )

    def curve(self, group: Group) -> dict[str, list[float]] | None:
        """Mean over models of the ROC of the loss attack, on a common grid of false positive
        rates."""
        outsiders = self._outsiders()
        if outsiders is None:
            return None
        members, others = (
            audit.attack_signal(group.logits[p], self.labels[p], score="loss")
            for p in ("forget", outsiders)
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
