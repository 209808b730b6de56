"""The verdict of the suite on each row: one exact test over all audits, and what it means.

| the models of a row                                              | verdict                      |
|------------------------------------------------------------------|------------------------------|
| have outputs that are not finite                                 | collapsed                    |
| no audit tells them from the oracles                             | indistinguishable from       |
|                                                                  | retraining                   |
| some does, but nowhere are they farther than an innocent recipe  | within recipe noise          |
| seemed to have forgotten, and know more after an attack than it  | came back                    |
| gives retrained models                                           |                              |
| lie towards the original on an audit that tells them             | forgotten traces remain      |
| are told by their outputs on forget rows, away from the original | over-forgotten               |
| are told, and none of these                                      | differs from retraining      |


`Book` takes the groups as they are made (originals, oracles, oracles of other recipes, then the
rest), judges each against the oracles and forgets its outputs. A row is flagged by an audit if its
p-value, adjusted for all audits, is at most the level; "towards the original" is the direction of
the displacement, beyond its interval. "Came back" is asked of the audits of durability alone, where
a curve can be followed from before an attack to after it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn import audit
from jaxunlearn.auditing import planted
from jaxunlearn.auditing.bench import Bench, Measured
from jaxunlearn.auditing.distinguishing import against_oracles, floors_of
from jaxunlearn.auditing.measures import CURVES, MEASURES
from jaxunlearn.auditing.suite import DURABLE, described, distances, undefined
from jaxunlearn.scoring import summary

CAME_BACK, TRACES = "came back", "forgotten traces remain"
DIFFERS = "differs from retraining"
_IN_DOUBT = 0.005  # p-value below which fresh oracles put those of the run in doubt


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an audit may vary.

    Attributes:
      level: of the test over all audits.
      permutations, resamples: of the tests and of the intervals.
      rows: examples of a part that are attacked, at most, >= 4.
      steps: minibatches of relearning and of other training, >= 1.
      shadows: pairs of shadow models for U-LiRA, >= 4; 0: none.
    """

    level: float = 0.05
    permutations: int = 1999
    resamples: int = 400
    rows: int = 512
    steps: int = 40
    shadows: int = 16

    def __post_init__(self) -> None:
        least = {"permutations": 19, "resamples": 19, "rows": 4, "steps": 1, "shadows": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(
                    f"{name}: expected at least {smallest}, got {getattr(self, name)}."
                )
        if not 0 < self.level < 1:
            raise ValueError(f"level: expected a number between 0 and 1, got {self.level}.")
        if 1 / (1 + self.permutations) > self.level:
            raise ValueError(
                f"permutations: {self.permutations} relabellings cannot give a p-value of "
                f"{self.level:g}, so nothing could be flagged. Take at least "
                f"{math.ceil(1 / self.level) - 1}."
            )
        if 0 < self.shadows < 4:
            raise ValueError(f"shadows: expected 0 or at least 4 pairs, got {self.shadows}.")


class Row(NamedTuple):
    """One group of models on its way through the audits."""

    label: str
    role: str  # original, oracle, recipe, method, control
    words: str
    expected: str | None
    paired: bool  # model i was made from original i
    measured: Measured

    @property
    def models(self) -> int:
        return len(next(iter(self.measured.logits.values())))


class Book:
    """Rows as they come in; everything is judged against the oracles, which come second."""

    def __init__(self, bench: Bench, settings: Settings, seed: int):
        self.bench, self.settings, self.seed = bench, settings, seed
        self.waiting: list[Row] = []
        self.original: Row | None = None
        self.oracle: Row | None = None
        self.recipes: list[Row] = []
        self.rows: list[dict[str, Any]] = []
        self.audits: list[str] = []

    def add(self, row: Row) -> None:
        if row.role == "original":
            self.original = row
        elif row.role == "oracle":
            self.oracle = row
            start = None if self.original is None else self.original.measured
            self.floors = floors_of(
                self.bench, row.measured, self.settings.resamples, self.seed, start
            )
            assert self.original is not None
            self.audits = list(distances([self.original.measured, row.measured]))
            self.waiting = [self.original, row]
        elif row.role == "recipe":
            self.recipes.append(row)
        else:
            self.flush()
            self.rows.append(self.judged(row))

    def flush(self) -> None:
        """Judges the first two rows, which wait for the oracles of other recipes."""
        self.rows += [self.judged(row) for row in self.waiting]
        self.waiting = []

    def doubt(self) -> str | None:
        """Why the oracles of the run cannot be the reference."""
        self.flush()
        again = next((r for r in self.rows if r["expected"] == planted.NOT_FLAGGED), None)
        p = None if again is None or not again["finding"] else again["finding"]["p_value"]
        if p is None or p > _IN_DOUBT:
            return None
        return (
            f"freshly trained oracles differ from those of the run (p = {p:.2g}), so the reference "
            "is in doubt: it may have been trained on other data, or by another recipe"
        )

    def judged(self, row: Row) -> dict[str, Any]:
        """The row of the record."""
        assert self.original is not None and self.oracle is not None
        found, floors = self._evidence(row)
        numbers, examples = self._numbers(row)
        return {
            "label": row.label,
            "role": row.role,
            "models": row.models,
            "words": row.words,
            "expected": row.expected,
            "finding": None if row.role == "oracle" else self._finding(row, found, floors),
            "evidence": {} if found is None else {
                key: {
                    "p_value": each.p_value,
                    "energy": each.energy,
                    "resolution": each.resolution,
                    "recipe": floors.get(key),
                    "direction": each.direction,
                    "along": None if each.moved is None else each.moved.along._asdict(),
                }
                for key, each in found.findings.items()
            },
            "measures": numbers,
            "curves": {
                key: _band(values, self.settings.resamples, self.seed)
                for key, values in row.measured.curves.items()
            },
            "examples": examples,
            "roc": self.bench.roc(row.measured),
        }  # fmt: skip

    def _evidence(self, row: Row) -> tuple[audit.Evidence | None, dict[str, float]]:
        """The exact test, and how far the oracles of other recipes are from those of the run.

        All of them are in one matrix, since an audit of numbers measures them by their deviation
        over the models that are in it. No test for the oracles, and where a model is not finite.
        """
        assert self.original is not None and self.oracle is not None
        if row.role == "oracle":
            return None, {}
        itself = row.role == "original"
        groups = [row, self.oracle] if itself else [row, self.oracle, self.original]
        together = [*groups, *self.recipes]
        found = distances([group.measured for group in together])
        ends = np.cumsum([0, *(group.models for group in together)])
        spans = [range(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        tested = ends[len(groups)]
        if not all(np.isfinite(D[:tested, :tested]).all() for D in found.values()):
            return None, {}
        floors = {
            key: max(energies)
            for key, D in found.items()
            if (energies := [
                audit.energy(D, span, spans[1])
                for span in spans[len(groups) :]
                if np.isfinite(D[np.ix_(span, range(tested))]).all()
            ])
        }  # fmt: skip
        evidence = audit.evidence(
            found,
            spans[0],
            spans[1],
            spans[0] if itself else spans[2],
            paired=row.paired,
            level=self.settings.level,
            permutations=self.settings.permutations,
            resamples=self.settings.resamples,
            seed=self.seed,
        )
        lost = undefined(row.measured)
        findings = {
            key: each._replace(moved=None) if key in lost else each
            for key, each in evidence.findings.items()
        }
        return evidence._replace(findings=findings), floors

    def _finding(
        self, row: Row, found: audit.Evidence | None, floors: Mapping[str, float]
    ) -> dict[str, Any]:
        if found is None:
            broken = self.bench.broken(row.measured)
            if not broken:
                verdict = audit.Verdict.NOT_INFORMATIVE.value
                words = "originals or oracles gave non-finite outputs"
                return _found(verdict, f"{verdict}: {words}", None, [], [])
            words = f"collapsed: {broken} of {row.models} models gave non-finite outputs"
            return _found("collapsed", words, None, [], [])
        flagged = list(found.flagged(self.settings.level))
        p = f"p = {found.p_value:.2g}"
        count, total = len(flagged), len(found.findings)
        if not flagged:
            verdict = audit.Verdict.INDISTINGUISHABLE.value
            words = f"none of {total} audits tells its models from true retrainings ({p})"
            return _found(verdict, f"{verdict}: {words}", found.p_value, [], [])
        told = f"{count} of {total} audits tell its models from true retrainings ({p})"
        beyond = [
            key for key in flagged
            if key not in floors or found.findings[key].energy > floors[key]
        ]  # fmt: skip
        if not beyond:
            verdict = audit.Verdict.RECIPE_NOISE.value
            words = f"{told}, but by no more than another training recipe differs"
            return _found(verdict, f"{verdict}: {words}", found.p_value, flagged, [])
        returned = [key for key in DURABLE if key in flagged and self._returned(row, key)]
        towards = [
            key for key in flagged if found.findings[key].direction == "towards the original"
        ]
        if returned:
            verdict = CAME_BACK
            names = ", ".join(_title(key) for key in returned)
            words = f"under {names} it knows more than retrained models do; {told}"
        elif towards:
            verdict = TRACES
            names = ", ".join(_title(key) for key in towards[:3])
            more = f" and {len(towards) - 3} more" if len(towards) > 3 else ""
            words = f"{told}, and on {names}{more} they lie towards the original"
        else:
            away = found.findings.get("outputs_forget")
            over = away is not None and away.direction == "away from it"
            over = over and "outputs_forget" in flagged
            verdict = audit.Verdict.OVER_FORGOTTEN.value if over else DIFFERS
            words = f"{told}, most of all {_title(found.largest)}; none towards the original"
        return _found(verdict, f"{verdict}: {words}", found.p_value, flagged, returned)

    def _returned(self, row: Row, key: str) -> bool:
        """Whether the row was nearer to the oracles than to the originals before an attack, and the
        attack brings back more than it gives retrained models, and more than was there."""
        before, after = (self._known(row, *where) for where in (("pruning", 0), (key, None)))
        if after.verdict != CAME_BACK or before.effect is None or after.effect is None:
            return False
        return before.effect.value < 0.5 and after.effect.low > max(before.effect.high, 0.0)

    def _known(self, row: Row, key: str, place: int | None) -> audit.CameBack:
        """Knowledge along a curve, or at one place of it: no pruning is the model as it is."""
        assert self.original is not None and self.oracle is not None
        curves = [g.measured.curves[key] for g in (row, self.oracle, self.original)]
        return audit.came_back(
            *(values if place is None else values[:, place] for values in curves),
            paired=row.paired,
            level=self.settings.level,
            permutations=self.settings.permutations,
            resamples=self.settings.resamples,
            seed=self.seed,
        )

    def _numbers(self, row: Row) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """(measure -> summary, per-example privacy)."""
        assert self.original is not None and self.oracle is not None
        found = {key: summary(v, self.settings_of_bench) for key, v in row.measured.numbers.items()}
        found = {k: v and {n: v[n] for n in ("value", "low", "high")} for k, v in found.items()}
        if row.role == "oracle":
            found |= self.floors  # its own distance is that of its halves
            return {k: v for k, v in found.items() if k in MEASURES}, None
        more, examples = against_oracles(
            self.bench, row.measured, self.oracle.measured, self.original.measured,
            resamples=self.settings.resamples, seed=self.seed,
        )  # fmt: skip
        found |= more
        return {k: v for k, v in found.items() if k in MEASURES}, examples

    @property
    def settings_of_bench(self) -> Any:
        return dataclasses.replace(self.bench.settings, resamples=self.settings.resamples)

    def told(self) -> dict[str, Any]:
        """Everything of the record that depends on the rows."""
        self.flush()
        shown = {key for row in self.rows for key, v in row["measures"].items() if v is not None}
        for row in self.rows:  # what is undefined in every row says nothing
            row["measures"] = {k: v for k, v in row["measures"].items() if k in shown}
        drawn = {key for row in self.rows for key in row["curves"]}
        wrong = [
            (row["label"], row["expected"]) for row in self.rows
            if row["expected"] and row["finding"]
            and bool(row["finding"]["flagged"]) != (row["expected"] == planted.FLAGGED)
            and row["finding"]["verdict"] != "collapsed"
        ]  # fmt: skip
        return {
            "audits": described(self.audits),
            "measures": {k: v._asdict() for k, v in MEASURES.items() if k in shown},
            "curves": {
                key: CURVES[key]._asdict() | _axis(self.bench.axes[key])
                for key in CURVES
                if key in drawn
            },
            "floors": {k: v for k, v in self.floors.items() if k in shown},
            "rows": self.rows,
            "notes": [
                f"The planted group '{label}' was not judged as it must be: "
                + (
                    "so many models cannot show a difference of that size here; train more."
                    if expected == planted.FLAGGED
                    else "a false alarm, so trust this audit less."
                )
                for label, expected in wrong
            ],
        }


def _title(key: str) -> str:
    title = described([key])[key]["title"]
    return title[:1].lower() + title[1:]


def _found(
    verdict: str, words: str, p: float | None, flagged: list[str], returned: list[str]
) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "words": words,
        "p_value": p,
        "flagged": flagged,
        "came_back": returned,
    }


def _axis(values: Sequence[Any]) -> dict[str, Any]:
    """x as numbers, with the names of what stands there where it is no number."""
    if all(isinstance(v, int | float) for v in values):
        return {"x": list(values), "ticks": None}
    return {"x": list(range(len(values))), "ticks": [str(v) for v in values]}


def _band(values: np.ndarray, resamples: int, seed: int) -> dict[str, list[float]]:
    """Mean over models at each place of a curve, with its bootstrap interval."""
    rng = np.random.default_rng([seed, 4])
    weights = audit.bootstrap_weights(rng, len(values), resamples)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(weights @ values, [0.025, 0.975], axis=0)
    return {"value": values.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist()}
