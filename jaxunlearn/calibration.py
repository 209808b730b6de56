"""How strong should a method be? Chosen on proxies, never by the oracle of the request itself.

    setting* = argmax over settings of   mean over proxies of gap closed
               subject to                mean over proxies of collateral <= limit,   cost <= budget

The limit is a few recipe floors, or the collateral of doing nothing where that is more: among
entangled data an untouched original, too, is far from retraining on what should stay.

Strength matters more than the method: a published habit drives accuracy on forgotten data to zero
where true retraining would keep most of it. The right strength depends on the data, and whoever
reads it off the request's own oracle has retrained. So other requests of the same kind and size
(`jaxunlearn.data.proxies`) get oracles of their own, once; every setting of every method is run on
them; and the setting that comes closest to *their* oracles, without more collateral than the limit,
is used on the request. Where no setting keeps to the limit, the one with the least collateral is.

What it costs is trainings of proxies' oracles, shared by all methods and by all later requests of
the kind: it pays where requests keep coming. Gap closed, collateral and recipe floors are those of
`jaxunlearn.audit`; `jaxunlearn.grids` says what is tried.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxunlearn import audit, presets
from jaxunlearn.cache import Cache
from jaxunlearn.compare import (
    Evaluator,
    Say,
    Settings,
    keys_of,
    network_of,
    possible,
    train_group,
)
from jaxunlearn.data.proxies import proxies
from jaxunlearn.data.streams import InMemory
from jaxunlearn.data.tasks import Task
from jaxunlearn.grids import GRIDS
from jaxunlearn.method import Request
from jaxunlearn.model import Model
from jaxunlearn.presets import Specified
from jaxunlearn.results import Results, plain
from jaxunlearn.scoring_regression import deviation_of
from jaxunlearn.sweeps import Point, grid, sweep
from jaxunlearn.typing import Params

COLLATERAL_LIMIT = 3.0  # recipe floors
_NONE_GENTLE = "no setting has at most"
SIZES: dict[str, Any] = {"seeds": 8, "oracles": 16}  # models, unless told otherwise


class Proxy(NamedTuple):
    """A request whose oracle may be looked at, and what every setting is compared with."""

    task: Task
    request: Request  # padded, so that all proxies of a calibration share one program
    outputs: Callable[[Params], dict[str, np.ndarray]]  # stacked models -> part -> (M, n, C)
    distance: Callable[[np.ndarray], np.ndarray | None]  # (M, n, C) -> (M, M)
    oracles: dict[str, np.ndarray]  # part -> (M, n, C)
    floors: dict[str, audit.Floor]
    start: float  # energy between originals and oracles on the forget data
    idle: float  # collateral of the originals, recipe floors: that of doing nothing


class References(NamedTuple):
    """What all methods share: trained once by `references`."""

    network: Model
    settings: Settings
    kind: str  # of the tasks, for presets
    originals: Params  # (N, ...) trained on everything
    proxies: list[Proxy]
    retraining: float  # seconds of `retrain` on all originals of one proxy, in this process


class Trial(NamedTuple):
    """One setting on all proxies."""

    settings: dict[str, Any]  # arguments that differ from the preset
    gap_closed: list[float]  # one number per proxy; NaN if a model broke
    collateral: list[float]  # recipe floors, one per proxy; inf if a model broke
    cost: float  # share of retraining, run time only


class Calibration(NamedTuple):
    """What was tried for one method, and what was chosen."""

    name: str
    trials: list[Trial]
    chosen: Trial | None  # None: nothing within the budget
    words: str  # why


def references(
    tasks: Sequence[Task],
    settings: Settings | None = None,
    *,
    cache: Cache | None = None,
    say: Say = lambda text, seconds: None,
) -> References:
    """Originals, and for every proxy its oracles and recipe floors.

    Args:
      tasks: proxies on one source, such as `jaxunlearn.data.proxies(task)` gives; not empty.
      settings: recipe and numbers of models; default 8 originals, 16 oracles a proxy.
      cache, say: as in `compare.compare`.

    Raises:
      ValueError: no tasks, or tasks on different sources.

    Cost: seeds + 2 oracles per proxy trainings, and `seeds` more to measure what retraining takes.
    """
    if not tasks or len({task.source.digest for task in tasks}) != 1:
        raise ValueError(
            f"references: expected one or more proxies on one source, got {len(tasks)} on "
            f"{len({task.source.digest for task in tasks})}."
        )
    settings = settings or Settings(**SIZES)
    begin, recipe, source = time.perf_counter(), settings.recipe, tasks[0].source
    network = network_of(source, recipe)

    def group(task: Task, part: str, used: presets.Recipe, name: str, count: int) -> Params:
        say(f"training {count} models: {name}, {task.name}", time.perf_counter() - begin)
        return train_group(network, task, part, used, name, count, settings.seed, cache)[0]

    distance = audit.hellinger_matrix
    if source.target is not None:
        distance = partial(_of_predictions, deviation_of(source))
    originals = group(tasks[0], "all", recipe, "original", settings.seeds)
    requests = _alike([task.request(recipe.batch_size) for task in tasks])
    found = []
    for task, request in zip(tasks, requests, strict=True):
        outputs = Evaluator(network, task, settings)
        oracles = outputs(group(task, "retain", recipe, "oracle", settings.oracles))
        variants = [
            outputs(group(task, "retain", variant, name, max(2, settings.oracles // 2)))
            for name, variant in recipe.variants().items()
        ]
        matrices, (own, *others) = _distances(distance, oracles, *variants)
        floors = audit.recipe_floor(
            matrices, own, others, permutations=settings.permutations, seed=settings.seed
        )
        untouched = outputs(originals)
        start = _energies(distance, oracles, untouched)["forget"]
        proxy = Proxy(task, request, outputs, distance, oracles, floors, start, 0.0)
        found.append(proxy._replace(idle=_judged(proxy, untouched)[1]))
    kind = "random" if tasks[0].name.startswith("ids:") else tasks[0].name.split(":")[0]
    made = References(network, settings, kind, originals, found, np.nan)
    retrain = _swept(made, "retrain", [{}], found[0])
    return made._replace(retraining=retrain.seconds[0])


def calibrate(
    name: str,
    points: Sequence[Point],
    found: References,
    *,
    budget: float | None = None,
    limit: float = COLLATERAL_LIMIT,
) -> Calibration:
    """The setting of a method that comes closest to the oracles of the proxies.

    Args:
      name: of a method with a preset, as in the catalogue.
      points: settings to try, as changes to the preset (`sweeps.grid` makes a grid).
      found: see `references`.
      budget: at most this share of retraining's run time; None: any.
      limit: of collateral, in recipe floors, mean over proxies; raised to that of doing nothing.

    Returns:
      `Calibration`; `chosen.settings` are what to use on the request.

    Raises:
      ValueError: an unknown method, or points that the method refuses.

    | situation                                | chosen                                     |
    |------------------------------------------|--------------------------------------------|
    | some settings keep to limit and budget   | of these the one with the largest gap      |
    | none keeps to the limit                  | of those in the budget the least collateral |
    | none keeps to the budget                 | None                                       |
    | a model of a setting breaks (non-finite) | not that one, if there is another          |

    Cost: points x proxies x seeds unlearnings, as few programs as `sweep` can make of them.
    """
    trials = [Trial(dict(point), [], [], 0.0) for point in points]
    for proxy in found.proxies:
        swept = _swept(found, name, points, proxy)
        for place, trial in enumerate(trials):
            gap, collateral = _judged(proxy, proxy.outputs(swept.params[place]))
            share = swept.seconds[place] / found.retraining / len(found.proxies)
            trials[place] = Trial(
                trial.settings,
                [*trial.gap_closed, gap],
                [*trial.collateral, collateral],
                trial.cost + share,
            )
    return choose(name, trials, budget=budget, limit=raised(limit, found))


def raised(limit: float, found: References) -> float:
    """`limit`, or the mean collateral of doing nothing on the proxies where that is more."""
    return max(limit, float(np.mean([proxy.idle for proxy in found.proxies])))


def choose(
    name: str, trials: Sequence[Trial], *, budget: float | None = None, limit: float
) -> Calibration:
    """The rule of `calibrate` on trials that were made before; see there."""
    ran = [t for t in trials if np.isfinite(t.gap_closed).all()]
    affordable = [t for t in ran if budget is None or t.cost <= budget]
    if not affordable:
        why = "every setting broke a model" if not ran else f"no setting costs at most {budget:g}"
        return Calibration(name, list(trials), None, f"{why}: nothing was chosen")
    gentle = [t for t in affordable if np.mean(t.collateral) <= limit]
    if gentle:
        best = max(gentle, key=lambda t: float(np.mean(t.gap_closed)))
        words = f"closest to the proxies' oracles with at most {limit:.3g} floors of collateral"
    else:
        best = min(affordable, key=lambda t: float(np.mean(t.collateral)))
        words = f"{_NONE_GENTLE} {limit:.3g} floors of collateral: the one with the least"
    return Calibration(name, list(trials), best, words)


def specified(found: Calibration) -> Specified | None:
    """The method with the chosen setting, as `compare.compare` takes it."""
    if found.chosen is None:
        return None
    changes = found.chosen.settings
    inner = ", ".join(f"{key}={value!r}" for key, value in changes.items())
    return Specified(f"{found.name}({inner})" if inner else found.name, found.name, dict(changes))


class Calibrated(NamedTuple):
    """What `calibrated` returns."""

    methods: list[Specified]  # what `compare.compare` takes
    tried: list[Calibration]
    proxies: list[str]  # names of their tasks
    settings: Settings
    seconds: float


def calibrated(
    task: Task,
    methods: Sequence[Specified],
    settings: Settings | None = None,
    *,
    count: int = 3,
    budget: float | None = None,
    limit: float = COLLATERAL_LIMIT,
    cache: Cache | None = None,
    say: Say = lambda text, seconds: None,
) -> Calibrated:
    """Methods for a request, each with the setting that its proxies chose from its grid.

    Args:
      task: the request; its own oracle is not trained, and none of its rows is forgotten here.
      methods: one that is named without arguments gets a setting from its grid, or is left out if
        all of these are above the budget; the others, and those without a grid, stay as they are.
      settings: as for `references`.
      count: proxies.
      budget, limit: as for `calibrate`.
      cache, say: as in `compare.compare`.

    Raises:
      ValueError: an unknown method, or one that needs what the task has not.
    """
    begin = time.perf_counter()
    settings = settings or Settings(**SIZES)
    lacking = possible([each.name for each in methods], task.request(settings.recipe.batch_size))[1]
    if lacking:
        raise ValueError(f"calibrated: {lacking[0]}")
    stand_ins = proxies(task, count)
    found = references(stand_ins, settings, cache=cache, say=say)
    kept, tried = [], []
    for each in methods:
        if each.name not in GRIDS or each.changes:
            kept.append(each)
            continue
        say(f"calibrating {each.name}", time.perf_counter() - begin)
        points = grid(**GRIDS[each.name](settings.recipe))
        tried.append(calibrate(each.name, points, found, budget=budget, limit=limit))
        chosen = specified(tried[-1])
        kept += [] if chosen is None else [chosen]
    names = [stand_in.name for stand_in in stand_ins]
    return Calibrated(kept, tried, names, settings, time.perf_counter() - begin)


def told(found: Results, by: Calibrated) -> Results:
    """A comparison of calibrated methods, with what was tried in its record and in its notes."""
    left_out = [each.name for each in by.tried if each.chosen is None]
    notes = [
        f"The settings of {len(by.tried) - len(left_out)} methods were chosen on the proxies "
        f"{', '.join(by.proxies)}, in {by.seconds:.0f} s; the request's own oracle took no part.",
        *(f"{each.name} is left out: {each.words}." for each in by.tried if each.chosen is None),
        *(
            f"{each.name}: {each.words}, was chosen."
            for each in by.tried
            if each.chosen is not None and each.words.startswith(_NONE_GENTLE)
        ),
    ]
    record = dict(found.record)
    record["notes"] = [*record["notes"], *notes]
    record["calibration"] = plain(by._replace(methods=[], settings=dataclasses.asdict(by.settings)))
    return Results(record)


# -------------------------------------------------------------------------------------- the inside


def _swept(found: References, name: str, points: Sequence[Point], proxy: Proxy) -> Any:
    recipe, classes = found.settings.recipe, proxy.task.source.num_outputs

    def build(**changes: Any) -> Any:
        return presets.build(name, changes, found.kind, recipe, classes)

    keys = keys_of(found.settings.seed, f"calibrate {name}", found.settings.seeds)
    return sweep(build, points, found.network, found.originals, proxy.request, keys)


def _judged(proxy: Proxy, outputs: dict[str, np.ndarray]) -> tuple[float, float]:
    """(gap closed, collateral in recipe floors); (NaN, inf) if a model is not finite."""
    if not all(np.isfinite(logits).all() for logits in outputs.values()):
        return np.nan, np.inf
    energies = _energies(proxy.distance, proxy.oracles, outputs)
    kept = [energies[part] / proxy.floors[part].value for part in energies if part in audit.KEPT]
    return 1 - energies["forget"] / proxy.start, max(kept)


def _of_predictions(deviation: float, outputs: np.ndarray) -> np.ndarray | None:
    return audit.prediction_matrix(outputs[..., 0], scale=deviation)


def _energies(
    distance: Callable, oracles: dict[str, np.ndarray], outputs: dict[str, np.ndarray]
) -> dict[str, float]:
    matrices, (reference, own) = _distances(distance, oracles, outputs)
    return {part: audit.energy(matrix, own, reference) for part, matrix in matrices.items()}


def _distances(
    distance: Callable, *groups: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[range]]:
    """(part -> distances between all models of all groups, the places of each group)."""
    parts = [part for part in audit.PARTS if part in groups[0] and groups[0][part].shape[1]]
    matrices = {part: distance(np.concatenate([group[part] for group in groups])) for part in parts}
    ends = np.cumsum([0, *(len(group[parts[0]]) for group in groups)])
    places = [range(low, high) for low, high in zip(ends[:-1], ends[1:], strict=True)]
    return {part: matrix for part, matrix in matrices.items() if matrix is not None}, places


def _alike(requests: Sequence[Request]) -> list[Request]:
    """The same requests with as many rows each: copies of weight 0, which count nothing."""
    sizes = {
        field: max((data.num_examples for r in requests if (data := getattr(r, field))), default=0)
        for field in Request._fields
    }

    def padded(field: str, data: Any) -> InMemory | None:
        if data is None:
            return None
        rows = np.resize(np.arange(data.num_examples), sizes[field])
        weight = data.arrays.get("weight", jnp.ones(data.num_examples, jnp.float32))[rows]
        real = jnp.arange(sizes[field]) < data.num_examples
        columns = {name: column[rows] for name, column in data.arrays.items()}
        return dataclasses.replace(data, arrays=columns | {"weight": jnp.where(real, weight, 0)})

    def whole(request: Request) -> Request:
        fields: dict[str, Any] = {f: padded(f, data) for f, data in request._asdict().items()}
        return Request(**fields)

    return [whole(request) for request in requests]


def applicable(name: str, tasks: Sequence[Task]) -> bool:
    """Whether the tasks have all that the method needs."""
    return all(not possible([name], task.request(1))[1] for task in tasks)
