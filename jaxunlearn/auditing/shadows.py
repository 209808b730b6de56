"""U-LiRA at full strength: shadow models x unlearning runs, each method one compiled program.

One trained set of shadows serves every example and every method. Of two twins one was trained on
half of the targets and unlearns it, the other one on the other half (`shadow_design`);
the attack tells for each target which of them has seen it (`shadow_scores`). Two rows
stand beside the methods:

    original   nothing is unlearned: plain LiRA, what there was to hide
    oracle     2K true retrainings on what is retained: 1/2 but for sampling

All shadows are one program over (key, row numbers): the table of the training data is there once,
and rows are gathered inside. A network's own copy of its rows lives as long as it is trained, so
as many are trained at once as have room (512 MB a device). What is retained is shared by all.

Retained rows have no second world here: every shadow was trained on them. What unlearning does to
their privacy is told by the audits of the comparison.

Sources: J. Hayes et al. (2024), arXiv:2403.01218 (*reconstruction*); N. Carlini et al. (2022),
arXiv:2112.03570, for models that are shared by all targets. Departures: 1. the two worlds are twins
that share out the targets, so that every model is of use for every target; 2. the attack leaves a
pair out, in place of fresh models; 3. a forget set is half of the targets, not all of the request.

| input                                   | result                                               |
|-----------------------------------------|------------------------------------------------------|
| a model that is not finite              | its pair is left out of that row; `notes` say        |
| the same seed                           | the same numbers                                     |
| more pairs                              | the first ones stay as they are                      |
| the trained shadows are in the cache    | read, seconds 0                                      |
"""

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import audit, compare, presets, training
from jaxunlearn.auditing.shadow_design import Design, design, generator, words
from jaxunlearn.auditing.shadow_scores import Shadowed, scored
from jaxunlearn.cache import Cache
from jaxunlearn.data.streams import InMemory
from jaxunlearn.data.tasks import Task
from jaxunlearn.ensembles import ensemble
from jaxunlearn.method import Method, Request
from jaxunlearn.model import Model
from jaxunlearn.presets import Recipe
from jaxunlearn.specification import Specified
from jaxunlearn.typing import Array, Key, Params

_ROOM = 2**29  # bytes on a device for the training rows of the networks that are trained at once
_MODELS_AT_ONCE, _ROWS_AT_ONCE = 16, 1024  # when margins are computed


class ShadowResults(NamedTuple):
    """The attack on every row; `results.plain` makes it JSON data."""

    pairs: int
    targets: np.ndarray  # (n,) ids of the targets, in the order of the rows' `examples`
    words: str  # what was done, for people
    rows: tuple[Shadowed, ...]  # original, oracle, then the methods
    notes: tuple[str, ...]  # what methods warned of, pairs that were left out


def shadow_lira(
    task: Task,
    methods: Sequence[Specified],
    *,
    network: Model,
    recipe: Recipe,
    pairs: int = 64,
    targets: int | None = None,
    seed: int,
    cache: Cache | None = None,
    progress: Callable[[str], None] = lambda text: None,
    resamples: int = 999,
) -> ShadowResults:
    """U-LiRA of every method on the same shadow models.

        accuracy = mean over x of 1/2 [ Pr(LR > 0 | x unlearned) + Pr(LR < 0 | x never seen) ]

    Args:
      task: what is to be forgotten, of a source with classes.
      methods: see `presets.parse_methods`; with their presets for this kind of task and recipe.
      network: see `compare.network_of`.
      recipe: how shadows are trained.
      pairs: K >= 4 pairs of models; below 64 the variances of all targets are pooled.
      targets: how many forget rows are attacked at most, >= 2; the others stay in every forget set.
        None: all.
      seed: >= 0; of keys, halves, groups and relabellings.
      cache: where trained models are kept; None trains them anew.
      progress: called with a text before each group.
      resamples: relabellings of the exact test, see `shadow_scores.swap_test`.

    Returns:
      `ShadowResults` with a row for "original", "oracle" and each label. The intervals are those of
      `audit.unlearned_lira`; the levels of the p-values hold for each row by itself.

    Raises:
      TooFew: fewer than four pairs, or than two rows to forget.
      ValueError: real targets, a method that needs what the task has not; before anything is
        trained.

    Cost: 2K trainings and 2K retrainings, 2K runs of each method; memory of 2K networks, and of the
    rows of those that are trained at once.

    Source: J. Hayes et al. (2024), arXiv:2403.01218.

    Example:
      >>> from jaxunlearn import compare, presets
      >>> from jaxunlearn.data import digits, random_task
      >>> recipe = presets.Recipe(epochs=1)
      >>> task = random_task(digits(), 0.02, seed=0)
      >>> network = compare.network_of(task.source, recipe)
      >>> found = shadow_lira(task, [], network=network, recipe=recipe, pairs=4, seed=0)
      >>> [row.label for row in found.rows]
      ['original', 'oracle']
    """
    if task.source.target is not None:
        raise ValueError(
            f"shadow_lira: {task.source.name} has a real target; the attack reads the margin of "
            "the true class. There is none to read in a regression."
        )
    made = design(task, pairs, targets=targets, seed=seed)
    request = task.request(recipe.batch_size)
    built = [(each, _built(each, task, recipe, request)) for each in methods]
    ids, x, y = (task.source.train[name][made.targets] for name in ("id", "x", "y"))
    margins = reader(network, x, y)
    notes: list[str] = []

    def judged(label: str, params: Params, timing: compare.Timing) -> Shadowed:
        row = scored(
            label, margins(params), made.member, relabellings=resamples,
            rng=generator(seed, f"attack {label}"), seconds=timing._asdict(),
        )  # fmt: skip
        if row.pairs < pairs:
            notes.append(f"{label}: {pairs - row.pairs} of {pairs} pairs have a model that is not "
                         "finite and are left out.")  # fmt: skip
        return row

    progress(f"training {2 * pairs} shadow models")
    shadows, timing = train_shadows(network, task, made, recipe, seed=seed, cache=cache)
    rows = [judged("original", shadows, timing)]
    progress(f"retraining {2 * pairs} shadow models")
    oracles = compare.train_group(
        network, task, "retain", recipe, "shadow oracle", 2 * pairs, seed, cache
    )
    rows.append(judged("oracle", *oracles))
    for each, method in built:
        progress(f"shadow models unlearn with {each.label}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out = unlearn_shadows(
                network, method, shadows, task, made,
                keys=_keys(seed, f"method {each.label}", 2 * pairs), batch_size=recipe.batch_size,
            )  # fmt: skip
        said = dict.fromkeys(str(w.message).removeprefix(f"{each.name}: ") for w in caught)
        notes += [f"{each.label}: {text}" for text in said]
        rows.append(judged(each.label, *out))
    return ShadowResults(pairs, ids, words(task, made), tuple(rows), tuple(notes))


def train_shadows(
    network: Model,
    task: Task,
    made: Design,
    recipe: Recipe,
    *,
    seed: int,
    cache: Cache | None = None,
) -> tuple[Params, compare.Timing]:
    """(stacked params of the 2K shadows, seconds); as `training.train` on each one's rows."""
    keys = _keys(seed, "training", len(made.trained))
    table = task.train_data(recipe.batch_size)

    def many(keys: Key, rows: Array, table: InMemory) -> Params:
        def one(key: Key, rows: Array) -> Params:
            data = _gathered(table, rows)
            return training.train(network, recipe.tx, data, key=key, epochs=recipe.epochs).params

        return ensemble(one, chunk=_at_once(task, made.trained.shape[1]))(keys, rows)

    arguments = (keys, made.trained, table)
    if cache is None:
        return _timed(many, *arguments)
    timing = compare.Timing(0.0, 0.0)

    def make() -> Params:
        nonlocal timing
        params, timing = _timed(many, *arguments)
        return params

    address = {
        "data": task.source.digest,
        "group": "shadows",
        "rows": hashlib.sha256(made.trained.astype("<i4").tobytes()).hexdigest(),
        "recipe": dataclasses.asdict(recipe),
        "models": len(made.trained),
        "seed": seed,
        "devices": jax.device_count(),
        "code": compare.versions()["code"],
    }
    found = cache.get_or_make(address, make, jax.eval_shape(many, *arguments), label="shadows")
    return found.tree, timing


def unlearn_shadows(
    network: Model,
    method: Method,
    shadows: Params,
    task: Task,
    made: Design,
    *,
    keys: Key,
    batch_size: int,
) -> tuple[Params, compare.Timing]:
    """(stacked params after each shadow forgot its own rows, seconds): one program.

    The request is the task's, but for its forget part; `keys` (2K,) are typed.
    """
    request, table = task.request(batch_size), task.train_data(batch_size)

    def many(shadows: Params, rows: Array, keys: Key, table: InMemory, request: Request) -> Params:
        def one(params: Params, rows: Array, key: Key) -> Params:
            own = request._replace(forget=_gathered(table, rows))
            return method.unlearn(network, params, own, key).params

        return ensemble(one, chunk=_at_once(task, made.trained.shape[1]))(shadows, rows, keys)

    return _timed(many, shadows, made.forgotten, keys, table, request)


# -------------------------------------------------------------------------------------- the inside


def _keys(seed: int, name: str, count: int) -> Key:
    return compare.keys_of(seed, f"shadows {name}", count)


def _built(each: Specified, task: Task, recipe: Recipe, request: Request) -> Method:
    kind = task.name.split(":")[0]
    method = presets.build(each.name, each.changes, kind, recipe, task.source.num_outputs)
    absent = {field for field, data in request._asdict().items() if data is None} & method.needs
    if absent:
        raise ValueError(
            f"shadow_lira: {each.label} needs {' and '.join(sorted(absent))} data, of which task "
            f"'{task.name}' has none. Leave the method out."
        )
    return method


def _gathered(table: InMemory, rows: Array) -> InMemory:
    """Rows of a table as Data of their own, inside a program."""
    return InMemory({name: column[rows] for name, column in table.arrays.items()}, table.batch_size)


def _at_once(task: Task, rows: int) -> int:
    """How many networks' copies of `rows` training rows there is room for on a device."""
    row = sum(column[:1].nbytes for column in task.source.train.values())
    return max(1, _ROOM // max(1, row * rows))


def reader(network: Model, x: np.ndarray, y: np.ndarray) -> Callable[[Params], np.ndarray]:
    """A function of stacked params: (2K, n) float64 margins; NaN for a model that is not finite."""

    @jax.jit
    def outputs(params: Params, x: Array) -> Array:
        one = ensemble(lambda p: network.outputs(p, {"x": x}), how="map", chunk=_MODELS_AT_ONCE)
        return one(params)

    def margins(params: Params) -> np.ndarray:
        # To the host first, as for `compare.Evaluator`: slices of what is spread over devices wait
        # for each other.
        params = jax.device_get(params)
        starts = range(0, len(y), _ROWS_AT_ONCE)
        blocks = [np.asarray(outputs(params, x[at : at + _ROWS_AT_ONCE])) for at in starts]
        return audit.attack_signal(np.concatenate(blocks, axis=1), y, score="margin")

    return margins


def _timed(function: Callable, *arguments: Any) -> tuple[Any, compare.Timing]:
    """(result, seconds to compile and to run) of a function as one program."""
    begin = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    middle = time.perf_counter()
    out = jax.block_until_ready(program(*arguments))
    return out, compare.Timing(middle - begin, time.perf_counter() - middle)
