"""One comparison of recommenders: the same table, report and verdict as for classifiers.

    originals   N factorisations of all ratings              seeds
    oracles     M factorisations of what is retained         the reference: cold, from other seeds
    recipes     M/2 oracles by each of two recipes that nobody would call different: the floor
    methods     every method applied to every original       judged against the oracles

A factorisation has many stationary points where its rank is below that of the optimum, and another
start ends in another of them. So oracles differ from each other, as deep networks do, and that is
the floor; where the regularisation is so large that there is one optimum, the floor is the
precision of `scoring_ratings`. By default every fit goes on until the gradient is 0. With a number
of sweeps, as people often train, it stops before; a method that converges is then compared with
models that did not, and the recipe of 25 % more sweeps says how much that is.

Models are fitted one after another, and what the first call of a compiled program takes more than
later ones is told apart, so that `run` is the time of a machine that has compiled. Nothing is
cached, since a fit takes seconds. The linear autoencoder (EASE) is not here: it is a closed form
without seeds, so that its forgetting is an equality, which its tests show, and no question for a
distribution.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxunlearn import compare as classifiers
from jaxunlearn import rating_presets, results, scoring_ratings
from jaxunlearn.data.rating_tasks import RatingTask
from jaxunlearn.rating_presets import METHODS, Factorisation, Given
from jaxunlearn.scoring_ratings import Group, Plan
from jaxunlearn.specification import Specified


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a comparison may vary besides the task and the methods.

    Attributes:
      recipe: how models are fitted; its feedback must be that of the source.
      seeds, oracles, seed, rows, permutations, resamples: as for `compare.Settings`.
    """

    recipe: Factorisation = Factorisation()
    seeds: int = 16
    oracles: int = 32
    seed: int = 0
    rows: int = 10_000
    permutations: int = 999
    resamples: int = 1000

    def __post_init__(self) -> None:
        classifiers.check_numbers(self)


class _Fitted(NamedTuple):
    """Models of one group and what fitting them said."""

    states: list[Any]
    reports: list[Any]
    compile: float  # seconds
    run: float


def compare(
    task: RatingTask,
    methods: Sequence[Specified] | None = None,
    settings: Settings | None = None,
    *,
    say: classifiers.Say = lambda text, seconds: None,
) -> results.Results:
    """Originals, oracles, methods and audits of one task on ratings.

    Args:
      task: what is to be forgotten, of which source.
      methods: see `rating_presets.parse_methods`; default `rating_presets.DEFAULT_METHODS`.
      settings: numbers of models and the recipe; default: that of the source's kind of feedback.
      say: progress, called with a text and the seconds since the start.

    Returns:
      `results.Results`; `results.status` says whether the comparison is informative.

    Raises:
      ValueError: feedback that the source does not have, or what the learner refuses.

    Cost: seeds + 2 oracles fits, the methods on every original, and predictions of all models for
      at most 5 x `rows` entries. Memory: the factors and ratings of `seeds` models.
    """
    start = time.perf_counter()
    settings = settings or Settings(Factorisation(feedback=task.source.kind))
    recipe = settings.recipe
    check_feedback(task, recipe)
    chosen = (
        list(methods)
        if methods is not None
        else rating_presets.parse_methods(rating_presets.DEFAULT_METHODS)
    )
    learner = recipe.learner
    plan = scoring_ratings.plan(task, settings.rows, settings.seed)
    groups: list[Group] = []
    notes: list[str] = []

    def progress(text: str) -> None:
        say(text, time.perf_counter() - start)

    def add(label: str, role: str, fitted: _Fitted, **facts: Any) -> None:
        facts["info"] = _scalars(fitted.reports)
        said = scoring_ratings.answers(plan, learner, fitted.states)
        groups.append(
            Group(label, role, **said, compile=fitted.compile, run=fitted.run, facts=facts)
        )

    def fits(name: str, ratings: Any, used: Factorisation, count: int, words: str) -> _Fitted:
        progress(f"fitting {count} {words}")
        keys, own = classifiers.keys_of(settings.seed, name, count), used.learner
        return _repeated(lambda i: used.fit(own, ratings, keys[i]), count)

    originals = fits("original", task.source.train, recipe, settings.seeds, "originals")
    add("original", "original", originals)
    if len(task.forget):
        oracles = fits(
            "oracle", task.retained, recipe, settings.oracles, "oracles (true retrainings)"
        )
        add("oracle", "oracle", oracles)
        for words, variant in recipe.variants().items():
            half = max(2, settings.oracles // 2)
            found = fits(words, task.retained, variant, half, f"oracles by {words}")
            add(f"oracle, {words}", "recipe", found, recipe=dataclasses.asdict(variant))
    begun = classifiers.keys_of(settings.seed, "original", settings.seeds)
    for each in chosen:
        progress(f"unlearning with {each.label}")
        entry, given = METHODS[each.name], rating_presets.arguments(each)
        keys = classifiers.keys_of(settings.seed, f"method {each.label}", settings.seeds)

        def one(i: int, entry: Any = entry, given: Any = given, keys: Any = keys) -> Any:
            held = Given(recipe, learner, task, originals.states[i], begun[i], keys[i])
            return entry.run(held, **given)

        found = _repeated(one, settings.seeds)
        facts = _facts(each, found.reports)
        add(each.label, "method", found, **facts)
        notes += _unconverged(each, found.reports)
    progress("auditing")
    oracle = next((g for g in groups if g.role == "oracle"), None)
    judged = scoring_ratings.judge(groups, plan, settings) if oracle else None
    metrics = scoring_ratings.Metrics(groups[0], oracle, plan, settings)
    facts = {"users": task.source.train.users, "items": task.source.train.items}
    seconds = time.perf_counter() - start
    versions = classifiers.versions()
    record = results.gather(
        task, settings, groups, judged, metrics, facts, notes, versions, seconds
    )
    return results.Results(results.plain(record | _shown(plan)))


def check_feedback(task: RatingTask, recipe: Factorisation) -> None:
    """Refuses a recipe for feedback that the source does not have."""
    wanted = "explicit" if recipe.feedback == "explicit" else "implicit"
    if task.source.kind != wanted:
        other = "'explicit'" if wanted == "implicit" else "'implicit' or 'ials'"
        hint = "" if wanted == "explicit" else f", or the source {task.source.name}:implicit"
        raise ValueError(
            f"feedback {recipe.feedback!r} does not fit {task.source.name}, whose feedback is "
            f"{task.source.kind}; use {other}{hint}."
        )


def _repeated(one: Callable[[int], tuple[Any, Any]], count: int) -> _Fitted:
    """(state, report) of each number below `count`, timed; what the first call takes beyond a
    second one is compilation."""

    def timed(i: int) -> tuple[Any, Any, float]:
        begin = time.perf_counter()
        state, report = one(i)
        jax.block_until_ready(state)
        return state, report, time.perf_counter() - begin

    _, _, first = timed(0)
    found = [timed(i) for i in range(count)]
    states, reports, seconds = (list(each) for each in zip(*found, strict=True))
    return _Fitted(states, reports, max(0.0, first - seconds[0]), sum(seconds))


def _scalars(reports: Sequence[Any]) -> dict[str, list[float | None]]:
    """Numbers of the reports, one of each model."""
    return {
        name: [None if (value := getattr(r, name)) is None else float(value) for r in reports]
        for name in reports[0]._fields
        if all(isinstance(getattr(r, name), int | float | None) for r in reports)
    }


def _facts(each: Specified, reports: Sequence[Any]) -> dict[str, Any]:
    """What the report says about a method besides its numbers."""
    entry, given = METHODS[each.name], rating_presets.arguments(each)
    promised = {report.guarantee for report in reports}
    return {
        "method": each.name,
        "family": entry.family,
        "paper": entry.paper,
        "needs": ["forget", "retain"] if each.name == "als" else ["retain"],
        "guarantee": promised.pop()
        if each.name == "als" and len(promised) == 1
        else entry.guarantee,
        "arguments": given,
        "preset": "as given" if each.changes else entry.rule,
        "paired": each.name != "retrain" or given["same_seed"],
    }


def _unconverged(each: Specified, reports: Sequence[Any]) -> list[str]:
    if each.name != "als" or rating_presets.arguments(each)["mode"] != "converged":
        return []
    short = sum(not report.converged for report in reports)
    return [
        f"{each.label}: {short} of {len(reports)} models did not converge, so it is not exact."
    ] * bool(short)


def _shown(plan: Plan) -> dict[str, Any]:
    """How the report shows this kind of record, see `reporting.views`."""
    if plan.explicit:
        column = {
            "metric": "rmse",
            "title": "RMSE",
            "unit": "",
            "scale": 1.0,
            "digits": 3,
            "limit": None,
            "words": "The first columns are root mean square errors, in units of the ratings",
            "premise": "Where a verdict speaks of accuracy, it is the share of the variance of the "
            "ratings that is explained; chance, 0, is predicting their mean.",
        }
    else:
        column = {
            "metric": "pair_accuracy",
            "title": "pair accuracy",
            "words": "The first columns say how often an entry is ranked above an item that its "
            "user never met",
            "premise": "Where a verdict speaks of accuracy, it is the pair accuracy; chance, 0.5, "
            "is guessing.",
        }
    return {
        "column": column,
        "whole": ["sweeps"],
        "attacks": {
            "words": "Mean ROC of an attack that knows the model of before, f0, and of after, f1: "
            "deleted entries against ones that never were, by how far the prediction moved, "
            "|f0 - f1| (for the original by f1 itself, since there is no after). Black is true "
            "retraining, which moves too, by its seed and by the deletion; dotted is guessing. "
            "Change is f0 - f1, size |f0 - f1|, residual |r - f1| - |r - f0|; alone is f1 and "
            "misfit -|r - f1|, which need no model of before. retrain(same_seed=True) is what the "
            "deletion alone does.",
            "tables": scoring_ratings.attack_tables(plan),
        },
        "parts": {
            name: {"examples": len(p.user), "available": p.available, "words": p.words}
            for name, p in plan.parts.items()
        },
    }
