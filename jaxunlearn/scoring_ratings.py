"""Predictions of groups of recommenders to numbers: parts, verdicts, metrics, attacks.

Two models are as far apart on a part as their predictions for its entries (u, i):

    D_ij = sqrt( mean_{(u, i)} (f_i - f_j)^2 ) / scale

with the standard deviation of the retained ratings as the scale, or 1 for implicit feedback, whose
target is 0 or 1. From there everything is as for classifiers: energies, exact tests, floors; only
that no floor is below `PRECISION`, since where there is one optimum all models are at it, and what
is left between them is where each stopped. What
the premises of a verdict call accuracy is

    explicit   the share of the variance of the ratings that is explained      chance 0: the mean
    implicit   how often an entry outranks an item that the user never met     chance 1/2: guessing

The parts:

| part          | entries                                                                          |
|---------------|----------------------------------------------------------------------------------|
| `forget`      | of training, to be forgotten                                                     |
| `adjacent`    | retained, of the same items (users are forgotten) or the same users (items are)  |
| `retain`      | retained, all others                                                             |
| `test`        | later ones, of nobody and nothing that is forgotten                              |
| `forget_test` | later ones of the users, of the items, that are forgotten                        |
"""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn import audit
from jaxunlearn.data.rating_tasks import RatingTask
from jaxunlearn.data.ratings import Ratings
from jaxunlearn.scoring import Judge, summary

PRECISION = 1e-3  # the smallest floor: a thousandth of a deviation is no difference to anybody
PLACES = 20  # recommendations that are looked at
_PEOPLE = 500  # at most so many affected users get recommendations, and so many others
_PAIRS = 1000  # at least so many pairs are ranked on a part, and so many strangers attacked
_ROC_GRID = np.linspace(0, 1, 51)
_ONCE = ("alone", "misfit")  # attacks that need no model of before


class Part(NamedTuple):
    """The entries of one part that are evaluated."""

    user: np.ndarray  # (n,)
    item: np.ndarray  # (n,)
    value: np.ndarray  # (n,)
    others: np.ndarray  # (n, c) items that the user never met; c = 0 for explicit feedback
    words: str
    available: int


class Plan(NamedTuple):
    """Everything that is asked of every model."""

    parts: dict[str, Part]
    strangers: tuple[np.ndarray, np.ndarray]  # users, items (m,) of entries that never were
    people: dict[str, np.ndarray]  # "affected users", "other users" -> (n,) user numbers
    held_out: dict[str, list[np.ndarray]]  # part of the test -> items for each of the people
    explicit: bool
    deviation: float  # of the retained ratings; the unit of distances
    shape: tuple[int, int]  # users, items


class Group(NamedTuple):
    """Models of one kind and what they said."""

    label: str
    role: str  # original, oracle, recipe, method
    predictions: dict[str, np.ndarray]  # part -> (M, n); "strangers" -> (M, m)
    others: dict[str, np.ndarray]  # part -> (M, n, c)
    lists: np.ndarray  # (M, people, places) item numbers, -1 where there is none
    compile: float  # seconds
    run: float
    facts: dict[str, Any]

    @property
    def models(self) -> int:
        return len(self.lists)


def plan(task: RatingTask, rows: int, seed: int) -> Plan:
    """What is evaluated: every part thinned to at most `rows` entries by a fixed random choice."""
    train, test = task.source.train, task.source.test
    explicit = task.source.kind == "explicit"
    met = np.sort(np.concatenate([_keys(train), _keys(test)]))
    parts = {}
    for name, (entries, words) in _entries(task).items():
        if not len(entries) and name != "forget":
            continue
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        keep = np.sort(rng.permutation(len(entries))[:rows])
        kept = entries.take(keep)
        each = 0 if explicit or not len(kept) else -(-_PAIRS // len(kept))
        user = np.repeat(kept.user[:, None], each, axis=1)
        others = _stranger(rng, user, train.items, lambda u, i: u * train.items + i, met)
        others = np.where(others < 0, kept.item[:, None], others)  # met everything: a tie
        parts[name] = Part(kept.user, kept.item, kept.value, others, words, len(entries))
    rng = np.random.default_rng([seed, 1])
    affected, everybody = np.unique(task.forgotten.user), np.unique(train.user)
    people = {
        words: np.sort(rng.permutation(users)[:_PEOPLE])
        for words, users in (
            ("affected users", affected),
            ("other users", np.setdiff1d(everybody, affected)),
        )
    }
    asked = np.concatenate([*people.values()])
    full = {name: _entries(task)[name][0] for name in ("test", "forget_test")}
    held_out = {
        name: [entries.item[entries.user == u] for u in asked] for name, entries in full.items()
    }
    deviation = float(task.retained.value.astype(np.float64).std()) if explicit else 1.0
    strangers = _strangers(rng, task, met)
    return Plan(parts, strangers, people, held_out, explicit, deviation, (train.users, train.items))


def _entries(task: RatingTask) -> dict[str, tuple[Ratings, str]]:
    train, test = task.source.train, task.source.test
    retained, forgotten = task.retained, task.forgotten
    beside = {
        "user": (np.isin(retained.item, forgotten.item), "items"),
        "item": (np.isin(retained.user, forgotten.user), "users"),
    }
    near, kind = beside.get(task.kind, (np.zeros(len(retained), bool), ""))
    if not len(train):
        near = near[:0]
    return {
        "forget": (forgotten, "training entries to forget"),
        "adjacent": (retained.take(near), f"retained training entries of the same {kind}"),
        "retain": (retained.take(~near), "other retained training entries"),
        "test": (test.without(task.test_forget), "later entries of all others"),
        "forget_test": (test.take(task.test_forget), f"later entries of the forgotten {task.kind}"),
    }


def _keys(entries: Ratings) -> np.ndarray:
    return entries.user.astype(np.int64) * entries.items + entries.item


def _stranger(
    rng: np.random.Generator, fixed: np.ndarray, count: int, key: Any, met: np.ndarray
) -> np.ndarray:
    """For each of `fixed` one of the other side, in [0, count), it never met; -1: found none."""
    fixed = fixed.astype(np.int64)
    drawn = np.full(fixed.shape, -1, np.int64)
    for _ in range(64):
        open_ = drawn < 0
        if not open_.any():
            break
        tried = rng.integers(0, count, open_.sum())
        drawn[open_] = np.where(np.isin(key(fixed[open_], tried), met), -1, tried)
    return drawn


def _strangers(
    rng: np.random.Generator, task: RatingTask, met: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct entries that never were, of the users (or items) that are forgotten from."""
    gone, items, users = task.forgotten, task.source.train.items, task.source.train.users
    if not len(gone):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    times = -(-_PAIRS // len(gone))
    if task.kind == "item":
        fixed = np.tile(gone.item.astype(np.int64), times)
        drawn = _stranger(rng, fixed, users, lambda i, u: u * items + i, met)
        keys = (drawn * items + fixed)[drawn >= 0]
    else:
        fixed = np.tile(gone.user.astype(np.int64), times)
        drawn = _stranger(rng, fixed, items, lambda u, i: u * items + i, met)
        keys = (fixed * items + drawn)[drawn >= 0]
    user, item = np.divmod(np.unique(keys), items)
    return user, item


def answers(plan: Plan, learner: Any, states: Any) -> dict[str, Any]:
    """Fields of a `Group`: predictions, others and lists of models, one after another."""
    asked = [(p.user, p.item) for p in plan.parts.values()]
    asked += [(np.repeat(p.user, p.others.shape[1]), p.others.ravel()) for p in plan.parts.values()]
    user, item = (np.concatenate(each) for each in zip(*asked, plan.strangers, strict=True))
    users = np.concatenate([*plan.people.values()])
    places = min(PLACES, plan.shape[1])
    said, lists = [], []
    for state in states:
        said.append(np.asarray(learner.predict(state, user, item), np.float32))
        best, scores = learner.recommend(state, users, count=places)
        lists.append(np.where(np.isfinite(np.asarray(scores)), np.asarray(best), -1))
    cuts = np.cumsum([len(u) for u, _ in asked])
    *pieces, strangers = np.split(np.stack(said), cuts, axis=1)
    own = dict(zip(plan.parts, pieces[: len(plan.parts)], strict=True)) | {"strangers": strangers}
    others = {
        name: piece.reshape(len(piece), *plan.parts[name].others.shape)
        for name, piece in zip(plan.parts, pieces[len(plan.parts) :], strict=True)
    }
    return {"predictions": own, "others": others, "lists": np.stack(lists).astype(np.int32)}


def judge(groups: list[Group], plan: Plan, settings: Any) -> Judge:
    """Verdicts: distances of predictions, and the accuracy of the module."""
    matrices, accuracies = {}, {}
    for name in audit.PARTS:
        if name not in plan.parts or not len(plan.parts[name].user):
            continue
        together = np.concatenate([g.predictions[name] for g in groups])
        matrices[name] = audit.prediction_matrix(together, scale=plan.deviation or 1.0)
        found = [each for g in groups if (each := quality(g, name, plan)) is not None]
        if found:  # of all groups, or of none
            accuracies[name] = np.concatenate(found)
    judged = Judge(groups, matrices, accuracies, 0.0 if plan.explicit else 0.5, settings)
    if judged.floors is not None:
        judged.floors = {name: _coarse(floor) for name, floor in judged.floors.items()}
    return judged


def _coarse(floor: audit.Floor) -> audit.Floor:
    return floor._replace(
        value=max(floor.value, PRECISION), resolution=max(floor.resolution, PRECISION)
    )


def quality(group: Group, part: str, plan: Plan) -> np.ndarray | None:
    """(M,) what a verdict calls accuracy."""
    entries = plan.parts[part]
    if not plan.explicit:
        return audit.pair_accuracy(group.predictions[part], group.others[part])
    return audit.explained(group.predictions[part], entries.value, variance=plan.deviation**2)


class Metrics:
    """The metrics of a group, and their floors between two halves of the oracles."""

    def __init__(self, original: Group, oracle: Group | None, plan: Plan, settings: Any):
        self.original, self.oracle, self.plan, self.settings = original, oracle, plan, settings
        self.present = [p for p, entries in plan.parts.items() if len(entries.user)]

    def floor(self) -> dict[str, Any]:
        """The same metrics of one half of the oracles, with the other half as the reference."""
        if self.oracle is None:
            return {}
        half = self.oracle.models // 2
        first, second = (_some(self.oracle, part) for part in (slice(half), slice(half, None)))
        return Metrics(self.original, second, self.plan, self.settings).scores(first)

    def summary(self, values: Any) -> dict[str, Any] | None:
        return summary(values, self.settings)

    def scores(self, group: Group) -> dict[str, Any]:
        """metric -> part (or kind of people) -> summary."""
        found: dict[str, Any] = {}
        name = "explained" if self.plan.explicit else "pair_accuracy"
        for part in self.present:
            if self.plan.explicit:
                error = audit.rmse(group.predictions[part], self.plan.parts[part].value)
                found.setdefault("rmse", {})[part] = self.summary(error)
            found.setdefault(name, {})[part] = self.summary(quality(group, part, self.plan))
        for part in () if self.plan.explicit else ("test", "forget_test"):
            for name, measure, k in _RANKINGS:
                if k <= group.lists.shape[2]:
                    values = measure(group.lists, self.plan.held_out[part], k=k)
                    if values is not None:
                        found.setdefault(name, {})[part] = self.summary(values)
        if self.oracle is not None and group is not self.oracle:
            found["overlap@10"] = self._overlap(group.lists, self.oracle.lists)
        return found

    def _overlap(self, lists: np.ndarray, references: np.ndarray) -> dict[str, Any]:
        """For the people whom the request concerns, and for others."""
        ends = np.cumsum([len(users) for users in self.plan.people.values()])
        own, held = (np.split(each, ends[:-1], axis=1) for each in (lists, references))
        k = min(10, lists.shape[2])
        return {
            words: self.summary(audit.overlap_at_k(a, b, k=k))
            for words, a, b in zip(self.plan.people, own, held, strict=True)
        }

    def whole(self, group: Group) -> dict[str, Any]:
        return {"sweeps": self.summary(group.facts.get("info", {}).get("sweeps"))}

    def membership(self, group: Group) -> dict[str, Any] | None:
        """attack -> {auc, tpr}: forgotten entries against others; see `attack_tables`."""
        if "forget" not in self.present or self.oracle is None:
            return None
        found = {}
        for score, against in _attacks(self.plan):
            signals = self._signals(group, score, against)
            attack = None if signals is None else audit.entry_attack(*signals)
            values = {} if attack is None else attack._asdict()
            found[f"{score}, {_AGAINST[against]}"] = {
                k: self.summary(v) for k, v in values.items()
            } or None
        return found

    def _signals(self, group: Group, score: str, against: str) -> tuple[Any, Any] | None:
        """Signals of the forgotten and of the other entries; None for a model and itself."""
        if against not in group.predictions or (group.role == "original" and score not in _ONCE):
            return None
        pairs = np.arange(group.models) % self.original.models

        def of(part: str) -> np.ndarray:
            before, after = self.original.predictions[part][pairs], group.predictions[part]
            value = self.plan.parts[part].value if part in self.plan.parts else None
            return audit.entry_signal(before, after, score=score, ratings=value)

        return of("forget"), of(against)

    def curve(self, group: Group) -> dict[str, list[float]] | None:
        """Mean over models of the ROC of |f0 - f1|, or of f1 for originals, against strangers."""
        if "forget" not in self.present or self.oracle is None:
            return None
        signals = self._signals(group, "alone" if group.role == "original" else "size", "strangers")
        rates = []
        for m, o in zip(*signals, strict=True) if signals and signals[1].size else ():
            if np.isfinite(m).all() and np.isfinite(o).all():
                roc = audit.roc_curve(m, o)
                rates.append(np.interp(_ROC_GRID, roc.fpr, roc.tpr))
        if not rates:
            return None
        return {"fpr": _ROC_GRID.tolist(), "tpr": np.mean(rates, axis=0).tolist()}


_RANKINGS = (
    ("recall@10", audit.recall_at_k, 10),
    ("recall@20", audit.recall_at_k, 20),
    ("ndcg@10", audit.ndcg_at_k, 10),
)
_AGAINST = {"strangers": "never met", "retain": "kept"}


def _attacks(plan: Plan) -> list[tuple[str, str]]:
    """(score, against whom)."""
    rated = ["residual", "misfit"] if plan.explicit else []
    scores = {"strangers": ["change", "size", "alone"], "retain": ["change", "size", "alone"]}
    scores["retain"] += rated
    return [(score, against) for against, names in scores.items() for score in names]


def attack_tables(plan: Plan) -> list:
    """The tables of the membership section, see `reporting.views.Attacks`."""
    titles = {
        "strangers": "Against entries that never were (AUC, and TPR at FPR 0.01)",
        "retain": "Against entries that were kept (AUC, and TPR at FPR 0.01)",
    }
    return [
        [
            title,
            [
                [f"{score}, {_AGAINST[against]}", measure, f"{score}: {measure.upper()}"]
                for score, other in _attacks(plan)
                if other == against
                for measure in ("auc", "tpr")
            ],
        ]
        for against, title in titles.items()
    ]


def _some(group: Group, part: slice) -> Group:
    def cut(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values[part] for name, values in found.items()}

    return group._replace(
        predictions=cut(group.predictions), others=cut(group.others), lists=group.lists[part]
    )
