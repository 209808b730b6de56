"""The full suite of audits over a finished comparison: from its record to `audit.json`.

    results.json -> the same models again -> Bench -> one exact test per row -> audit.json, pages

The models of a comparison are made again (`jaxunlearn.remade`) and every group is measured under
equal conditions (`jaxunlearn.measuring`): originals, oracles, the oracles of innocent recipes,
every method, and the planted groups whose answer is known (`jaxunlearn.planted`). The groups pass
one at a time, so that memory does not grow with the number of methods. Each is compared with the
oracles by one permutation test over all audits at once (`jaxunlearn.audit.evidence`).

| the models of a row                                              | verdict                      |
|------------------------------------------------------------------|------------------------------|
| have outputs that are not finite                                 | collapsed                    |
| no audit tells them from the oracles                             | indistinguishable from       |
|                                                                  | retraining                   |
| some does, but nowhere are they farther than an innocent recipe  | within recipe noise          |
| know more after an attack than retrained models do, and more     | came back                    |
| than they showed before it                                       |                              |
| lie towards the original on an audit that tells them             | forgotten traces remain      |
| are told by their outputs on forget rows, away from the original | over-forgotten               |
| are told, and none of these                                      | differs from retraining      |

The planted groups audit the audits: where one that must be flagged is not, or the other way round,
the record says so and so does the front page. A comparison that says nothing (base at chance, no
oracle) is not audited, and neither is one whose oracles differ from freshly trained ones: then the
reference itself is in doubt.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn import audit, compare, planted, remade
from jaxunlearn.audit.recovery import CAME_BACK
from jaxunlearn.audit.report import command as report_command
from jaxunlearn.cache import Cache
from jaxunlearn.distinguishing import against_oracles, floors_of
from jaxunlearn.measures import CURVES, MEASURES
from jaxunlearn.measuring import Bench, Measured
from jaxunlearn.publishing import publish_text
from jaxunlearn.results import Results, plain
from jaxunlearn.scoring import summary
from jaxunlearn.suite import DURABLE, described, distances

SCHEMA = 1
TRACES = "forgotten traces remain"
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
      shadows: pairs of shadow models for U-LiRA; 0: none.
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


def audit_comparison(
    finished: Results,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    methods: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    cache: Cache | None = None,
    say: compare.Say = lambda text, seconds: None,
) -> dict[str, Any]:
    """The record of an audit: what `audit.json` holds.

    Args:
      finished: the comparison.
      settings: of the audits.
      methods: labels of rows; None: all of them.
      data_dir: as for `data.load`.
      cache: where trained ensembles are kept.
      say: progress, called with a text and the seconds since the start.

    Returns:
      Plain data; see `jaxunlearn.audit.reading` for its fields.

    Raises:
      ValueError: a comparison of recommenders or of a regression, data that are not those of the
        comparison, models that cannot be made again.

    Cost: the models of the comparison (from the cache, but for the methods), 2 x seeds planted
    ones, three short trainings of every model, and (1 + methods) x 2 x shadows trainings or
    unlearnings of the shadow models.
    """
    start = time.perf_counter()

    def progress(text: str) -> None:
        say(text, time.perf_counter() - start)

    record = finished.record
    task = remade.task_of(record, data_dir=data_dir)
    made = remade.settings_of(record)
    specified = remade.methods_of(record, methods)
    if finished.status != "informative":
        reason = finished.status.removeprefix("not informative: ")
        return _nothing(record, settings, f"the comparison itself says nothing ({reason})")
    network = compare.network_of(task.source, made.recipe)
    bench = Bench(network, task, made, rows=settings.rows, steps=settings.steps)
    book = _Book(bench, settings, made.seed)

    def groups() -> Iterator[tuple[str, str, str, str | None, bool, Any]]:
        for each in compare.ensembles_of(
            network, task, specified, made, cache=cache, progress=progress, timed=False
        ):
            paired = each.role == "method" and each.facts["method"] not in _FROM_NOTHING
            words = _WORDS.get(each.role, "")
            yield each.label, each.role, words, _EXPECTED.get(each.role), paired, each.params
        for group in planted.planted(
            network, task, made.recipe, originals, seeds=made.seeds, seed=made.seed,
            cache=cache, progress=progress,
        ):  # fmt: skip
            paired = group.label == "last layer masked"
            yield group.label, "control", group.words, group.expected, paired, group.params

    originals = None
    for label, role, words, expected, paired, params in groups():
        if role == "original":
            originals = params
            progress("learning what to steer by")
            bench.learn_steering(params)
        progress(f"auditing {label}")
        measured = bench(params)
        if role != "control":
            remade.check_models(record, label, bench.accuracies(measured))
        book.add(Row(label, role, words, expected, paired, measured))
    doubt = book.doubt()
    if doubt:
        return _nothing(record, settings, doubt)
    shadows = None
    if settings.shadows:
        from jaxunlearn.shadows import shadow_lira

        progress(f"training {2 * settings.shadows} shadow models")
        shadows = shadow_lira(
            task, specified, network=network, recipe=made.recipe, pairs=settings.shadows,
            seed=made.seed, cache=cache, progress=progress, resamples=settings.resamples,
        )  # fmt: skip
    progress("writing it down")
    return plain(
        _head(record, settings, "informative", time.perf_counter() - start)
        | book.told()
        | {"shadows": shadows}
    )


_FROM_NOTHING = ("retrain", "blind_model")
_WORDS = {
    "original": "trained on everything; nothing was forgotten",
    "oracle": "true retrainings on what is retained: the reference",
    "recipe": "true retrainings by a recipe that nobody would call different",
}
_EXPECTED = {"original": planted.FLAGGED}


class _Book:
    """Rows as they come in; everything is judged against the oracles, which come second."""

    def __init__(self, bench: Bench, settings: Settings, seed: int):
        self.bench, self.settings, self.seed = bench, settings, seed
        self.waiting: list[Row] = []
        self.original: Row | None = None
        self.oracle: Row | None = None
        self.recipes: dict[str, dict[str, float]] = {}  # label -> audit -> energy
        self.rows: list[dict[str, Any]] = []
        self.audits: list[str] = []

    def add(self, row: Row) -> None:
        if row.role == "original":
            self.original = row
        elif row.role == "oracle":
            self.oracle = row
            self.floors = floors_of(self.bench, row.measured, self.settings.resamples, self.seed)
            assert self.original is not None
            self.audits = list(distances([self.original.measured, row.measured]))
            self.waiting = [self.original, row]
        elif row.role == "recipe":
            assert self.oracle is not None
            found = distances([row.measured, self.oracle.measured])
            own, theirs = range(row.models), range(row.models, row.models + self.oracle.models)
            self.recipes[row.label] = {
                key: audit.energy(D, own, theirs)
                for key, D in found.items()
                if np.isfinite(D).all()
            }
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
        p = again and again["finding"] and again["finding"]["p_value"]
        if p is None or p > _IN_DOUBT:
            return None
        return (
            f"freshly trained oracles differ from those of the run (p = {p:.2g}), so the reference "
            "is in doubt: it may have been trained on other data, or by another recipe"
        )

    def judged(self, row: Row) -> dict[str, Any]:
        """The row of the record."""
        assert self.original is not None and self.oracle is not None
        found = self._evidence(row)
        numbers, examples = self._numbers(row)
        return {
            "label": row.label,
            "role": row.role,
            "models": row.models,
            "words": row.words,
            "expected": row.expected,
            "finding": None if row.role == "oracle" else self._finding(row, found),
            "evidence": {} if found is None else {
                key: {
                    "p_value": each.p_value,
                    "energy": each.energy,
                    "resolution": each.resolution,
                    "recipe": self._recipe_floor(key),
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

    def _recipe_floor(self, key: str) -> float | None:
        found = [energies[key] for energies in self.recipes.values() if key in energies]
        return max(found) if found else None

    def _evidence(self, row: Row) -> audit.Evidence | None:
        """The exact test; None for the oracles, and where a model is not finite."""
        assert self.original is not None and self.oracle is not None
        if row.role == "oracle":
            return None
        itself = row.role == "original"
        groups = [row, self.oracle] if itself else [row, self.oracle, self.original]
        found = distances([group.measured for group in groups])
        if not all(np.isfinite(D).all() for D in found.values()):
            return None
        ends = np.cumsum([0, *(group.models for group in groups)])
        spans = [range(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        return audit.evidence(
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

    def _finding(self, row: Row, found: audit.Evidence | None) -> dict[str, Any]:
        if found is None:
            broken = self.bench.broken(row.measured)
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
            if (floor := self._recipe_floor(key)) is None or found.findings[key].energy > floor
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
            over = away is not None and "outputs_forget" in flagged
            over = over and away.direction == "away from it"
            verdict = audit.Verdict.OVER_FORGOTTEN.value if over else DIFFERS
            words = f"{told}, most of all {_title(found.largest)}; none towards the original"
        return _found(verdict, f"{verdict}: {words}", found.p_value, flagged, returned)

    def _returned(self, row: Row, key: str) -> bool:
        """Whether an attack brought more back than it gives retrained models, and more than the
        row showed before the attack."""
        assert self.original is not None and self.oracle is not None
        found = audit.came_back(
            *(g.measured.curves[key] for g in (row, self.oracle, self.original)),
            paired=row.paired,
            level=self.settings.level,
            permutations=self.settings.permutations,
            resamples=self.settings.resamples,
            seed=self.seed,
        )
        if found.verdict != CAME_BACK or found.effect is None:
            return False
        return found.before is None or found.effect.low > max(found.before.value, 0.0)

    def _numbers(self, row: Row) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """(measure -> summary, per-example privacy)."""
        assert self.original is not None and self.oracle is not None
        found = {key: summary(v, self.settings_of_bench) for key, v in row.measured.numbers.items()}
        found = {k: v and {n: v[n] for n in ("value", "low", "high")} for k, v in found.items()}
        if row.role == "oracle":
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
        drawn = {key for row in self.rows for key in row["curves"]}
        wrong = [
            row["label"] for row in self.rows
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
                f"The planted group '{label}' was not judged as it must be: trust this audit less."
                for label in wrong
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


def _head(
    record: Mapping[str, Any], settings: Settings, status: str, seconds: float
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "kind": "jaxunlearn audit",
        "status": status,
        "run": {"results": "results.json", "digest": digest(record)},
        "task": {key: record["task"][key] for key in ("name", "words", "description", "source")},
        "settings": dataclasses.asdict(settings) | {"seed": record["settings"]["seed"]},
        "comparison": {
            "settings": record["settings"],
            "command": report_command(record),
        },
        "versions": compare.versions(),
        "metrics": dict(audit.METRIC_VERSIONS),
        "seconds": seconds,
    }


def digest(record: Mapping[str, Any]) -> str:
    """sha256 of a comparison's record, so that an audit can be told from one of another run."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _nothing(record: Mapping[str, Any], settings: Settings, reason: str) -> dict[str, Any]:
    """The record of an audit that cannot say anything, with the reason."""
    empty = {"audits": {}, "measures": {}, "curves": {}, "floors": {}, "rows": [], "notes": []}
    head = _head(record, settings, f"not informative: {reason}", 0.0)
    return plain(head | empty | {"shadows": None})


def write(
    found: Mapping[str, Any],
    finished: Results,
    folder: Path,
    *,
    publish: Callable[[Path, str], Path] = publish_text,
) -> list[Path]:
    """Writes `audit.json`, `report.html` with its front page, and a page for each row.

    Each file appears whole or not at all; pages of an earlier audit of the same folder are replaced
    and those of rows that are gone are removed.

    Args:
      found: of `audit_comparison`.
      finished: the comparison.
      folder: of the run.

    Returns:
      The paths written.
    """
    from jaxunlearn.audit import page_names, pages, report

    text = json.dumps(found, indent=1, allow_nan=False)
    written = [
        publish(folder / "audit.json", text),
        publish(folder / "report.html", report.html(finished.record, found)),
    ]
    made = {folder / name: page for name, page in pages.pages(found).items()}
    (folder / page_names.PAGES).mkdir(exist_ok=True)
    for stale in (folder / page_names.PAGES).glob("*.html"):
        if stale not in made:
            stale.unlink()
    return written + [publish(path, page) for path, page in made.items()]
