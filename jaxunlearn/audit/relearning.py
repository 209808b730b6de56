"""Would it come back? Train the forgotten data again and watch how fast knowledge returns.

    theta_0 = the model as it is,   theta_{t+1} = theta_t + tx(grad L(theta_t; batch_t))
    curve_k = knowledge of theta_{k every} on each watched set,   k = 0 .. steps / every

Knowledge is the mean probability p_y of the true label, the accuracy and the mean loss. What was
only hidden (an output turned down, a last layer moved) returns in a few steps; what was never
learnt must be learnt. The measure is the curve of a *retrained* model under the same data,
optimiser and key: `came_back` says whether a method's curves lie above the oracles', `relearn_time`
turns curves into steps.

What is relearned from is the caller's choice, and each answers another question:

| data                       | question                                                           |
|----------------------------|--------------------------------------------------------------------|
| the forget data            | how fast can they be had back?                                     |
| a few of their rows        | do a few examples bring back the rest? (`relearning_by_examples`)  |
| a mix with retained data   | does ordinary further training bring them back?                    |
| unrelated data             | does fine-tuning on something else bring them back by itself?      |

A large number added to one output (a mask of -1000) is no forgetting, yet gradient steps take long
to undo it: such curves stay low while the features still know everything. Relearning with a fresh
last layer, the same in all models compared, asks the features (`with_fresh_layer`). Data with every
class in them ask more than forget data alone: these a bias can satisfy.

The run is `fit`'s: its step, its order of the examples, its running statistics, its end where the
loss is no longer finite. Optimiser, learning rate and mix decide how long a curve is, so they
belong beside every number, and only curves of equal ones are comparable.

Source: relearn time after A. Golatkar et al. (2020), arXiv:1911.04933, and V. Chundawat et al.
(2023), arXiv:2201.05629; a *reconstruction*, since both give one number of one run. Departures:
1. the whole curve is kept, on several sets, confidence and accuracy beside the loss; 2. the data
are an argument (the released code of arXiv:2210.08196 relearns on the full training set at rate
0.01, whatever was forgotten, and is over within a few minibatches).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn.data.columns import is_traced
from jaxunlearn.data.streams import InMemory, as_data
from jaxunlearn.loop import FitState, Plan, Status, scan_steps, start
from jaxunlearn.model import Model, split_statistics
from jaxunlearn.objectives import training
from jaxunlearn.typing import Array, Key, Params, check_key

from .knowledge import Knowledge, Watched, as_watched, knowledge
from .leaves import names_on


class Curve(NamedTuple):
    """What `relearning_curve` returns; a pytree, so that it can be vmapped."""

    watched: dict[str, Knowledge]  # by the names of `watch`, each field (T,); `recorded_steps`
    status: Array  # [] int32, a `training.Status`; DIVERGED: NaN from there on


def recorded_steps(steps: int, every: int = 1) -> np.ndarray:
    """The moments of a curve, 0, every, 2 every, ..., steps: (T,) int64, T = steps / every + 1.

    Example:
      >>> recorded_steps(6, 2)
      array([0, 2, 4, 6])
    """
    for name, value, least in (("steps", steps, 0), ("every", every, 1)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"relearning: {name} must be an integer >= {least}, got {value!r}.")
    if steps % every:
        raise ValueError(
            f"relearning: steps must be a multiple of every, so that the last step is recorded, "
            f"got steps={steps} and every={every}."
        )
    return np.arange(0, steps + 1, every)


def relearning_curve(
    model: Model,
    params: Params,
    data: Any,
    watch: Mapping[str, Any],
    *,
    tx: optax.GradientTransformation,
    steps: int,
    every: int = 1,
    key: Key,
) -> Curve:
    """Knowledge on each watched set before the first step and after every `every` steps.

        curve_k = knowledge(theta_{k every}),   theta_{t+1} = theta_t + tx(grad L(theta_t; batch_t))

    L is the mean training loss, as in `train`. One model; `jax.vmap` or `ensemble` over (params,
    key) makes it many, `jax.jit` compiles it (uncompiled it is traced anew in each call).

    Args:
      model: what the params belong to.
      params: the model audited, running statistics included.
      data: in-memory Data to relearn from, or a mapping of arrays; its batch size is that of the
        steps.
      watch: name -> a Batch, looked at as a whole, or in-memory Data, looked at in its batches
        (which bounds memory, and changes nothing).
      tx: an optax transformation, with a fresh state.
      steps: length of the run in minibatches, >= 0, a multiple of `every`.
      every: steps between records, >= 1.
      key: one typed key; orders the examples and feeds the training loss. Models to be compared
        step by step get equal keys.

    Returns:
      `Curve`; each field (T,), T = steps / every + 1. Without integer labels of classes (a
      regression) the loss alone.

    Raises:
      ValueError: nothing to relearn from or to watch; steps and every that do not fit; a loss that
        is not per example; labels outside the classes (of concrete data).
      TypeError: data that stream from the host; a key that is not one typed key.

    | situation                                 | result                                         |
    |-------------------------------------------|------------------------------------------------|
    | record 0                                  | the model as it is                             |
    | steps = 0                                 | record 0 alone                                 |
    | another `every`                           | the same values at common steps                |
    | loss or params become non-finite          | NaN from the next record on, status DIVERGED   |
    | an output that is no number               | NaN, whatever argmax says                      |
    | a watched set without rows that count     | NaN: undefined, not 0                          |
    | `jit`, `vmap`, watched in other batches   | the same values, up to rounding                |

    Cost: `steps` gradients, and T passes over all watched sets; memory of params, optimiser state,
    one batch of each.

    Source: relearn time (arXiv:1911.04933, arXiv:2201.05629), see the module.

    Example:
      >>> model = Model(
      ...     outputs=lambda p, batch: batch["x"] @ p,
      ...     loss=lambda p, batch: optax.losses.softmax_cross_entropy_with_integer_labels(
      ...         batch["x"] @ p, batch["y"]),
      ... )
      >>> data = {"x": np.eye(2, dtype=np.float32), "y": np.array([0, 1])}
      >>> curve = relearning_curve(model, jnp.zeros((2, 2)), data, {"forget": data},
      ...                          tx=optax.sgd(4.0), steps=2, key=jax.random.key(0))
      >>> np.asarray(curve.watched["forget"].confidence, float).round(2)
      array([0.5 , 0.88, 0.92])
    """
    check_key("relearning_curve", key)
    recorded_steps(steps, every)
    data, sets = _checked("relearning_curve", model, params, data, watch)
    return _curve(model, params, data, sets, tx, steps, every, key)


def relearning_by_examples(
    model: Model,
    params: Params,
    data: Any,
    watch: Mapping[str, Any],
    *,
    counts: Sequence[int] = (1, 2, 4, 8, 16, 32),
    tx: optax.GradientTransformation,
    steps: int,
    every: int | None = None,
    key: Key,
) -> Curve:
    """How many examples bring back the rest? The curve for each of several numbers of examples.

        D_c = the first c rows of one random order of `data`,   D_1 in D_2 in D_4 ...
        theta_{t+1} = theta_t + tx(grad L(theta_t; D_c)),   L the mean over all c rows

    Every step sees all c rows, so that numbers of examples are compared at equal numbers of steps.
    Every D_c is a batch of max(counts) rows in which its own come again and again, with weights
    that sum to 1 for each: one program for all counts, and a normalisation layer in training mode
    sees no other row.

    Args:
      model, params, tx, steps, key: as for `relearning_curve`; the first half of `key` orders the
        rows, so that models with equal keys relearn from the same ones.
      data: forget data to take the examples from; their batch size is not read. Rows of weight 0
        come last in every order.
      watch: as for `relearning_curve`: forget data that are *not* in `data`. Rows that are
        relearned themselves would be memorised, and say nothing about the rest.
      counts: numbers c of examples, integers in [1, rows of `data`].
      every: steps between records; None: before the first step and after the last.

    Returns:
      `Curve` with a leading axis of len(counts): fields (len(counts), T), status (len(counts),).

    Raises:
      ValueError, TypeError: as for `relearning_curve`; counts that are no such integers.

    Cost: `steps` gradients of max(counts) rows for each count, all in one program.

    Example:
      >>> model = Model(
      ...     outputs=lambda p, batch: batch["x"] @ p,
      ...     loss=lambda p, batch: jnp.square(batch["x"] @ p - batch["y"]),
      ... )
      >>> rows = {"x": np.ones((4, 1), np.float32), "y": np.ones(4, np.float32)}
      >>> curve = relearning_by_examples(model, jnp.zeros(1), rows, {"rest": rows}, counts=(1, 3),
      ...                                tx=optax.sgd(0.25), steps=1, key=jax.random.key(0))
      >>> print(curve.watched["rest"].loss)
      [[1.   0.25]
       [1.   0.25]]
    """
    check_key("relearning_by_examples", key)
    every = max(1, steps) if every is None else every
    recorded_steps(steps, every)
    data, sets = _checked("relearning_by_examples", model, params, data, watch)
    counts = tuple(counts)
    rows, most = data.num_examples, _largest(counts, data)
    order_key, fit_key = jax.random.split(key)
    weight = data.arrays.get("weight", jnp.ones(rows))
    order = jax.random.permutation(order_key, rows)
    order = order[jnp.argsort(weight[order] <= 0, stable=True)]

    def from_first(count: Array) -> Curve:
        place = jnp.arange(most) % count
        often = (most - 1 - place) // count + 1  # times that this row comes among the `most`
        chosen = order[place]
        columns = {name: column[chosen] for name, column in data.arrays.items()}
        batch = InMemory(columns | {"weight": weight[chosen] / often}, most)
        return _curve(model, params, batch, sets, tx, steps, every, fit_key)

    return jax.vmap(from_first)(jnp.asarray(counts, jnp.int32))


def with_fresh_layer(params: Params, fresh: Params, layer: str = "head") -> Params:
    """params, the leaves below `layer` replaced by those of `fresh`.

    Relearning then starts from the features alone: what a mask or a change of the last layer hides
    is laid open. Give all models that are compared the same `fresh`.

    Args:
      params: of one model; any tree with named nodes.
      fresh: a tree of the same structure, as from `model.init(key)`.
      layer: a name on the path of the leaves to replace.

    Raises:
      ValueError: no leaf, or every leaf, lies below such a name; trees of different structure.

    Example:
      >>> with_fresh_layer({"body": 1.0, "head": {"bias": 2.0}}, {"body": 0, "head": {"bias": 0}})
      {'body': 1.0, 'head': {'bias': 0}}
    """
    if jax.tree.structure(params) != jax.tree.structure(fresh):
        raise ValueError(
            "with_fresh_layer: params and fresh must be trees of one structure, got "
            f"{jax.tree.structure(params)} and {jax.tree.structure(fresh)}."
        )
    replaced = []

    def choose(path: tuple, old: Any, new: Any) -> Any:
        replaced.append(layer in names_on(path))
        return new if replaced[-1] else old

    mixed = jax.tree_util.tree_map_with_path(choose, params, fresh)
    if all(replaced) or not any(replaced):
        raise ValueError(
            f"with_fresh_layer: expected some leaves below '{layer}' and some elsewhere, found "
            f"{sum(replaced)} of {len(replaced)}. Name the last layer of this network."
        )
    return mixed


def _curve(
    model: Model,
    params: Params,
    data: InMemory,
    sets: Mapping[str, Watched],
    tx: optax.GradientTransformation,
    steps: int,
    every: int,
    key: Key,
) -> Curve:
    """The curve of one run: stretches of `every` steps of the loop, a record after each."""
    weights, statistics = split_statistics(model, params)
    objective = training(model, statistics=statistics)
    plan = Plan(
        loss=objective.loss,
        outcome=objective.outcome,
        extras=objective.extras,
        tx=tx,
        names=("data",),
        batches=(data.num_batches,),
        turns=(),
        total=steps,
        shuffle=jax.random.permutation if data.num_batches > 1 else None,  # one batch: no order
        stop=None,
        score=None,
        watch=None,
    )

    def record(state: FitState) -> dict[str, Knowledge]:
        now = objective.outcome(state.params, state.objective)
        known = {name: knowledge(model, now, rows) for name, rows in sets.items()}
        running = state.status == Status.COMPLETED
        return jax.tree.map(lambda value: jnp.where(running, value, jnp.nan), known)

    def stretch(state: FitState, first: Array) -> tuple[FitState, dict[str, Knowledge]]:
        state, _ = scan_steps(plan, every, state, {"data": data}, key, first)
        return state, record(state)

    state = start(plan, objective, weights)
    before = record(state)
    firsts = jnp.arange(0, steps, every, dtype=jnp.int32)
    state, after = jax.lax.scan(stretch, state, firsts)
    watched = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), before, after)
    return Curve(watched, state.status)


def _checked(
    where: str, model: Model, params: Params, data: Any, watch: Mapping[str, Any]
) -> tuple[InMemory, dict[str, Watched]]:
    rows = as_watched(where, "data", model, params, as_data(data)).rows
    if rows.num_examples == 0:
        raise ValueError(f"{where}: data have no rows, so there is nothing to relearn from.")
    if not isinstance(watch, Mapping) or not watch:
        raise ValueError(
            f"{where}: watch must map at least one name to a Batch, "
            "as in {'forget': ..., 'test': ...}; without one there is no curve."
        )
    return rows, {n: as_watched(where, f"watch['{n}']", model, params, w) for n, w in watch.items()}


def _largest(counts: tuple[int, ...], data: InMemory) -> int:
    weight = data.arrays.get("weight")
    known = weight is not None and not is_traced(weight)
    rows = int((np.asarray(weight) > 0).sum()) if known else data.num_examples
    whole = all(isinstance(c, int | np.integer) and not isinstance(c, bool) for c in counts)
    if not counts or not whole or min(counts) < 1 or max(counts) > rows:
        raise ValueError(
            f"relearning_by_examples: counts must be integers in [1, {rows}], the rows of data "
            f"that count, got {counts}."
        )
    return int(max(counts))
